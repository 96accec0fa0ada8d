"""Bring a database to the present schema: ours through Alembic, the job engine's by its own migrations.

Imported by the process that migrates and by no other: Alembic is not needed to serve.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError

from app.errors import Unavailable
from app.storage.database import Database
from app.storage.job_engine import DBOS

#: an arbitrary number of our own
_LOCK = 3_141_592_653


def migrate(url: str, revision: str = "head") -> None:
    """Create or upgrade every table; does nothing where all is present.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://…`.
        revision: the schema that our own tables get; the last one by default.

    Raises:
        Unavailable: the database cannot be opened, or a later release has migrated it; says why.
    """
    database = Database(url)
    try:
        with database.write() as connection:
            if not database.is_sqlite:
                # one at a time: SQLite's write lock does that by itself
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            config = Config()
            folder = Path(__file__).parent / "migrations"
            config.set_main_option("script_location", str(folder).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
        DBOS.migrate(url)
    except (Unavailable, sa.exc.SQLAlchemyError, CommandError) as error:
        reason = str(getattr(error.__cause__ or error, "orig", error)).strip()
        raise Unavailable(f"the database {sa.make_url(url)!r} could not be migrated: {reason}") from error
    finally:
        database.close()
