"""Answers of the routes of operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict


class Readiness(TypedDict):
    """Whether the service serves; `checks` where they were asked for."""

    status: str
    warning: NotRequired[str]
    checks: NotRequired[Mapping[str, str]]


class Queue(TypedDict):
    """How many jobs wait, and how many run."""

    queued: int
    running: int


class System(TypedDict):
    """What this system is; `loaded` says which version in memory computes on which device."""

    version: str
    python: str
    libraries: Mapping[str, str]
    devices: Sequence[Mapping[str, object]]
    serves_on: str
    loaded: Sequence[Mapping[str, object]]
    processes: int
    queue: Queue
    workers: Sequence[Mapping[str, object]]
    limits: Mapping[str, int]
