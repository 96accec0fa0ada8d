"""The `fitserve` command. Imports what a command needs when that command runs, so that each starts quickly."""

from __future__ import annotations

import gc
import inspect
import os
import platform
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

if not (sys.platform == "linux" and (3, 11) <= sys.version_info[:2] < (3, 14)):
    sys.exit(
        f"fitserve needs Linux and Python 3.11 to 3.13; this is {platform.system()} and Python {platform.python_version()}"
    )

# one thread for NumPy, before it is imported: with two, a prediction's 99th percentile was 200 times longer
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import typer
from pydantic import ValidationError

from app import __version__
from app.cli import remote
from app.settings import Settings

app = typer.Typer(name="fitserve", help="Post a table, get a trained and served classifier.", no_args_is_help=True)
remote.register(app)


def _with_settings(command: Callable[..., None], **own: inspect.Parameter) -> Callable[..., None]:
    """Give a command a flag for every setting; a flag becomes the variable, so that children see it too."""

    def run(**given: Any) -> None:
        rest = {name: given.pop(name) for name in own}
        for name, value in given.items():
            if value is not None:
                os.environ[f"FITSERVE_{name.upper()}"] = str(value)
        try:
            settings = Settings()
            settings.configured_key()
        except ValidationError as error:
            for each in error.errors():
                name = str(each["loc"][0]) if each["loc"] else ""
                typer.echo(f"fitserve: FITSERVE_{name.upper()} / --{name.replace('_', '-')}: {each['msg']}", err=True)
            raise typer.Exit(2) from None
        except (OSError, ValueError) as error:
            typer.echo(f"fitserve: {error}", err=True)
            raise typer.Exit(2) from None
        command(settings, **rest)

    parameters = dict(own)
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        default = "" if field.default in (None, "") else f" (default {field.default})"
        option = typer.Option(flag, help=f"{field.description}{default}", show_default=False)
        kind: Any = Annotated[str | None, option]
        if field.annotation is bool:
            kind = Annotated[bool | None, option]
        parameters[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    run.__doc__ = command.__doc__
    return run


def _serve(settings: Settings) -> None:
    """Serve the API, and train in a worker beside it."""
    # what a start makes stays: to look for garbage in it took 0.3 s of 1.7, until `serve` has all
    gc.disable()
    from app.logs import configure
    from app.server.main import serve

    configure(settings.log_level)
    try:
        serve(settings)
    except OSError as error:
        typer.echo(f"fitserve: {error}", err=True)
        raise typer.Exit(1) from None


def _work(settings: Settings, parent: int | None) -> None:
    """Train jobs from the queue, without an API."""
    from app.logs import configure
    from app.system.child_process import die_with_parent
    from app.system.file_lock import hold

    if parent is not None:
        die_with_parent(parent)
    configure(settings.log_level)
    from app.jobs.worker import Worker, WorkerSettings
    from app.wiring import encoded_bytes, open_rooms

    _make_data_dir(settings)
    # two workers of one name would redo each other's jobs
    hold(settings.data_dir / f"{settings.worker_name}.lock", f"a worker named {settings.worker_name!r} (--worker-name)")
    if parent is None:
        _migrate(settings)
    rooms, engine = open_rooms(settings)
    try:
        slots = max(settings.workers, 1)
        cache = settings.data_dir.absolute() / "cache"
        means = WorkerSettings(slots, encoded_bytes(settings), settings.checkpoint_seconds, cache)
        Worker(rooms, settings.worker_name, means).run()
    finally:
        engine.close()
        rooms.database.close()


def _migrate(settings: Settings) -> None:
    """Create or upgrade the database's tables."""
    from app.errors import Unavailable
    from app.storage.migrate import migrate

    _make_data_dir(settings)
    try:
        migrate(settings.resolved_database_url)
    except Unavailable as error:
        typer.echo(f"fitserve: {error}", err=True)
        raise typer.Exit(1) from None


def _make_data_dir(settings: Settings) -> None:
    from app.wiring import make_data_dir

    try:
        make_data_dir(settings.data_dir)
    except OSError as error:
        typer.echo(f"fitserve: {error}", err=True)
        raise typer.Exit(1) from None


def _backup(settings: Settings, file: Path) -> None:
    """Write everything that a service knows into one new file, while it runs or not."""
    from app.records.backup import backup, database_file_of

    with _told():
        counts = backup(database_file_of(settings.resolved_database_url), settings.resolved_store, file)
    typer.echo(f"{file}: {counts['datasets']} data sets, {counts['versions']} versions, {counts['bytes']} bytes")


def _restore(settings: Settings, file: Path) -> None:
    """Put a backup into a data directory that holds no data yet."""
    from app.records.backup import database_file_of, restore

    with _told():
        counts = restore(file, database_file_of(settings.resolved_database_url), settings.resolved_store)
    typer.echo(f"{settings.data_dir}: {counts['datasets']} data sets, {counts['versions']} versions")


@contextmanager
def _told() -> Iterator[None]:
    """Say what went wrong in one line."""
    from app.errors import FitserveError

    try:
        yield
    except (FitserveError, OSError, sqlite3.Error) as error:
        typer.echo(f"fitserve: {error}", err=True)
        raise typer.Exit(1) from None


_FILE = inspect.Parameter(
    "file",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[Path, typer.Argument(metavar="FILE", help="The backup.", show_default=False)],
)
_PARENT = inspect.Parameter(
    "parent",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[int | None, typer.Option(hidden=True, help="Die with this process.")],
)
app.command("serve")(_with_settings(_serve))
app.command("work")(_with_settings(_work, parent=_PARENT))
app.command("backup")(_with_settings(_backup, file=_FILE))
app.command("restore")(_with_settings(_restore, file=_FILE))
app.command("migrate")(_with_settings(_migrate))


@app.command("version")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Run the command line."""
    app()
