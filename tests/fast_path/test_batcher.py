"""One call of the network for what comes together, and nobody who can tell."""

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
    """A network that notes how many rows each call had, and in which thread it was."""

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


def turns(network: Network, multiplications: int | None = 1, places: int = 1, seconds: float = 60) -> Batcher:
    cpu_rows = 0 if multiplications is None else sys.maxsize
    return Batcher(
        network, MatrixEncoder.of(ENCODER), multiplications or 1, cpu_rows, Lane("tests", places, 100, seconds)
    )


def ask(of: Batcher, asked: NDArray[np.float64] | Encoded, entered: float | None = None) -> asyncio.Future[Any]:
    """Ask, and give what will be told; to be told twice is an error."""
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    of.submit(asked, time.perf_counter() if entered is None else entered, told.set_result)
    return told


def rows(seed: int, count: int = 1) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-8, 8, (count, 4))


def alone(x: NDArray[np.float64]) -> bytes:
    return RUNTIME.probabilities(x.astype(np.float32)).tobytes()


@pytest.mark.parametrize("multiplications", [1, LOOP_MULTIPLICATIONS // 50, None])
def test_what_comes_in_one_turn_is_computed_in_one_call_with_the_same_bits(multiplications: int | None) -> None:
    network = Network()
    asked = [rows(seed, 1 + seed % 5) for seed in range(30)]

    async def run() -> list[Result | None]:
        of = turns(network, multiplications)
        # matrices, and rows that are encoded already
        both = [Encoded(x.astype(np.float32), [(0, b"w")]) if i % 3 == 0 else x for i, x in enumerate(asked)]
        return list(await asyncio.gather(*(ask(of, each) for each in both)))

    found = asyncio.run(run())

    assert [sum(map(len, asked))] == network.calls
    assert (threading.get_ident() in network.threads) == (multiplications == 1)
    for i, (x, answer) in enumerate(zip(asked, found, strict=True)):
        assert answer is not None
        assert alone(x) == answer.probabilities.tobytes()
        assert answer.probabilities.argmax(axis=1).tolist() == answer.best
        assert ([(0, b"w")] if i % 3 == 0 else []) == list(answer.warnings)


def test_a_bad_request_harms_none_of_its_neighbours() -> None:
    network = Network()
    good = [rows(seed, 2) for seed in range(6)]
    bad = [np.array([[1.0, value, 1.0, 1.0]]) for value in (np.nan, np.inf, -np.inf, 1e39, 1e300)]

    async def run() -> list[Result | None]:
        of = turns(network)
        mixed = [each for pair in zip(good, bad, strict=False) for each in pair] + good[5:]
        return list(await asyncio.gather(*(ask(of, each) for each in mixed)))

    found = asyncio.run(run())

    assert [None] * 5 == found[1::2]
    assert [alone(x) for x in good] == [answer.probabilities.tobytes() for answer in found[::2] if answer is not None]
    assert [12] == network.calls


def test_a_number_out_of_range_is_a_warning_of_its_own_request_alone() -> None:
    async def run() -> list[Result | None]:
        of = turns(Network())
        far = np.array([[1.0, 10.0, 1.0, -10.0], [1.0, 1.0, 1.0, 1.0], [10.0, 1.0, 1.0, 1.0]])
        return list(await asyncio.gather(*(ask(of, each) for each in (rows(1), far, rows(2)))))

    before, found, after = asyncio.run(run())

    assert before is not None
    assert found is not None
    assert after is not None
    assert ([], []) == (list(before.warnings), list(after.warnings))
    words = [(row, text.decode()) for row, text in found.warnings]
    assert [(0, '"column":"b","code":"out_of_range"}'), (0, '"column":"d","code":"out_of_range"}')] == words[:2]
    assert [2] == [row for row, _ in words[2:]]


@pytest.mark.parametrize("multiplications", [1, None])
def test_a_network_that_fails_leaves_what_comes_later_served(multiplications: int | None) -> None:
    async def run() -> list[Result | None]:
        of = turns(Network(), multiplications)
        failing = await asyncio.gather(ask(of, np.full((1, 4), 9.0)), ask(of, rows(1)))
        return [*failing, await ask(of, rows(1))]

    first, second, third = asyncio.run(run())

    assert (None, None) == (first, second)
    assert third is not None
    assert alone(rows(1)) == third.probabilities.tobytes()


def test_what_comes_while_a_call_is_computed_beside_the_loop_waits_for_the_next() -> None:
    network = Network()

    async def run() -> None:
        of = turns(network, None)
        slow = ask(of, np.full((1, 4), 8.0))
        await asyncio.sleep(0.02)
        later = [ask(of, rows(seed)) for seed in range(4)]
        await asyncio.gather(slow, *later)

    asyncio.run(run())

    assert [1, 4] == network.calls


def test_as_many_calls_are_computed_beside_the_loop_as_there_are_places() -> None:
    network = Network()

    async def run() -> None:
        of = turns(network, None, places=2)
        slow = []
        for _ in range(3):
            slow.append(ask(of, np.full((1, 4), 8.0)))
            await asyncio.sleep(0.02)
        assert [1, 1] == network.calls
        await asyncio.gather(*slow)

    asyncio.run(run())

    assert [1, 1, 1] == network.calls


def test_a_call_takes_no_more_of_a_large_networks_rows_than_it_computes_soon() -> None:
    network = Network()

    async def run() -> None:
        of = turns(network, CALL_MULTIPLICATIONS // 3)
        await asyncio.gather(*(ask(of, rows(seed)) for seed in range(7)))

    asyncio.run(run())

    assert [3, 3, 1] == network.calls


@pytest.mark.parametrize(("multiplications", "full"), [(CALL_MULTIPLICATIONS // 10, 10), (None, CALL_CELLS // 4)])
def test_a_full_call_waits_at_its_thread_and_not_for_a_busy_event_loop(multiplications: int | None, full: int) -> None:
    network = Network()

    async def run() -> tuple[list[int], list[Result]]:
        of = turns(network, multiplications)
        # each takes a tenth of a second
        told = [ask(of, np.full((full, 4), 8.0)) for _ in range(3)]
        await asyncio.sleep(0.05)
        # the first call ends, and the event loop does other things
        threading.Event().wait(0.3)
        calls = list(network.calls)
        return calls, await asyncio.gather(*told)

    calls, answers = asyncio.run(run())

    assert [full, full] == calls
    assert [full, full, full] == network.calls
    # a call begins when its thread takes it
    assert all(later.began >= earlier.began + 0.1 for earlier, later in pairwise(answers))


def test_whoever_waited_too_long_is_told_so_and_takes_nobodys_time() -> None:
    network = Network()

    async def run() -> tuple[Any, Any]:
        of = turns(network, seconds=5)
        late, other = ask(of, rows(1), time.perf_counter() - 5.1), ask(of, rows(2, 3))
        return await late, await other

    late, other = asyncio.run(run())

    assert isinstance(late, Busy)
    assert "at most 5 seconds" in late.message
    assert alone(rows(2, 3)) == other.probabilities.tobytes()
    assert [3] == network.calls


def test_a_call_takes_so_many_numbers_and_leaves_the_others_to_the_next() -> None:
    network, half = Network(), CALL_CELLS // 4 // 2

    async def run() -> None:
        of = turns(network)
        await asyncio.gather(*(ask(of, rows(seed, half)) for seed in range(5)))

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
