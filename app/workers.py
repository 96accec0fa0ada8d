"""Workers: who is there to train, by their heartbeats."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from app.storage.db import Database, now, workers

#: a worker that has not beaten for this long is shown as lost
LOST_SECONDS = 15.0


class Workers:
    """The room of workers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def beat(self, name: str, slots: int, running: Sequence[str]) -> None:
        """Say that a worker lives, and what it runs."""
        row = {"slots": slots, "document": {"running": list(running)}, "beat_at": now()}
        with self._database.write() as connection:
            known = connection.execute(sa.update(workers).where(workers.c.name == name).values(row)).rowcount
            if not known:
                connection.execute(sa.insert(workers).values({"name": name, **row}))

    def list(self) -> Sequence[dict[str, Any]]:
        """Give every worker, its slots, its jobs and whether it lives."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(workers).order_by(workers.c.name)).mappings().all()
        return [
            {
                "name": row["name"],
                "slots": row["slots"],
                "running": row["document"]["running"],
                "state": "alive" if _age(row["beat_at"]) < LOST_SECONDS else "lost",
                "beat_at": row["beat_at"],
            }
            for row in rows
        ]


def _age(moment: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
