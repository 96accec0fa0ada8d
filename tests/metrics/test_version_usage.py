"""What versions have answered: every request is counted once, whichever thread it ran in, and its time is divided."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from app.metrics.version_usage import PARTS, Counts, Stopwatch, VersionUsage


def answer(statistics: VersionUsage, rows: int) -> Stopwatch:
    watch = Stopwatch()
    watch.end("queue")
    with statistics.measured("v", watch):
        watch.end("input")
        watch.rows = rows
        watch.end("infer")
    return watch


def test_a_version_that_answered_nothing_has_zeros() -> None:
    assert Counts() == VersionUsage().get("v")


def test_rows_requests_and_the_parts_of_their_time_add_up() -> None:
    statistics = VersionUsage()

    watches = [answer(statistics, rows) for rows in (1, 32)]

    counts = statistics.get("v")
    assert (33, 2, 0) == (counts.rows, counts.executions, counts.failures)
    assert sum(watch.total_ns for watch in watches) == counts.total_ns == sum(counts.ns.values())
    assert set(PARTS) == set(counts.ns)
    assert all(ns > 0 for ns in counts.ns.values())
    assert counts.last_at_ms > 0


def test_a_request_that_was_refused_counts_apart() -> None:
    statistics, watch = VersionUsage(), Stopwatch()

    with pytest.raises(KeyError), statistics.measured("v", watch):
        raise KeyError

    counts = statistics.get("v")
    assert (0, 0, 1) == (counts.rows, counts.executions, counts.failures)
    assert watch.total_ns == counts.failed_ns > 0 == counts.total_ns


def test_threads_lose_no_count() -> None:
    statistics = VersionUsage()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: answer(statistics, 3), range(800)))

    assert (2400, 800) == (statistics.get("v").rows, statistics.get("v").executions)
