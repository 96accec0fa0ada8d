"""The `fitserve` command. Imports what a command needs when that command runs, so that each starts quickly."""

from __future__ import annotations

import gc
import os
import platform
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

if not (sys.platform == "linux" and (3, 11) <= sys.version_info[:2] < (3, 14)):
    sys.exit(
        f"fitserve needs Linux and Python 3.11 to 3.13; this is {platform.system()} and Python {platform.python_version()}"
    )

# set before NumPy is imported: with two threads of NumPy, a prediction's 99th percentile was 200 times longer
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import typer

from app import __version__
from app.cli import remote
from app.cli.settings_flags import with_settings
from app.errors import FitserveError, Unavailable
from app.settings import Settings

app = typer.Typer(name="fitserve", help="Post a table, get a trained and served classifier.", no_args_is_help=True)
for command in (remote.train, remote.evaluate, remote.predict):
    app.command()(command)

BackupFile = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.", show_default=False)]
Parent = Annotated[int | None, typer.Option(hidden=True, help="Die with this process.")]


@app.command()
@with_settings
def serve(settings: Settings) -> None:
    """Serve the API, and train in a worker beside it."""
    # objects of the start-up stay alive: looking for garbage among them took 0.3 s of 1.7; the server enables it again
    gc.disable()
    from app.logs import configure
    from app.server import start

    configure(settings.log_level)
    with _exit_on(OSError):
        start.serve(settings)


@app.command()
@with_settings
def work(settings: Settings, parent: Parent = None) -> None:
    """Train jobs from the queue, without an API."""
    from app.logs import configure
    from app.system.child_process import die_with_parent
    from app.system.file_lock import hold

    if parent is not None:
        die_with_parent(parent)
    configure(settings.log_level)
    from app.jobs.worker import Worker
    from app.jobs.worker_settings import WorkerSettings
    from app.wiring import encoded_bytes, open_rooms

    _make_data_dir(settings)
    # two workers of one name would redo each other's jobs
    hold(settings.data_dir / f"{settings.worker_name}.lock", f"a worker named {settings.worker_name!r} (--worker-name)")
    if parent is None:
        _migrate(settings)
    rooms = open_rooms(settings)
    try:
        slots = max(settings.workers, 1)
        cache = settings.data_dir.absolute() / "cache"
        worker_settings = WorkerSettings(slots, encoded_bytes(settings), settings.checkpoint_seconds, cache)
        Worker(rooms, settings.worker_name, worker_settings).run()
    finally:
        rooms.close()


@app.command()
@with_settings
def backup(settings: Settings, file: BackupFile) -> None:
    """Write everything that a service holds into one new file, while it runs or not."""
    from app.records import backup

    with _exit_on(FitserveError, OSError, sqlite3.Error):
        database = backup.database_file_of(settings.resolved_database_url)
        counts = backup.backup(database, settings.resolved_store, file)
    typer.echo(f"{file}: {counts['datasets']} data sets, {counts['versions']} versions, {counts['bytes']} bytes")


@app.command()
@with_settings
def restore(settings: Settings, file: BackupFile) -> None:
    """Put a backup into a data directory that holds no data yet."""
    from app.records import backup, restore

    with _exit_on(FitserveError, OSError, sqlite3.Error):
        database = backup.database_file_of(settings.resolved_database_url)
        counts = restore.restore(file, database, settings.resolved_store)
    typer.echo(f"{settings.data_dir}: {counts['datasets']} data sets, {counts['versions']} versions")


@app.command()
@with_settings
def migrate(settings: Settings) -> None:
    """Create or upgrade the database's tables."""
    _make_data_dir(settings)
    _migrate(settings)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Run the command line."""
    app()


def _make_data_dir(settings: Settings) -> None:
    from app.storage.blobs import make_data_dir

    with _exit_on(OSError):
        make_data_dir(settings.data_dir)


def _migrate(settings: Settings) -> None:
    from app.storage.migrate import migrate

    with _exit_on(Unavailable):
        migrate(settings.resolved_database_url)


@contextmanager
def _exit_on(*errors: type[Exception]) -> Iterator[None]:
    """Print such an error as one line, and exit with code 1."""
    try:
        yield
    except errors as error:
        typer.echo(f"fitserve: {error}", err=True)
        raise typer.Exit(1) from None
