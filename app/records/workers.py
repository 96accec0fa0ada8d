"""Workers: which of them live, by their heartbeats, and what they run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, TypedDict

import sqlalchemy as sa

from app.storage.database import Database
from app.storage.rows import now
from app.storage.tables import workers

#: a worker whose last heartbeat is older than this is shown as lost
LOST_SECONDS = 15.0


class WorkerDescription(TypedDict):
    """A worker as clients read it.

    Args:
        slots: how many jobs it runs at once.
        running: the ids of the jobs that it runs.
        devices: "cpu", and its GPUs, such as "gpu:0".
        beat_at: the time of its last heartbeat.
    """

    name: str
    slots: int
    running: Sequence[str]
    devices: Sequence[str]
    state: Literal["alive", "lost"]
    beat_at: str


class Workers:
    """The room of workers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def beat(self, name: str, slots: int, running: Sequence[str], devices: Sequence[str] = ("cpu",)) -> None:
        """Write a worker's heartbeat, with the ids of the jobs that it runs and the devices that it has."""
        document = {"running": list(running), "devices": list(devices)}
        row = {"slots": slots, "document": document, "beat_at": now()}
        with self._database.write() as connection:
            is_known = connection.execute(sa.update(workers).where(workers.c.name == name).values(row)).rowcount
            if not is_known:
                connection.execute(sa.insert(workers).values({"name": name, **row}))

    def list(self) -> Sequence[WorkerDescription]:
        """Return every worker that ever beat, by name."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(workers).order_by(workers.c.name)).all()
        return [
            {
                "name": row.name,
                "slots": row.slots,
                "running": row.document["running"],
                # a worker of an earlier release names no devices
                "devices": row.document.get("devices", ["cpu"]),
                "state": "alive" if _age_seconds(row.beat_at) < LOST_SECONDS else "lost",
                "beat_at": row.beat_at,
            }
            for row in rows
        ]

    def devices(self) -> set[str]:
        """Return the devices of all workers that live."""
        return {device for worker in self.list() if worker["state"] == "alive" for device in worker["devices"]}


def _age_seconds(moment: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
