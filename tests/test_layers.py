"""Imports go one way: this table says which, and each heavy library has one address."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.service import ROOT

#: what each module, or each of the packages learning, storage and api, may import of the others
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "lifeline": set(),
    "logs": set(),
    "machine": set(),
    "statistics": set(),
    "config": set(),
    # the public API is their only door
    "client": set(),
    "terminal": {"client"},
    "commands": {"client", "terminal"},
    "demo": {"client", "terminal"},
    "learning": {"errors"},
    "storage": {"errors"},
    "engine": set(),
    # a room for each noun
    "datasets": {"errors", "storage"},
    "jobs": {"engine", "errors", "storage"},
    "registry": {"errors", "learning", "storage"},
    "keys": {"errors", "storage"},
    "workers": {"storage"},
    "checkpoints": {"storage"},
    "watch": {"errors", "jobs"},
    "inference": {"errors", "learning", "registry"},
    "model_cache": {"errors", "inference", "learning", "machine", "registry"},
    # what goes on beside the work
    "admission": {"errors"},
    "intake": {"datasets", "errors", "ingest", "storage"},
    "retention": {"config", "training"},
    "backup": {"engine", "errors", "jobs", "learning", "lifeline", "storage"},
    "training": {"checkpoints", "datasets", "errors", "jobs", "learning", "registry", "storage", "workers"},
    # children, and their parents' sides; no child knows the database
    "ingest": {"datasets", "errors", "lifeline", "machine"},
    "ingest_child": {"errors", "learning", "lifeline"},
    "export": {"errors", "learning", "lifeline", "registry"},
    "export_child": {"errors", "learning", "lifeline"},
    "trainer": {"errors", "learning", "lifeline"},
    "child": {"lifeline"},
    "relay": {"errors", "jobs", "training"},
    "worker": {"child", "engine", "errors", "jobs", "machine", "registry", "relay", "training"},
    "wiring": {
        *(
            "admission",
            "checkpoints",
            "config",
            "datasets",
            "engine",
            "errors",
            "ingest",
            "intake",
            "jobs",
        ),
        *("keys", "learning", "machine", "model_cache", "registry", "statistics", "storage"),
        *("totals", "training", "watch", "workers"),
    },
    "api": {
        "admission",
        "datasets",
        "errors",
        "export",
        "inference",
        "jobs",
        "keys",
        "learning",
        "model_cache",
        "registry",
        "statistics",
        "storage",
        "training",
        "wiring",
    },
    "supervised": set(),
    "totals": set(),
    "exchange": {"api", "errors"},
    "door": set(),
    "connections": {"admission", "api", "errors", "exchange"},
    "upkeep": {"config", "errors", "supervised", "retention", "wiring"},
    "serve": {
        *(
            "api",
            "config",
            "connections",
            "door",
            "errors",
            "supervised",
            "lifeline",
            "logs",
            "machine",
            "storage",
            "totals",
            "upkeep",
            "wiring",
        ),
    },
    "cli": {"backup", "commands", "config", "errors", "lifeline", "logs", "serve", "storage", "wiring", "worker"},
    "__main__": {"cli"},
}
ROOMS = ("datasets", "jobs", "registry", "keys", "workers")
#: the only modules, or packages, that import each library
ADDRESSES: dict[str, tuple[str, ...]] = {
    "keras": ("learning.fit", "learning.keeper", "learning.keras_network", "learning.loop", "learning.watch"),
    "tensorflow": ("learning.keras_network", "learning.loop"),
    "fastapi": ("api",),
    "starlette": ("api",),
    "uvicorn": ("serve", "connections", "exchange"),
    "polars": ("learning.columns", "learning.formats", "learning.frames"),
    "onnxruntime": ("learning.network",),
    "onnx": ("learning.network",),
    # a backup is of the database itself
    "sqlalchemy": (*ROOMS, "engine", "storage", "backup"),
    "alembic": ("storage.migrate", "storage.migrations"),
    "obstore": ("storage.blobs",),
    "simdjson": ("learning.matrices",),
    "dbos": ("engine", "worker", "storage.migrate"),
    "httpx": ("client",),
    "typer": ("cli", "commands"),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "app").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted((ROOT / "app").rglob("*.py")) if path != ROOT / "app/__init__.py"}


def imports(path: Path) -> set[str]:
    """Give the full names that a module imports anywhere in it; `from a import b` gives `a` and `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own_imports(module: str) -> set[str]:
    """Give the modules of the application that a module imports."""
    named = {name.removeprefix("app.") for name in imports(MODULES[module]) if name.startswith("app.")}
    return {name for name in named if name in MODULES and MODULES[name].name != "__init__.py"}


def is_at(name: str, addresses: tuple[str, ...]) -> bool:
    return any(name == address or name.startswith(f"{address}.") for address in addresses)


@pytest.mark.parametrize("module", list(MODULES))
def test_a_module_imports_only_what_the_table_allows(module: str) -> None:
    unit = module.partition(".")[0]

    others = {name.partition(".")[0] for name in own_imports(module)} - {unit}

    assert others <= MAY_IMPORT[unit]


def test_the_table_names_every_module_and_no_other() -> None:
    assert {module.partition(".")[0] for module in MODULES} == set(MAY_IMPORT)


def test_the_table_has_no_cycle() -> None:
    assert len(MAY_IMPORT) == len(list(TopologicalSorter(MAY_IMPORT).static_order()))


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: own_imports(module) for module in MODULES}

    assert len(graph) == len(list(TopologicalSorter(graph).static_order()))


@pytest.mark.parametrize("library", list(ADDRESSES))
def test_a_library_has_one_address(library: str) -> None:
    users = {module for module, path in MODULES.items() if any(is_at(name, (library,)) for name in imports(path))}

    assert users, f"nobody imports {library}"
    assert set() == {module for module in users if not is_at(module, ADDRESSES[library])}


def test_learning_knows_neither_sql_nor_http() -> None:
    strangers = {
        "sqlalchemy",
        "alembic",
        "dbos",
        "sqlite3",
        "psycopg",
        "fastapi",
        "starlette",
        "httpx",
        "http",
        "urllib",
    }

    found = {
        (module, name)
        for module, path in MODULES.items()
        if module.startswith("learning")
        for name in imports(path)
        if name.partition(".")[0] in strangers
    }

    assert set() == found


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("app.serve", "tensorflow keras polars alembic onnx"),
        ("app.worker", "tensorflow keras polars fastapi uvicorn"),
        ("app.ingest_child", "tensorflow keras sqlalchemy dbos fastapi onnxruntime"),
        ("app.client", "fastapi sqlalchemy dbos numpy pydantic"),
        ("app.cli", "fastapi sqlalchemy dbos numpy httpx onnxruntime"),
    ],
)
def test_importing_a_process_leaves_heavy_libraries_out(module: str, absent: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({absent.split()!r}) & set(sys.modules)))"

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )

    assert "" == done.stdout.strip()
