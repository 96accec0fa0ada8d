"""Lanes: places in order of arrival, counted refusals, and no place that is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import Busy
from app.serving.admission import Lane


@pytest.fixture
def lane() -> Iterator[Lane]:
    """A lane of two places, in which two requests may wait for a minute."""
    made = Lane("tests", 2, 2, 60)
    yield made
    made.close()


async def hold(lane: Lane, until: asyncio.Event, order: list[int] | None = None, name: int = 0) -> None:
    async with lane.place():
        if order is not None:
            order.append(name)
        await until.wait()


def test_requests_wait_in_order_and_one_too_many_is_refused(lane: Lane) -> None:
    async def run() -> None:
        done, order = asyncio.Event(), list[int]()
        tasks = [asyncio.create_task(hold(lane, done, order, i)) for i in range(4)]
        await asyncio.sleep(0)

        assert (2, 2, [0, 1]) == (lane.running, lane.waiting, order)
        with pytest.raises(Busy, match="at most 4 tests at once"):
            await hold(lane, done)
        with pytest.raises(Busy):
            lane.check()
        assert lane.enter() is None
        done.set()
        await asyncio.gather(*tasks)

        assert [0, 1, 2, 3] == order
        assert (0, 0, 2, 0) == (lane.running, lane.waiting, lane.refused, lane.expired)

    asyncio.run(run())


def test_a_late_request_is_given_up_whether_it_waits_or_works() -> None:
    lane = Lane("tests", 1, 1, 0.05)

    async def run() -> None:
        never = asyncio.Event()
        ended = await asyncio.gather(hold(lane, never), hold(lane, never), return_exceptions=True)

        assert [Busy, Busy] == [type(each) for each in ended]
        assert (0, 0, 0, 2) == (lane.running, lane.waiting, lane.refused, lane.expired)
        # the place is free for the next request
        async with lane.place():
            assert lane.running == 1

    asyncio.run(run())
    lane.close()


def test_a_time_out_of_the_work_is_not_one_of_the_lane(lane: Lane) -> None:
    async def run() -> None:
        async with lane.place():
            raise TimeoutError

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert (0, 0) == (lane.running, lane.expired)


def test_a_lane_has_as_many_threads_as_places(lane: Lane) -> None:
    names: set[str] = set()

    def work() -> int:
        names.add(threading.current_thread().name)
        return len(names)

    async def run() -> None:
        await asyncio.gather(*(lane.run(work) for _ in range(20)))

    asyncio.run(run())
    assert 1 <= len(names) <= 2


def test_a_refusal_says_when_the_requests_ahead_will_have_ended() -> None:
    lane = Lane("tests", 1, 10, 60)

    async def run() -> int:
        done = asyncio.Event()
        first = asyncio.create_task(hold(lane, done))
        await asyncio.sleep(0.3)
        done.set()
        await first
        later = asyncio.Event()
        tasks = [asyncio.create_task(hold(lane, later)) for _ in range(11)]
        await asyncio.sleep(0)
        with pytest.raises(Busy) as refused:
            lane.check()
        later.set()
        await asyncio.gather(*tasks)
        return refused.value.retry_seconds

    # eleven requests, each of which takes as long as the first
    assert asyncio.run(run()) >= 4
    lane.close()


def test_requests_that_end_together_count_as_many_completions() -> None:
    lane = Lane("tests", 1, 9, 60)
    for _ in range(2):
        assert None not in [lane.enter() for _ in range(10)]
        time.sleep(0.3)
        refused = lane.refusal()
        for _ in range(10):
            lane.leave()

    # ten requests ended in 0.3 s; ten of 0.3 s each would take 3 s
    assert refused.retry_seconds < 3
    lane.close()


def test_a_request_that_goes_to_its_route_counts_as_one_completion() -> None:
    lane = Lane("tests", 1, 9, 60)
    for _ in range(5):
        for has_ended in (False, True):
            assert lane.enter() is not None
            if has_ended:
                time.sleep(0.11)
            lane.leave(has_ended=has_ended)
    assert None not in [lane.enter() for _ in range(10)]

    # a request that is counted twice would seem to take half as long
    assert lane.refusal().retry_seconds >= 2
    lane.close()


def test_a_completion_with_free_places_is_not_measured() -> None:
    lane = Lane("tests", 4, 96, 60)
    assert lane.enter() is not None
    time.sleep(0.3)
    lane.leave()
    assert None not in [lane.enter() for _ in range(100)]

    assert 1 == lane.refusal().retry_seconds
    lane.close()


def worked(lane: Lane, work: Callable[[], object], seconds_ago: float = 0) -> asyncio.Task[object]:
    """Enter a lane, and work."""
    entered = lane.enter()
    assert entered is not None
    return asyncio.create_task(lane.work(work, entered - seconds_ago))


def test_a_free_thread_takes_the_next_work_without_the_event_loop(lane: Lane) -> None:
    ended: list[float] = []

    def work() -> None:
        time.sleep(0.05)
        ended.append(time.perf_counter())

    async def run() -> float:
        tasks = [worked(lane, work) for _ in range(4)]
        await asyncio.sleep(0)
        assert (2, 2, 0) == (lane.at_work, lane.waiting, lane.passing)
        # two requests work at once while the event loop does other things
        threading.Event().wait(0.3)
        now = time.perf_counter()
        await asyncio.gather(*tasks)
        return now

    now = asyncio.run(run())
    assert max(ended) < now
    assert 4 == len(ended)
    assert 0 == lane.present


def test_one_request_for_each_place_waits_at_the_threads() -> None:
    lane, order = Lane("tests", 1, 20, 60), list[str]()

    def work(name: str) -> None:
        time.sleep(0.02)
        order.append(name)

    async def place(name: str) -> None:
        async with lane.place():
            await lane.run(partial(work, name))

    async def run() -> None:
        tasks: list[asyncio.Task[Any]] = []
        for i in range(4):
            tasks += [worked(lane, partial(work, f"work {i}")) for _ in range(2)]
            tasks.append(asyncio.create_task(place(f"place {i}")))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    asyncio.run(run())

    assert [f"{what} {i}" for i in range(4) for what in ("work", "work", "place")] == order
    lane.close()


def test_work_that_is_late_before_a_thread_is_free_never_begins() -> None:
    lane, done, begun = Lane("tests", 1, 4, 0.1), threading.Event(), list[int]()

    async def run() -> list[object]:
        # requests in the thread, behind it, in the queue, and too late
        tasks = [worked(lane, done.wait), *(worked(lane, lambda: begun.append(1)) for _ in range(2))]
        tasks.append(worked(lane, lambda: begun.append(2), seconds_ago=1))
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        done.set()
        await lane.run(lambda: None)
        return list(ended)

    assert [Busy] * 4 == [type(each) for each in asyncio.run(run())]
    assert ([], 4, 0) == (begun, lane.expired, lane.present)
    lane.close()


async def counted(lane: Lane, until: asyncio.Event, inside: list[int]) -> None:
    async with lane.place():
        inside.append(1)
        try:
            await until.wait()
        finally:
            inside.pop()


STEPS = ("come", "enter", "end", "leave", "work", "cancel", "end_and_cancel")


@settings(max_examples=200, deadline=None)
@given(
    places=st.integers(1, 3),
    waiting=st.integers(1, 3),
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9), st.integers(0, 9)), max_size=40),
)
def test_no_place_is_lost_or_used_twice_in_any_order_of_steps(
    places: int, waiting: int, steps: list[tuple[str, int, int]]
) -> None:
    lane = Lane("tests", places, waiting, 60)
    inside = list[int]()

    async def run() -> None:
        live: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        entered, working = list[float](), list[asyncio.Task[int]]()
        for step, one, other in steps:
            if step == "come":
                done = asyncio.Event()
                live.append((asyncio.create_task(counted(lane, done, inside)), done))
            elif step == "enter" and (began := lane.enter()) is not None:
                entered.append(began)
            elif step == "leave" and entered:
                entered.pop()
                lane.leave()
            elif step == "work" and entered:
                working.append(asyncio.create_task(lane.work(int, entered.pop())))
            elif step == "end" and live:
                live[one % len(live)][1].set()
            elif step == "cancel" and live:
                live[one % len(live)][0].cancel()
            elif step == "end_and_cancel" and live:
                # while one request leaves, the request that gets its place is cancelled
                live[one % len(live)][1].set()
                await asyncio.sleep(0)
                live[other % len(live)][0].cancel()
            await asyncio.sleep(0)
            assert 0 <= lane.running <= 2 * places
            assert len(inside) <= places
            assert lane.passing == len(entered)
        for _ in entered:
            lane.leave()
        for _, done in live:
            done.set()
        await asyncio.gather(*(task for task, _ in live), return_exceptions=True)
        assert {0} >= set(await asyncio.gather(*working))
        assert (0, 0, 0) == (lane.running, lane.passing, lane.waiting)
        async with lane.place():
            assert lane.running == 1

    asyncio.run(run())
    lane.close()


def test_requests_without_a_place_take_none_from_the_others(lane: Lane) -> None:
    async def run() -> None:
        passing = [lane.enter() for _ in range(3)]
        async with lane.place():
            assert (1, 3) == (lane.running, lane.passing)
            with pytest.raises(Busy):
                lane.check()
        assert None not in passing
        for _ in passing:
            lane.leave()
        assert not lane.is_full

    asyncio.run(run())
