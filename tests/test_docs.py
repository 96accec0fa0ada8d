"""The documentation is true: its blocks run, its tables are the code's, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app import __version__
from app.settings import Settings
from tests.service import ROOT, Service

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "models/README.md", ROOT / "examples/README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
DECISIONS = sorted((ROOT / "docs/decisions").glob("0*.md"))
TEXT = "\n".join(page.read_text() for page in PAGES)
URL = "http://127.0.0.1:8000"
#: with this environment's `python` and `fitserve` first
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
BLOCK_SECONDS = 240


def blocks(language: str) -> list[str]:
    """Give the README's blocks of a language; `console` ones are to be read, and not run."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(command: list[str], service: Service) -> str:
    """Run a block as a reader would, in the repository, against the service; gives what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FITSERVE_")}
    environment["PATH"] = PATH
    command = [part.replace(URL, service.url) for part in command]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=BLOCK_SECONDS, check=False
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.stdout


def test_the_commands_of_the_readme_upload_train_evaluate_and_predict(service: Service) -> None:
    missing = [name for name in ("curl", "fitserve") if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")

    said = run(["bash", "-euo", "pipefail", "-c", "\n".join(blocks("sh"))], service)

    assert "event: epoch" in said
    assert '"confusion_matrix":' in said
    assert '"predictions":["Gentoo"]' in said
    assert "penguin-species@2 on 344 rows" in said
    assert "prediction,probability_Adelie,probability_Chinstrap,probability_Gentoo" in said
    assert '{"predictions":[[' in said
    assert '{"model_name":"penguin-species","model_version":"2"' in said


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_of_the_readme_runs(service: Service, block: str) -> None:
    said = run([sys.executable, "-W", "error", "-c", block], service)

    assert "'status': 'succeeded'" in said
    assert "'code': 'imputed'" in said


def test_the_readme_has_every_setting_with_its_default_and_its_meaning() -> None:
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "") else f"`{field.default}`"
        rows.append(f"| `FITSERVE_{name.upper()}` | {default} | {field.description} |")

    assert "\n".join(["| variable | default | |", "| --- | --- | --- |", *rows, ""]) in README


def test_the_documentation_names_no_variable_that_is_not_read() -> None:
    named = set(re.findall(r"FITSERVE_[A-Z_]*[A-Z]", TEXT))

    assert named - {f"FITSERVE_{name.upper()}" for name in Settings.model_fields} == {"FITSERVE_URL"}


def test_every_route_is_documented(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}

    pages = (ROOT / "docs/api.md").read_text() + (ROOT / "docs/protocols.md").read_text()
    listed = set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", pages, re.MULTILINE))

    assert listed == routes


def test_the_metrics_that_the_readme_names_are_given(http: httpx.Client) -> None:
    named = set(re.findall(r"`((?:http|fitserve)_[a-z_]+)`", README))

    given = set(re.findall(r"^# TYPE (\S+) ", http.get("/metrics").text, re.MULTILINE))

    assert len(named) == 8
    assert named - given == set()


def test_every_module_is_in_the_layout_and_every_file_there_exists() -> None:
    layout = README.partition("## The code")[2].partition("## Development")[0]
    listed = {Path(name).name for name in re.findall(r"`(?:app/)?([a-z_]+\.py|[a-z_]+/)`", layout)}
    modules = {path.name for path in (ROOT / "app").iterdir() if not path.name.startswith("__")}

    assert listed == modules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    relative = [target.partition("#")[0] for target in targets if "://" not in target]

    assert [target for target in relative if not (page.parent / target).exists()] == []


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert versions[0] == __version__


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_has_its_four_parts_and_is_linked(page: Path) -> None:
    parts = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)

    assert parts == ["Context", "Decision", "Consequences", "Alternatives"]
    assert page.name in README
    assert page.name in (ROOT / "docs/decisions/README.md").read_text()


def test_the_targets_that_the_readme_names_are_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(blocks("console")) + README))

    assert {name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)} == set()
