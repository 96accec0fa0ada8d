"""What rooms hold, made small: data sets and jobs without an upload, versions without a training run."""

from __future__ import annotations

from typing import Any

from app.datasets import Dataset, Parsed
from app.jobs import Job, NewJob
from app.training import Rooms


def add_dataset(rooms: Rooms, raw: bytes = b"a,y\n1,x\n", table: bytes = b"table") -> Dataset:
    """Add a data set; nobody parses what is in it."""
    with rooms.blobs.staging("test") as folder:
        (folder / "raw").write_bytes(raw)
        (folder / "table").write_bytes(table)
        return rooms.datasets.add(None, "csv", folder / "raw", Parsed(folder / "table", 1, [], [], "y"))[0]


def submit(rooms: Rooms, model: str = "m", key: str | None = None, body: str = "body", **changes: Any) -> Job:
    """Submit a job on a data set of its own, or on the one in `changes`."""
    dataset = changes.pop("dataset", None) or add_dataset(rooms)
    new = NewJob(model, dataset.id, dataset.table_key, None, {"target": "y", "tags": {}, **changes}, ("one warning",))
    return rooms.jobs.submit(new, key, body)
