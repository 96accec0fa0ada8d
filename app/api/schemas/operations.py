"""Answers of the routes for operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict


class Readiness(TypedDict):
    """Whether the service serves; `checks` only if the request asks for them."""

    status: str
    warning: NotRequired[str]
    checks: NotRequired[Mapping[str, str]]


class Queue(TypedDict):
    """The number of jobs that wait, and the number that run."""

    queued: int
    running: int


class System(TypedDict):
    """What this system is; `loaded` has the device of each version in memory."""

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
