# fitserve: `make demo` shows everything, `make help` lists the other targets. Needs Python 3.11 to 3.13, pip and make.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
# the first name that runs a fitting Python: a name on the PATH may be a stand-in that does not run
FITS := import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c '$(FITS)' && echo $$p && exit; done \
	2>/dev/null; echo python3)
# gpu: TensorFlow with CUDA; jax, torch: other backends of Keras
EXTRA ?=
BIN := $(VENV)/bin
LOCKS := requirements/serve.txt $(if $(EXTRA),requirements/$(EXTRA).txt)
STAMP := $(VENV)/.installed$(if $(EXTRA),-$(EXTRA))
BACKEND_TESTS := tests/learning/training/test_backends.py
UV = uv pip compile --no-config --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header --no-emit-index-url --quiet
UV_COMPILE = $(UV) pyproject.toml --group build
# clients that pin other versions of libraries that the service uses
CLIENTS := kserve mlserver

.PHONY: help setup serve demo test-quick test lint format bench test-routes test-backends test-backend clients \
	test-clients test-crash test-power test-fuzz test-resume test-large test-swaps lock clean

##@ Use

help:  ## List the targets
	@awk -F ':.*## ' '/^##@/ { print substr($$0, 5) ":" } /^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv with everything that the service needs; EXTRA=gpu, jax or torch adds a backend

$(STAMP): $(LOCKS) pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "fitserve needs Python 3.11 to 3.13; found no $(PYTHON)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; ok = sys.platform == "linux" and (3, 11) <= sys.version_info[:2] < (3, 14); \
	sys.exit(None if ok else f"fitserve needs Linux and Python 3.11 to 3.13; {sys.executable} is Python {sys.version.split()[0]} on {sys.platform}")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes $(foreach lock,$(LOCKS),-r $(lock))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-test: $(STAMP) requirements/test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/test.txt
	@touch $@

serve: setup  ## Run a service on http://127.0.0.1:8000 until you stop it
	exec $(BIN)/fitserve serve

demo: setup  ## Show it all: upload, train, evaluate and predict, on a service of its own
	$(BIN)/python -m app.cli.demo

##@ Change

test-quick: $(VENV)/.installed-test  ## Run the tests that need no service and no training, in under a minute
	$(BIN)/python -m pytest -p tests.quick --timeout=10 -rfE $(ARGS)

test: $(VENV)/.installed-test  ## Check style and types, then run every test; ARGS='tests/cli -x' picks some
	$(MAKE) --no-print-directory lint
	@# a hundred services start: each library that they import is compiled once, whatever the shell says
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-test  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test  ## Let the linter and the formatter rewrite what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-test  ## Measure and write bench/results/; ONLY=service, training or serving: one part; PEERS=all: other servers too
	for part in $(or $(ONLY),service training serving); do PEERS="$(PEERS)" $(BIN)/python -m bench.$$part || exit 1; done

##@ Long tests

test-routes: $(VENV)/.installed-test  ## Test the API without the fast path: no answer may change
	TEST_FAST_PATH=false $(BIN)/python -m pytest tests/api tests/http tests/server $(ARGS)

test-backends: $(VENV)/.installed-test  ## Train under TensorFlow, JAX and PyTorch, each in an environment of its own
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest $(BACKEND_TESTS) $(ARGS)
	$(MAKE) --no-print-directory VENV=.venv-jax EXTRA=jax test-backend
	$(MAKE) --no-print-directory VENV=.venv-torch EXTRA=torch test-backend

test-backend: $(VENV)/.installed-test
	KERAS_BACKEND=$(EXTRA) $(BIN)/python -m pytest $(BACKEND_TESTS) $(ARGS)

clients: $(CLIENTS:%=.venv-%/.installed)  ## Make environments for clients that pin other versions of our libraries

test-clients: $(VENV)/.installed-test clients  ## Send requests with those clients
	$(BIN)/python -m pytest tests/clients $(ARGS)

.venv-%/.installed: requirements/%.txt | $(STAMP)
	@test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

test-crash: $(VENV)/.installed-test  ## Kill the service at random moments; CYCLES=200 times
	CRASH_CYCLES=$(or $(CYCLES),200) $(BIN)/python -m pytest -s tests/scenarios/test_acceptance.py $(ARGS)

test-power: $(VENV)/.installed-test  ## Cut the power at random moments under load; CYCLES=50 times; needs root
	POWER_CYCLES=$(or $(CYCLES),50) $(BIN)/python -m pytest -s tests/scenarios/test_power.py $(ARGS)

test-fuzz: $(VENV)/.installed-test  ## Send generated requests to each operation, in four ways; EXAMPLES=300 of each
	FUZZ_EXAMPLES=$(or $(EXAMPLES),300) $(BIN)/python -m pytest --timeout=0 tests/api/test_schemathesis.py $(ARGS)

test-resume: $(VENV)/.installed-test  ## Kill training processes in each loop, and compare the weights; CYCLES=50 times
	RESUME_CYCLES=$(or $(CYCLES),50) $(BIN)/python -m pytest -s --timeout=0 tests/scenarios/test_interruptions.py $(ARGS)

test-large: $(VENV)/.installed-test  ## Train on a CSV of BYTES=5368709120 with memory for a fifth of it, and show the memory used
	LARGE_BYTES=$(or $(BYTES),5368709120) $(BIN)/python -m pytest -s --timeout=0 tests/scenarios/test_larger_than_memory.py $(ARGS)

test-swaps: $(VENV)/.installed-test  ## Promote versions while clients predict; TIMES=1000
	SWAPS=$(or $(TIMES),1000) $(BIN)/python -m pytest --timeout=0 tests/scenarios/test_swaps.py $(ARGS)

##@ Maintain

lock:  ## Resolve the files of requirements/ again; needs uv
	$(UV_COMPILE) -o requirements/serve.txt
	$(UV_COMPILE) --group test --constraint requirements/serve.txt -o requirements/test.txt
	for client in $(CLIENTS); do $(UV) --group $$client -o requirements/$$client.txt || exit 1; done
	for extra in gpu jax torch; do $(UV_COMPILE) --extra $$extra -o requirements/$$extra.txt || exit 1; done

clean:  ## Remove environments and caches, and leave the data in models/
	rm -rf $(VENV) .venv-jax .venv-torch .peers $(CLIENTS:%=.venv-%) .mypy_cache .ruff_cache .hypothesis
