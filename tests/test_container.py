"""The files of the container: what is built, which user it runs as, and how it is confined. Needs no container engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml  # type: ignore[import-untyped]

from app.settings import Settings
from tests.service import ROOT, Service

SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD")
Instruction = tuple[str, str]


def read_dockerfile() -> list[Instruction]:
    """Return the Dockerfile's instructions and their arguments, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def arguments(name: str) -> list[str]:
    return [rest for instruction, rest in INSTRUCTIONS if instruction == name]


def final_stage() -> list[Instruction]:
    start = max(i for i, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM")
    return INSTRUCTIONS[start:]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in arguments("ENV") for pair in rest.split())


def is_in_context(path: str) -> bool:
    """Return whether .dockerignore leaves a file in the build's context: the last pattern that matches decides."""
    parents = [path, *(str(parent) for parent in Path(path).parents)]
    is_in = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        regex = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if (
            line
            and not line.startswith("#")
            and any(re.fullmatch(regex, parent) for parent in parents if parent != ".")
        ):
            is_in = line.startswith("!")
    return is_in


INSTRUCTIONS = read_dockerfile()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
#: the files and folders that the build copies out of its context
SOURCES = [
    source.rstrip("/") for rest in arguments("COPY") if not rest.startswith("--from") for source in rest.split()[:-1]
]


def test_every_stage_is_built_on_the_same_base() -> None:
    bases = {rest.split()[0] for rest in arguments("FROM")}

    assert bases == {"${BASE}"}


def test_commands_are_in_exec_form() -> None:
    health = arguments("HEALTHCHECK")[0].partition("CMD ")[2]

    assert [json.loads(command) for command in arguments("CMD")] == [["fitserve", "serve"]]
    assert json.loads(health)[:2] == ["python", "-c"]
    assert arguments("ENTRYPOINT") == []


def test_nothing_of_the_service_runs_as_root() -> None:
    names = [name for name, _ in final_stage()]

    assert arguments("USER") == ["10001:10001"]
    assert "RUN" not in names[names.index("USER") :]
    assert "--mode=0700 --owner=10001 --group=10001 /data" in " ".join(rest for name, rest in final_stage())


def test_every_installed_package_has_a_known_hash() -> None:
    installs = [part for rest in arguments("RUN") for part in rest.split("&&") if "pip install" in part]

    assert len(installs) == 2
    assert all("--require-hashes" in command or "--no-index --no-deps" in command for command in installs)


@pytest.mark.parametrize("extra", ["gpu", "jax", "torch"])
def test_the_lock_of_an_extra_has_everything_that_serving_needs(extra: str) -> None:
    serve, with_extra = (
        {line.split("==")[0] for line in (ROOT / f"requirements/{name}.txt").read_text().splitlines() if "==" in line}
        for name in ("serve", extra)
    )

    assert serve < with_extra


def test_every_source_that_is_copied_exists() -> None:
    assert [source for source in SOURCES if not (ROOT / source).exists()] == []


def test_the_context_has_exactly_what_the_build_copies() -> None:
    top = [path for path in ROOT.iterdir() if path.name not in (".git", ".venv")]
    files = {str(path.relative_to(ROOT)) for entry in top for path in (entry, *entry.rglob("*")) if path.is_file()}

    copied = {
        file
        for file in files
        if any(file == source or file.startswith(f"{source}/") for source in SOURCES) and "__pycache__" not in file
    }

    assert {file for file in files if is_in_context(file)} == copied
    assert not is_in_context("app/api/__pycache__/app.cpython-312.pyc")


def test_the_image_holds_no_secret() -> None:
    named = [*environment(), *(rest.split("=")[0] for rest in arguments("ARG"))]

    assert [name for name in named if SECRET.search(name)] == []


@pytest.mark.parametrize("file", ["Dockerfile", "docker-compose.yml", "docs/container.md"])
def test_every_variable_is_a_setting(file: str) -> None:
    named = set(re.findall(r"FITSERVE_([A-Z_]+)", (ROOT / file).read_text()))

    assert named - {name.upper() for name in Settings.model_fields} == set()


def test_the_image_listens_on_every_address_and_so_needs_a_key() -> None:
    variables = {name.removeprefix("FITSERVE_").lower(): value for name, value in environment().items()}
    settings = Settings(**{name: value for name, value in variables.items() if name in Settings.model_fields})  # type: ignore[arg-type]

    assert (settings.host, settings.port, str(settings.data_dir)) == ("0.0.0.0", 8000, "/data")
    assert settings.needs_key
    assert arguments("VOLUME") == ["/data"]
    assert environment()["PYTHONSAFEPATH"] == "1"


def test_the_health_check_succeeds_for_a_ready_service_alone(service: Service) -> None:
    command = json.loads(arguments("HEALTHCHECK")[0].partition("CMD ")[2])

    def check(port: int | None) -> int:
        return subprocess.run(
            [sys.executable, *command[1:]], env={"FITSERVE_PORT": str(port)}, capture_output=True, timeout=30
        ).returncode

    assert check(urlsplit(service.url).port) == 0
    assert check(1) != 0


@pytest.mark.parametrize("name", list(SERVICES))
def test_compose_confines_its_services(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["pids_limit"] > 0
    assert service["mem_limit"] == "${MEMORY:-4g}"
    assert [entry.partition(":")[0] for entry in service["tmpfs"]] == ["/tmp"]
    assert service["volumes"] == ["data:/data"]
    assert "data" in COMPOSE["volumes"]


@pytest.mark.parametrize("name", list(SERVICES))
def test_compose_publishes_on_loopback_by_default(name: str) -> None:
    assert SERVICES[name]["ports"] == ["${PUBLISH:-127.0.0.1:8000}:8000"]


@pytest.mark.parametrize("name", list(SERVICES))
def test_compose_takes_the_key_from_outside_and_holds_none(name: str) -> None:
    variables = SERVICES[name]["environment"]

    assert {"FITSERVE_API_KEY", "FITSERVE_API_KEY_FILE"} <= set(variables)
    assert {key for key, value in variables.items() if value is not None} == {"ORT_DISABLE_TELEMETRY"}


@pytest.mark.parametrize("variables", [environment(), *(service["environment"] for service in SERVICES.values())])
def test_onnx_runtime_sends_no_reports_from_a_container(variables: dict[str, str]) -> None:
    assert variables["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize("name", list(SERVICES))
def test_compose_waits_longer_than_a_stop_may_take(name: str) -> None:
    assert SERVICES[name]["stop_grace_period"] == "30s"


def test_compose_gives_the_gpu_to_its_profile_alone() -> None:
    devices = SERVICES["gpu"]["deploy"]["resources"]["reservations"]["devices"]

    assert {name: service.get("profiles") for name, service in SERVICES.items()} == {"fitserve": None, "gpu": ["gpu"]}
    assert SERVICES["gpu"]["build"]["args"] == {"EXTRA": "gpu"}
    assert [device["driver"] for device in devices] == ["nvidia"]
    assert "gpu" in devices[0]["capabilities"]
