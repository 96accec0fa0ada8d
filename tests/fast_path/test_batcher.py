"""Batches: one call of the network for the requests of one turn of the event loop, and the bits of each request alone."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import Busy
from app.fast_path.batcher import CALL_MULTIPLICATIONS, LOOP_MULTIPLICATIONS, Batcher, Result
from app.fast_path.encode import CALL_CELLS, Encoded, MatrixEncoder
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.inputs import Input
from app.learning.network.onnx_network import OnnxRuntime
from app.serving.admission import Lane
from tests.stored_rows import artifact_of

ENCODER = Encoder(tuple(Input(name, "numeric", "impute", marks_missing=False, low=-9, high=9) for name in "abcd"))
RUNTIME = OnnxRuntime((made := artifact_of(ENCODER, [dict.fromkeys("abcd", 1.0)], units=33)).architecture, made.weights)


class Network:
    """A network that notes how many rows each call had, and the threads of the calls."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self.calls.append(len(x))
        self.threads.add(threading.get_ident())
        if x[0, 0] == 8.0:
            time.sleep(0.1)
        if x[0, 0] == 9.0:
            raise RuntimeError("a network that fails")
        return RUNTIME.probabilities(x)


def make_batcher(network: Network, multiplications: int | None = 1, places: int = 1, seconds: float = 60) -> Batcher:
    cpu_rows = 0 if multiplications is None else sys.maxsize
    return Batcher(
        network, MatrixEncoder.of(ENCODER), multiplications or 1, cpu_rows, Lane("tests", places, 100, seconds)
    )


def submit(batcher: Batcher, x: NDArray[np.float64] | Encoded, entered: float | None = None) -> asyncio.Future[Any]:
    """Submit rows; return the future of their result. A second result is an error."""
    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    batcher.submit(x, time.perf_counter() if entered is None else entered, result.set_result)
    return result


def rows(seed: int, count: int = 1) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-8, 8, (count, 4))


def alone(x: NDArray[np.float64]) -> bytes:
    """Return the bits of rows that have a call of their own."""
    return RUNTIME.probabilities(x.astype(np.float32)).tobytes()


