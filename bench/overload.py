"""`python -m bench.overload`: what is left of the peak when five times as much is asked as can be done.

The peak is what is answered on 32 connections, each of which sends its next request when the answer to the last one is
there. Then 600 connections ask, with pauses, five times as many a second; a few more, timed one by one, ask now and then.
Two kinds of requests: few numbers for a large network, where an answer is arithmetic, and many records for a small one,
where it is Python as a refusal is. wrk, which asks, shares the machine's cores with the service. Writes
`bench/results/overload.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from app.client import Client
from app.settings import Settings
from bench.about import RESULTS, ROOT, about, digits
from bench.rounds import spread, written
from bench.servers import serve, settle, until
from bench.wrk import Ask, crowd, load

RESULT = RESULTS / "overload.json"
LIBRARIES = ("fastapi", "uvicorn", "uvloop", "onnxruntime", "numpy")
TIMES, CONNECTIONS, MOST_CONNECTIONS, READY_SECONDS = 5, 32, 600, 120.0
ROUNDS, SECONDS, SAMPLES_PER_SECOND = 5, 8.0, 10
#: so many that an answer takes much longer than a refusal; else what is measured is how quickly bytes are read
ROWS, RECORDS = 32, 1000
INPUTS, UNITS = 20, 2048


class Callers:
    """The processor's time that this process and those that it waited for take from the service."""

    def __init__(self) -> None:
        self._before = os.times()

    def left(self) -> float:
        """Give how many of the machine's processors were left to others since it was asked last."""
        before, self._before = self._before, os.times()
        taken = sum(self._before[:4]) - sum(before[:4])
        return (os.cpu_count() or 1) - taken / (self._before.elapsed - before.elapsed)


async def sample(ask: Ask, seconds: float) -> Mapping[int, Sequence[float]]:
    """Ask now and then, each time on a connection that is free; gives the seconds that answers took, by status."""
    found, body = defaultdict[int, list[float]](list), ask.body.read_bytes()
    async with httpx.AsyncClient(timeout=60, headers={"Content-Type": ask.media_type}) as client:

        async def one() -> None:
            began = time.perf_counter()
            answer = await client.post(ask.url, content=body)
            found[answer.status_code].append(time.perf_counter() - began)

        async with asyncio.TaskGroup() as group:
            for _ in range(int(seconds * SAMPLES_PER_SECOND)):
                group.create_task(one())
                await asyncio.sleep(1 / SAMPLES_PER_SECOND)
    return found


async def overload(ask: Ask, peak: float, seconds: float) -> tuple[float, float, Mapping[int, Sequence[float]]]:
    """Ask five times as much as the peak; gives answers and refusals a second, and the sample."""
    # those whose requests wait do not ask: as many as may, for as long as it takes to answer as many
    waiting = Settings.model_fields["max_waiting_predictions"].default / TIMES
    pause = (MOST_CONNECTIONS / TIMES - waiting) / peak
    loaded = asyncio.to_thread(crowd, ask, MOST_CONNECTIONS, seconds, pause * 1000)
    (answers, refusals), found = await asyncio.gather(loaded, sample(ask, seconds))
    return answers, refusals, found


def measure(ask: Ask, rounds: int, seconds: float) -> dict[str, Any]:
    """Give the peak, and what is left of it: medians and ranges of the rounds."""
    figures = defaultdict[str, list[float]](list)
    refused, answered, statuses = list[float](), list[float](), set[int]()
    for _ in range(rounds):
        # a version is loaded when it is asked for first; and whoever asks last is answered last
        until(partial(_is_answered, ask), time.monotonic() + READY_SECONDS)
        callers = Callers()
        peak = load(ask, CONNECTIONS, seconds).per_second
        left = callers.left()
        answers, refusals, found = asyncio.run(overload(ask, peak, seconds))
        figures["peak_per_second"].append(peak)
        figures["asked_to_peak"].append((answers + refusals) / peak)
        figures["answered_to_peak"].append(answers / peak)
        figures["answered_to_peak_by_processor_time"].append(answers / callers.left() / (peak / left))
        statuses |= found.keys()
        answered += found.get(200, [])
        refused += found.get(503, [])
    if not statuses <= {200, 503}:
        raise SystemExit(f"bench: expected 200 and 503, got {sorted(statuses)}")
    each = {name: spread(values) for name, values in figures.items()}
    return {**each, "refusal_p99_ms": _p99(refused), "answer_p99_ms": _p99(answered)}


def _is_answered(ask: Ask) -> bool:
    headers = {"Content-Type": ask.media_type}
    return httpx.post(ask.url, content=ask.body.read_bytes(), headers=headers, timeout=60).is_success


def _p99(seconds: Sequence[float]) -> float | None:
    return digits(sorted(seconds)[len(seconds) * 99 // 100] * 1000) if seconds else None


def _network(client: Client) -> tuple[str, bytes]:
    """Train a network of two wide layers; gives its name, and a body of few numbers."""
    x = np.random.default_rng(0).random((200, INPUTS)).round(4)
    layers = [{"units": UNITS, "activation": "relu"}] * 2
    data = {"x": x, "y": np.arange(len(x)) % 4}
    client.wait(client.train("large", data=data, network={"layers": layers}, fit={"epochs": 1}))
    return "large", json.dumps({"x": x[:ROWS].tolist()}).encode()


def _records(client: Client) -> tuple[str, bytes]:
    """Train on the penguins; gives the model's name, and a body of many records."""
    record = {"island": "Biscoe", "bill_length_mm": 49.1, "flipper_length_mm": 222, "sex": "male"}
    table = client.upload(ROOT / "examples" / "penguins.csv")
    client.wait(client.train("penguins", dataset=table, target="species", fit={"epochs": 5}))
    return "penguins", json.dumps({"records": [record] * RECORDS}).encode()


def main() -> None:
    """Measure, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="python -m bench.overload")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of a peak and five times it; default {ROUNDS}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each; default {SECONDS:g}")
    parser.add_argument("--output", type=Path, default=RESULT)
    asked = parser.parse_args()
    document = about(LIBRARIES)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fitserve-bench-") as name:
        folder, deadline = Path(name), time.monotonic() + READY_SECONDS
        with serve(folder / "data", deadline) as (_, url), Client(url, timeout=READY_SECONDS) as client:
            for prepare in (_network, _records):
                model, body = prepare(client)
                ask = Ask(f"{url}/api/v1/models/{model}/predict", folder / f"{model}.json")
                ask.body.write_bytes(body)
                settle()
                results[model] = measure(ask, asked.rounds, asked.seconds)
    document |= {"rows": ROWS, "records": RECORDS, "seconds": asked.seconds, "results": results}
    written(asked.output, json.dumps(document, indent=2) + "\n")
    for model, found in results.items():
        print(model, json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
