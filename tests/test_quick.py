"""The quick run leaves out what it should, and runs the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.service import ROOT

TESTS = """
import subprocess
import pytest
from hypothesis import given, strategies as st

@pytest.fixture
def service():
    raise AssertionError("a quick run does not start a service")

@pytest.fixture
def client(service):
    return service

def test_plain(tmp_path): pass
def test_with_a_client(client): pass
@given(st.none())
def test_of_a_property(value): pass
def test_with_a_property_inside():
    @given(st.none())
    def check(value): pass
    check()
@pytest.mark.slow
def test_marked(): pass
def test_with_a_process(): subprocess.run(["true"])
def test_with_keras(): import keras
"""


def test_a_quick_run_leaves_out_services_processes_keras_and_properties(tmp_path: Path) -> None:
    (tmp_path / "test_cases.py").write_text(TESTS)
    (tmp_path / "test_module_with_keras.py").write_text("import keras\ndef test_never_run(): assert False\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.quick", "-c", f"{ROOT}/pyproject.toml", "-v", f"{tmp_path}"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "1 passed, 3 skipped, 4 deselected" in done.stdout
    assert "test_plain PASSED" in done.stdout
