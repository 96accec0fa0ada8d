"""What a worker is set to give its jobs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from app.system.machine import processor


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker gives its jobs.

    Args:
        slots: jobs at once.
        memory_bytes: what the encoded rows of one job may take in memory.
        checkpoint_seconds: least time between two checkpoints of a job.
        cache: a folder for what compilers want to find again.
    """

    slots: int
    memory_bytes: int
    checkpoint_seconds: float
    cache: Path

    @property
    def compiled(self) -> Path:
        """The folder of what XLA has compiled for this processor; another processor cannot run it."""
        return self.cache / f"xla-{processor()}"

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a training process, and make the folder that they name."""
        self.compiled.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = f"{os.environ.get('TF_XLA_FLAGS', '')} --tf_xla_persistent_cache_directory={self.compiled}"
        return {**os.environ, "TF_XLA_FLAGS": flags.strip()}
