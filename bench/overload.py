"""`python -m bench.overload`: what is left of the peak when five times as much is asked as can be done.

First as many requests as are answered on 32 connections, each sent when the one before it was answered: the peak. Then
five times as many a second, whether or not they are answered. Two kinds of them: few numbers for a large network, where
an answer is arithmetic, and many records for a small one, where it is Python as a refusal is. The callers share the
machine's cores with the service. Writes `bench/results/overload.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import uvloop

from app.client import Client
from bench.about import RESULTS, ROOT, about, digits
from bench.load import load
from bench.rounds import written
from bench.servers import cpu_seconds, serve

RESULT = RESULTS / "overload.json"
LIBRARIES = ("fastapi", "uvicorn", "uvloop", "onnxruntime", "numpy")
TIMES, CONNECTIONS, MOST_CONNECTIONS, READY_SECONDS = 5, 32, 600, 120.0
#: so many that an answer takes much longer than a refusal; else what is measured is how quickly bytes are read
ROWS, RECORDS = 32, 1000
INPUTS, UNITS = 20, 2048
_HEAD = re.compile(rb"HTTP/1\.1 (\d+).*?\r\ncontent-length: *(\d+).*?\r\n\r\n", re.IGNORECASE | re.DOTALL)


class Crowd:
    """Sends a request at each tick on a connection that is free, or on a new one, and notes status and time of each answer."""

    def __init__(self, url: str, request: bytes) -> None:
        self.url, self.request = urlsplit(url), request
        self.free: list[Visitor] = []
        self.opened = 0
        #: seconds of the answers, by status; 0 stands for a connection that was lost
        self.seconds: defaultdict[int, list[float]] = defaultdict(list)
        self.unsent = 0

    async def come(self, rate: float, seconds: float) -> None:
        """Send so many requests a second for a while."""
        loop, began, sent, tasks = asyncio.get_running_loop(), time.perf_counter(), 0, set[asyncio.Task[Any]]()
        while (passed := time.perf_counter() - began) < seconds:
            for _ in range(int(passed * rate) - sent):
                sent += 1
                if self.free:
                    self.free.pop().send()
                elif self.opened < MOST_CONNECTIONS:
                    self.opened += 1
                    host, port = self.url.hostname or "", self.url.port or 80
                    tasks.add(loop.create_task(loop.create_connection(lambda: Visitor(self), host, port)))
                else:
                    self.unsent += 1
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)


class Visitor(asyncio.Protocol):
    """One connection."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        # uvloop's transports say by what they do that they are ones
        self._transport = cast("asyncio.Transport", transport)
        self.send()

    def send(self) -> None:
        """Send a request."""
        self._sent = time.perf_counter()
        self._transport.write(self._crowd.request)

    def data_received(self, data: bytes) -> None:
        """Note an answer when it is whole."""
        self._got += data
        head = _HEAD.match(self._got)
        if head and len(self._got) >= head.end() + int(head[2]):
            self._got = b""
            self._crowd.seconds[int(head[1])].append(time.perf_counter() - self._sent)
            self._crowd.free.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note an end that was not asked for."""
        self._crowd.seconds[0].append(time.perf_counter() - self._sent)


async def alive(url: str, seconds: float) -> Counter[bool]:
    """Ask ten times a second whether the process is alive, on connections of their own."""
    parts, found = urlsplit(url), Counter[bool]()
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(f"GET /livez HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        found[(await reader.read()).startswith(b"HTTP/1.1 200")] += 1
        writer.close()
        await asyncio.sleep(0.1)
    return found


async def measure(pid: int, url: str, path: str, body: bytes, seconds: float) -> dict[str, Any]:
    """Give the peak, and what there is at five times as much."""
    # a version is loaded when it is asked for first
    await load(url + path, body, 1, 0.5)
    before = cpu_seconds(pid)
    peak, answers, _ = await load(url + path, body, CONNECTIONS, seconds)
    each = (cpu_seconds(pid) - before) / answers
    netloc = urlsplit(url).netloc
    head = f"POST {path} HTTP/1.1\r\nHost: {netloc}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    before = cpu_seconds(pid)
    crowd = Crowd(url + path, head.encode() + body)
    _, living = await asyncio.gather(crowd.come(TIMES * peak, seconds), alive(url, seconds))
    rest = cpu_seconds(pid) - before - each * len(crowd.seconds[200])
    counts = {str(status): len(found) for status, found in sorted(crowd.seconds.items())}
    return {
        "peak_per_second": digits(peak),
        "asked_per_second": digits(TIMES * peak),
        "answers": counts,
        "unsent": crowd.unsent,
        "goodput_to_peak": digits(counts.get("200", 0) / seconds / peak),
        "answer_cpu_ms": digits(each * 1000),
        "refusal_cpu_ms": digits(rest / max(len(crowd.seconds[503]), 1) * 1000),
        "refusal_p99_ms": _p99(crowd.seconds[503]),
        "answer_p99_ms": _p99(crowd.seconds[200]),
        "alive": living[True] / max(living.total(), 1),
    }


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
    parser.add_argument("--seconds", type=float, default=20, help="of each of the four loads; default 20")
    parser.add_argument("--output", type=Path, default=RESULT)
    asked = parser.parse_args()
    document = about(LIBRARIES)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fitserve-bench-") as name:
        deadline = time.monotonic() + READY_SECONDS
        with serve(Path(name) / "data", deadline) as (pid, url), Client(url, timeout=READY_SECONDS) as client:
            for prepare in (_network, _records):
                model, body = prepare(client)
                results[model] = uvloop.run(measure(pid, url, f"/api/v1/models/{model}/predict", body, asked.seconds))
    document |= {"rows": ROWS, "records": RECORDS, "seconds": asked.seconds, "results": results}
    written(asked.output, json.dumps(document, indent=2) + "\n")
    for key in results["large"]:
        print(f"{key:<20}{results['large'][key]!s:<40}{results['penguins'][key]}")


if __name__ == "__main__":
    main()