@pytest.mark.parametrize("multiplications", [1, LOOP_MULTIPLICATIONS // 50, None])
def test_requests_of_one_turn_are_computed_in_one_call_with_their_own_bits(multiplications: int | None) -> None:
    network = Network()
    xs = [rows(seed, 1 + seed % 5) for seed in range(30)]

    async def run() -> list[Result | None]:
        batcher = make_batcher(network, multiplications)
        # matrices, and rows that are encoded already
        both = [Encoded(x.astype(np.float32), [(0, b"w")]) if i % 3 == 0 else x for i, x in enumerate(xs)]
        return list(await asyncio.gather(*(submit(batcher, each) for each in both)))

    found = asyncio.run(run())

    assert [sum(map(len, xs))] == network.calls
    assert (threading.get_ident() in network.threads) == (multiplications == 1)
    for i, (x, answer) in enumerate(zip(xs, found, strict=True)):
        assert answer is not None
        assert alone(x) == answer.probabilities.tobytes()
        assert answer.probabilities.argmax(axis=1).tolist() == answer.best
        assert ([(0, b"w")] if i % 3 == 0 else []) == list(answer.warnings)


def test_a_bad_request_leaves_its_neighbours_as_they_are() -> None:
    network = Network()
    good = [rows(seed, 2) for seed in range(6)]
    bad = [np.array([[1.0, value, 1.0, 1.0]]) for value in (np.nan, np.inf, -np.inf, 1e39, 1e300)]

    async def run() -> list[Result | None]:
        batcher = make_batcher(network)
        mixed = [each for pair in zip(good, bad, strict=False) for each in pair] + good[5:]
        return list(await asyncio.gather(*(submit(batcher, each) for each in mixed)))

    found = asyncio.run(run())

    assert [None] * 5 == found[1::2]
    assert [alone(x) for x in good] == [answer.probabilities.tobytes() for answer in found[::2] if answer is not None]
    assert [12] == network.calls


def test_a_number_out_of_range_is_a_warning_of_its_own_request() -> None:
    async def run() -> list[Result | None]:
        batcher = make_batcher(Network())
        far = np.array([[1.0, 10.0, 1.0, -10.0], [1.0, 1.0, 1.0, 1.0], [10.0, 1.0, 1.0, 1.0]])
        return list(await asyncio.gather(*(submit(batcher, each) for each in (rows(1), far, rows(2)))))

    before, found, after = asyncio.run(run())

    assert before is not None
    assert found is not None
    assert after is not None
    assert ([], []) == (list(before.warnings), list(after.warnings))
    words = [(row, text.decode()) for row, text in found.warnings]
    assert [(0, '"column":"b","code":"out_of_range"}'), (0, '"column":"d","code":"out_of_range"}')] == words[:2]
    assert [2] == [row for row, _ in words[2:]]


@pytest.mark.parametrize("multiplications", [1, None])
def test_requests_after_a_failed_call_are_served(multiplications: int | None) -> None:
    async def run() -> list[Result | None]:
        batcher = make_batcher(Network(), multiplications)
        failing = await asyncio.gather(submit(batcher, np.full((1, 4), 9.0)), submit(batcher, rows(1)))
        return [*failing, await submit(batcher, rows(1))]

    first, second, third = asyncio.run(run())

    assert (None, None) == (first, second)
    assert third is not None
    assert alone(rows(1)) == third.probabilities.tobytes()


def test_requests_that_come_during_a_call_in_a_thread_share_the_next_call() -> None:
    network = Network()

    async def run() -> None:
        batcher = make_batcher(network, None)
        slow = submit(batcher, np.full((1, 4), 8.0))
        await asyncio.sleep(0.02)
        later = [submit(batcher, rows(seed)) for seed in range(4)]
        await asyncio.gather(slow, *later)

    asyncio.run(run())

    assert [1, 4] == network.calls


def test_as_many_calls_run_in_threads_as_there_are_places() -> None:
    network = Network()

    async def run() -> None:
        batcher = make_batcher(network, None, places=2)
        slow = []
        for _ in range(3):
            slow.append(submit(batcher, np.full((1, 4), 8.0)))
            await asyncio.sleep(0.02)
        assert [1, 1] == network.calls
        await asyncio.gather(*slow)

    asyncio.run(run())

    assert [1, 1, 1] == network.calls


def test_a_call_of_a_large_network_takes_few_rows() -> None:
    network = Network()

    async def run() -> None:
        batcher = make_batcher(network, CALL_MULTIPLICATIONS // 3)
        await asyncio.gather(*(submit(batcher, rows(seed)) for seed in range(7)))

    asyncio.run(run())

    assert [3, 3, 1] == network.calls


@pytest.mark.parametrize(("multiplications", "full"), [(CALL_MULTIPLICATIONS // 10, 10), (None, CALL_CELLS // 4)])
def test_a_full_call_waits_for_a_thread_and_not_for_the_event_loop(multiplications: int | None, full: int) -> None:
    network = Network()

    async def run() -> tuple[list[int], list[Result]]:
        batcher = make_batcher(network, multiplications)
        # the network takes a tenth of a second for each call
        results = [submit(batcher, np.full((full, 4), 8.0)) for _ in range(3)]
        await asyncio.sleep(0.05)
        # the first call ends while the event loop does other things
        threading.Event().wait(0.3)
        calls = list(network.calls)
        return calls, await asyncio.gather(*results)

    calls, answers = asyncio.run(run())

    assert [full, full] == calls
    assert [full, full, full] == network.calls
    # a call begins when its thread takes it
    assert all(later.began >= earlier.began + 0.1 for earlier, later in pairwise(answers))


def test_a_request_that_waited_too_long_is_refused_and_not_computed() -> None:
    network = Network()

    async def run() -> tuple[Any, Any]:
        batcher = make_batcher(network, seconds=5)
        late, other = submit(batcher, rows(1), time.perf_counter() - 5.1), submit(batcher, rows(2, 3))
        return await late, await other

    late, other = asyncio.run(run())

    assert isinstance(late, Busy)
    assert "at most 5 seconds" in late.message
    assert alone(rows(2, 3)) == other.probabilities.tobytes()
    assert [3] == network.calls


def test_a_call_takes_a_number_of_cells_and_leaves_the_rest_to_the_next() -> None:
    network, half = Network(), CALL_CELLS // 4 // 2

    async def run() -> None:
        batcher = make_batcher(network)
        await asyncio.gather(*(submit(batcher, rows(seed, half)) for seed in range(5)))

    asyncio.run(run())

    assert [2 * half, 2 * half, half] == network.calls


@pytest.mark.parametrize(("inputs", "units"), [(4, 3), (19, 64), (130, 257)])
def test_a_rows_bits_do_not_depend_on_its_neighbours(inputs: int, units: int) -> None:
    names = [f"x{i}" for i in range(inputs)]
    encoder = Encoder(tuple(Input(n, "numeric", "impute", marks_missing=False, mean=0.3, scale=1.7) for n in names))
    made = artifact_of(encoder, [dict.fromkeys(names, 1.0)], units=units)
    runtime, matrix = OnnxRuntime(made.architecture, made.weights), MatrixEncoder(encoder)
    x = np.random.default_rng(0).normal(size=(96, inputs))

    def bits(parts: list[NDArray[np.float64]]) -> bytes:
        return runtime.probabilities(matrix.encode(parts)[0]).tobytes()

    whole = bits([x])

    for size in (1, 2, 3, 5, 8, 17, 32):
        parts = [x[start : start + size] for start in range(0, len(x), size)]
        assert whole == b"".join(bits([part]) for part in parts) == bits(parts)
