"""What a worker reports of a running job. Knows neither the job's row nor the training process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class JobReport:
    """News of a running job; None leaves the job's own value as it is.

    Args:
        events: appended to the job's events; each has a `type`.
        progress: how far the job is.
        metrics: the scores of its last epoch.
        device, loop: where and how the job computes.
        learning_rate: replaces the one in the job's specification.
    """

    events: Sequence[Mapping[str, object]] = ()
    progress: Mapping[str, object] | None = None
    metrics: Mapping[str, float | None] | None = None
    device: str | None = None
    loop: str | None = None
    learning_rate: float | None = None
