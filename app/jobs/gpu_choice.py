"""Which GPU each running job computes on, where the caller leaves the choice to the service."""

from __future__ import annotations

from collections.abc import Sequence


class GpuChoice:
    """Spreads the jobs of one worker over its GPUs.

    Args:
        gpus: their ids, such as "gpu:0".
    """

    def __init__(self, gpus: Sequence[str]) -> None:
        self._gpus = gpus
        self._of_job: dict[str, str] = {}

    def choose(self, job_id: str, device: str) -> str | None:
        """Return the GPU that has the fewest jobs, until `release`; None where the worker has none to choose.

        Args:
            device: the `device` of the job's specification.
        """
        if device not in ("auto", "gpu") or not self._gpus:
            return None
        taken = list(self._of_job.values())
        self._of_job[job_id] = min(self._gpus, key=taken.count)
        return self._of_job[job_id]

    def release(self, job_id: str) -> None:
        """Forget a job that runs no longer."""
        self._of_job.pop(job_id, None)
