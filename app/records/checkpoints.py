"""Checkpoints: for each unfinished job the last state of its run. Knows nothing of what is in one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from app.storage.blobs import Blobs

_PREFIX = "checkpoints"


class Checkpoints:
    """The room of checkpoints."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def add(self, job_id: str, file: Path) -> None:
        """Store a job's newest checkpoint, consuming the file, and then delete the older ones. Durable on return.

        Raises:
            StorageFull, OSError: the file is not stored; the older ones are still there.
        """
        older = self._keys(job_id)
        number = int(older[-1].rpartition("/")[2]) + 1 if older else 1
        try:
            self._blobs.put(f"{_PREFIX}/{job_id}/{number:08d}", file)
        finally:
            file.unlink(missing_ok=True)
        for key in older:
            self._blobs.delete(key)

    def find(self, job_id: str) -> Path | None:
        """Return a job's newest checkpoint as a local file, or None."""
        keys = self._keys(job_id)
        return self._blobs.local(keys[-1]) if keys else None

    def delete(self, job_id: str) -> None:
        """Delete a job's checkpoints."""
        self._blobs.delete(f"{_PREFIX}/{job_id}")

    def job_ids(self) -> set[str]:
        """Return the ids of the jobs that have a checkpoint."""
        return {key.split("/")[1] for key in self._blobs.keys(f"{_PREFIX}/")}

    def delete_all(self, job_ids: Collection[str]) -> int:
        """Delete the checkpoints of these jobs; return the number of jobs."""
        for job_id in job_ids:
            self.delete(job_id)
        return len(job_ids)

    def _keys(self, job_id: str) -> list[str]:
        return sorted(self._blobs.keys(f"{_PREFIX}/{job_id}/"))
