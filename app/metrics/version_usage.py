"""What each version has answered in this process, and what the time went to. Knows no protocol."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

#: waiting for a thread and for the version, reading the body, the encoder and the network, writing the answer
Part = Literal["queue", "input", "infer", "output"]
PARTS: tuple[Part, ...] = get_args(Part)


class Stopwatch:
    """Times the parts of one request, one after another; it runs from the moment that it is made."""

    def __init__(self) -> None:
        self.rows = 0
        self.ns: dict[Part, int] = dict.fromkeys(PARTS, 0)
        self._began = self._last = time.perf_counter_ns()

    def end(self, part: Part) -> None:
        """Count the time since the part before for this one."""
        now = time.perf_counter_ns()
        self.ns[part] += now - self._last
        self._last = now

    @property
    def total_ns(self) -> int:
        """The time from the beginning to the end of the last part."""
        return self._last - self._began


@dataclass
class Counts:
    """What a version has answered: requests and their rows, calls of its network, requests that failed, nanoseconds."""

    requests: int = 0
    rows: int = 0
    executions: int = 0
    failures: int = 0
    total_ns: int = 0
    failed_ns: int = 0
    last_at_ms: int = 0
    ns: dict[Part, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))


class VersionUsage:
    """The counts of every version, by its key."""

    def __init__(self) -> None:
        self._counts: dict[str, Counts] = {}
        self._counting = threading.Lock()

    def get(self, key: str) -> Counts:
        """Give a version's counts; zeros where it has answered nothing."""
        with self._counting:
            return self._counts.get(key) or Counts()

    def add(self, key: str, watch: Stopwatch) -> None:
        """Count a request that one call of the network has answered."""
        self.add_shared(key, watch.rows, watch.ns, executions=1)

    def add_shared(self, key: str, rows: int, ns: Mapping[Part, int], executions: int) -> None:
        """Count a request that a call of the network has answered, and perhaps others.

        Args:
            executions: 1 for the first request of a call, 0 for the others.
        """
        with self._counting:
            counts = self._counts.get(key)
            if counts is None:
                counts = self._counts[key] = Counts()
            counts.requests += 1
            counts.rows += rows
            counts.executions += executions
            counts.last_at_ms = time.time_ns() // 1_000_000
            for part in PARTS:
                counts.ns[part] += ns[part]
                counts.total_ns += ns[part]

    def fail(self, key: str, watch: Stopwatch) -> None:
        """Count a request that was refused."""
        with self._counting:
            counts = self._counts.setdefault(key, Counts())
            counts.failures += 1
            counts.failed_ns += watch.total_ns

    @contextmanager
    def measured(self, key: str, watch: Stopwatch) -> Iterator[None]:
        """Count what runs inside, as answered or, where it raises, as refused."""
        is_answered = False
        try:
            yield
            is_answered = True
        finally:
            watch.end("output")
            (self.add if is_answered else self.fail)(key, watch)
