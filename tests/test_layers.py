"""Imports go one way: this table says which, and each heavy library has one address."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.service import ROOT

#: what the modules of each room may import of other rooms; `errors` and `settings` are rooms of one module
MAY_IMPORT: dict[str, set[str]] = {
    "__main__": {"cli"},
    "cli": {"client", "errors", "jobs", "logs", "records", "server", "settings", "storage", "system", "wiring"},
    "server": {
        *("api", "errors", "fast_path", "http", "logs", "metrics", "records", "serving", "settings", "storage"),
        *("system", "wiring"),
    },
    "fast_path": {"errors", "http", "learning", "metrics", "names", "records", "serving", "wiring"},
    "api": {"errors", "http", "jobs", "learning", "metrics", "names", "records", "serving", "storage", "wiring"},
    "http": {"errors", "learning", "records", "serving"},
    "wiring": {
        *("errors", "ingest", "jobs", "learning", "metrics", "records", "serving", "settings", "storage"),
        "system",
    },
    # these rooms start child processes, which know no database: see below
    "serving": {"errors", "learning", "records", "system"},
    "jobs": {"errors", "learning", "records", "storage", "system"},
    "ingest": {"errors", "learning", "records", "storage", "system"},
    "records": {"errors", "learning", "names", "storage", "system"},
    "storage": {"errors"},
    "learning": {"errors", "names"},
    # leaves
    "client": set(),
    "errors": set(),
    "logs": set(),
    "metrics": set(),
    "names": set(),
    "settings": {"names"},
    "system": set(),
}
#: the rooms inside `learning`, likewise
INSIDE_LEARNING: dict[str, set[str]] = {
    "training": {"artifact", "encoding", "evaluation", "network", "spec", "tables"},
    "artifact": {"encoding", "network", "tables"},
    "requests": {"tables"},
    "encoding": {"tables"},
    "network": {"spec"},
    "tables": set(),
    "spec": set(),
    "evaluation": set(),
}
_ROUTES = {
    *("datasets", "models", "training", "jobs", "predictions", "evaluations", "keys", "operations", "docs"),
    "protocols",
}
_OF_SEVERAL_ROUTES = {"uploads", "run_prediction", "event_stream", "version_openapi"}
_OF_ALL_ROUTES = {"deps", "auth", "openapi", "error_handlers", "spool", "multipart", "request_body"}
#: the rooms inside `api`, likewise; no module of routes imports another one
INSIDE_API: dict[str, set[str]] = {
    "app": _ROUTES | {"auth", "error_handlers", "gauges", "openapi"},
    **dict.fromkeys(_ROUTES, _OF_SEVERAL_ROUTES | _OF_ALL_ROUTES | {"schemas", "examples"}),
    "uploads": {"request_body", "spool"},
    "run_prediction": {"request_body"},
    "event_stream": {"deps"},
    "version_openapi": set(),
    "gauges": set(),
    "openapi": {"auth", "schemas", "examples"},
    "auth": {"deps"},
    "deps": {"error_handlers", "request_body"},
    "error_handlers": set(),
    "spool": {"multipart", "request_body"},
    "multipart": set(),
    "request_body": {"content_encoding"},
    "content_encoding": set(),
    "schemas": {"examples"},
    "examples": set(),
}
INSIDE = {"learning": INSIDE_LEARNING, "api": INSIDE_API}
#: modules of `learning.training` that import Keras
TRAINING_WITH_KERAS = (
    *("fit", "optimizer", "loop", "compiled_steps", "window_tensors", "keras_fit"),
    *("progress_callback", "checkpoint_callback"),
)
#: the only modules, or rooms, that import each library
ADDRESSES: dict[str, tuple[str, ...]] = {
    "keras": (
        *(f"learning.network.{name}" for name in ("keras_network", "keras_export", "keras_backend")),
        *(f"learning.training.{name}" for name in TRAINING_WITH_KERAS),
    ),
    "tensorflow": (
        "learning.network.keras_backend",
        "learning.network.keras_export",
        *(f"learning.training.{name}" for name in ("loop", "compiled_steps", "window_tensors")),
    ),
    "fastapi": ("api",),
    "starlette": ("api", "http"),
    "uvicorn": ("server", "fast_path"),
    "polars": ("learning.tables",),
    "onnxruntime": ("learning.network.onnx_network",),
    "onnx": ("learning.network.onnx_network",),
    "sqlalchemy": ("records", "storage"),
    "sqlite3": ("cli.main", "records.backup", "records.restore", "storage.database"),
    "alembic": ("storage.migrate", "storage.migrations"),
    "obstore": ("storage.blobs",),
    "simdjson": ("fast_path.parse",),
    "dbos": ("storage.job_engine",),
    "httpx": ("client",),
    "typer": ("cli",),
}
CLIENT = ROOT / "app" / "client"
CLIENT_MODULES = {path.stem for path in CLIENT.glob("*.py")}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "app").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted((ROOT / "app").rglob("*.py")) if path != ROOT / "app/__init__.py"}


@cache
def imports(path: Path) -> set[str]:
    """Give the full names that a module imports anywhere in it; `from a import b` gives `a` and `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # a copy of the client's folder works alone, under any name: its modules import each other relatively
            is_relative = path.parent == CLIENT and node.module in CLIENT_MODULES
            assert node.level == int(is_relative), f"{path}: relative import"
            module = f"app.client.{node.module}" if node.level else str(node.module)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def own_imports(module: str) -> set[str]:
    """Return the modules of the application that a module imports; the client's package stands for its modules."""
    named = {name.removeprefix("app.") for name in imports(MODULES[module]) if name.startswith("app.")}
    return {name for name in named if name in MODULES and (name == "client" or MODULES[name].name != "__init__.py")}


def is_at(name: str, addresses: tuple[str, ...]) -> bool:
    return any(name == address or name.startswith(f"{address}.") for address in addresses)


def rooms_of(modules: Iterable[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def inner_rooms(outer: str, modules: Iterable[str]) -> set[str]:
    return rooms_of(name.removeprefix(f"{outer}.") for name in modules if name.startswith(f"{outer}."))


@pytest.mark.parametrize("module", list(MODULES))
def test_a_module_imports_only_rooms_that_the_table_allows(module: str) -> None:
    room = module.partition(".")[0]

    assert rooms_of(own_imports(module)) - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(tuple(f"{room}." for room in INSIDE))])
def test_a_module_imports_only_inner_rooms_that_the_table_allows(module: str) -> None:
    outer, room, *_ = module.split(".")

    assert inner_rooms(outer, own_imports(module)) - {room} <= INSIDE[outer][room]


def test_the_tables_name_every_room_and_no_other() -> None:
    assert rooms_of(MODULES) == set(MAY_IMPORT)
    for outer, inside in INSIDE.items():
        assert inner_rooms(outer, MODULES) == set(inside)


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: own_imports(module) for module in MODULES}

    assert len(graph) == len(list(TopologicalSorter(graph).static_order()))


@pytest.mark.parametrize("library", list(ADDRESSES))
def test_a_library_has_one_address(library: str) -> None:
    users = {module for module, path in MODULES.items() if any(is_at(name, (library,)) for name in imports(path))}

    assert users, f"nobody imports {library}"
    assert set() == {module for module in users if not is_at(module, ADDRESSES[library])}


@pytest.mark.parametrize("child", ["jobs.training_child", "ingest.parser_child", "serving.export_child"])
def test_no_child_process_knows_the_database(child: str) -> None:
    reached, ahead = set(), {child}
    while ahead:
        reached |= ahead
        ahead = {module for name in ahead for module in own_imports(name)} - reached

    assert set() == rooms_of(reached) & {"records", "storage"}


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
        ("app.server.main", "tensorflow keras polars alembic onnx onnxruntime dbos psycopg"),
        ("app.jobs.worker", "tensorflow keras polars fastapi uvicorn"),
        ("app.ingest.parser_child", "tensorflow keras sqlalchemy dbos fastapi onnxruntime"),
        ("app.client", "fastapi sqlalchemy dbos numpy pydantic"),
        ("app.cli.main", "fastapi sqlalchemy dbos numpy httpx onnxruntime"),
    ],
)
def test_importing_a_process_leaves_heavy_libraries_out(module: str, absent: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({absent.split()!r}) & set(sys.modules)))"

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )

    assert "" == done.stdout.strip()
