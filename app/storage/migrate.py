"""Bring a database to the present schema: ours through Alembic, the job engine's by its own migrations.

Imported by the process that migrates and by no other: Alembic is not needed to serve.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from dbos import DBOS

from app.storage.db import Database


def migrate(url: str) -> None:
    """Create or upgrade every table; does nothing where all is present.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://…`.
    """
    database = Database(url)
    try:
        with database.write() as connection:
            config = Config()
            config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        database.close()
    DBOS.migrate(url)
