"""Workers: who is there to train, by their heartbeats."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from app.storage.database import Database
from app.storage.rows import now
from app.storage.tables import workers

#: a worker that has not beaten for this long is shown as lost
LOST_SECONDS = 15.0


class Workers:
    """The room of workers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def beat(self, name: str, slots: int, running: Sequence[str], devices: Sequence[str] = ("cpu",)) -> None:
        """Say that a worker lives, what it runs, and on which devices it can."""
        document = {"running": list(running), "devices": list(devices)}
        row = {"slots": slots, "document": document, "beat_at": now()}
        with self._database.write() as connection:
            known = connection.execute(sa.update(workers).where(workers.c.name == name).values(row)).rowcount
            if not known:
                connection.execute(sa.insert(workers).values({"name": name, **row}))

    def list(self) -> Sequence[dict[str, Any]]:
        """Give every worker, its slots, its jobs, its devices and whether it lives."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(workers).order_by(workers.c.name)).mappings().all()
        return [
            {
                "name": row["name"],
                "slots": row["slots"],
                "running": row["document"]["running"],
                # one of an earlier release says none
                "devices": row["document"].get("devices", ["cpu"]),
                "state": "alive" if _age(row["beat_at"]) < LOST_SECONDS else "lost",
                "beat_at": row["beat_at"],
            }
            for row in rows
        ]

    def devices(self) -> set[str]:
        """Give the devices of all workers that live."""
        return {device for worker in self.list() if worker["state"] == "alive" for device in worker["devices"]}


def _age(moment: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
