"""The start of a service: its data directory, address and lock, then the schema, and then `main` with the serving.

A fork brings the schema up to date while this process imports what serving needs. That takes a quarter of a second off
the start, and the memory that the migration needs ends with the fork.
"""

from __future__ import annotations

import multiprocessing

# imported before the fork, because both processes need SQLAlchemy
import app.storage.tables  # noqa: F401
from app.errors import Unavailable
from app.server.listener import listen
from app.settings import Settings
from app.storage.blobs import make_data_dir
from app.system.file_lock import hold


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        OSError: the address cannot be bound, or the data directory not be written.
        SystemExit: another service has the data directory, or the schema cannot be brought up to date.
    """
    make_data_dir(settings.data_dir)
    listener = listen(settings.host, settings.port)
    hold(settings.data_dir / "serving", "another service")
    migration = multiprocessing.get_context("fork").Process(target=_migrate, args=(settings.resolved_database_url,))
    migration.start()
    from app.server.main import run

    migration.join()
    if migration.exitcode != 0:
        raise SystemExit(1)
    run(settings, listener)


def _migrate(url: str) -> None:
    from app.storage.migrate import migrate

    try:
        migrate(url)
    except Unavailable as error:
        raise SystemExit(f"fitserve: {error}") from None
