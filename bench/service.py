"""`python -m bench.service`: start-up time, memory, time to a served model, and the cost of a prediction.

Measures real processes on loopback. Times depend on the machine and on its other work. The ratio to a bare ASGI application,
which reads the same body and answers a constant, can be compared between machines: a third process loads both in turns, round
by round. Writes `bench/results/service.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from app.client import Client
from bench.about import MIB, RESULTS, ROOT, about, median
from bench.servers import BARE, cpu_seconds, run, serve, stat, until

RESULT = RESULTS / "service.json"
LIBRARIES = ("fastapi", "uvicorn", "uvloop", "onnxruntime", "numpy", "keras", "tensorflow")
STARTS, TRAININGS, ROUNDS = 3, 2, 4
CONNECTIONS, LOAD_SECONDS = 32, 1.0
SMALL_TABLE, WIDE_TABLE = (150, 4), (60, 784)
#: no round begins after the first time; the second is the limit for everything that is waited for
ENOUGH_SECONDS, LIMIT_SECONDS = 55.0, 240.0
WARM_MIB, QUIET_SECONDS = 300, 0.4
WORKLOAD = {
    "trained_table": SMALL_TABLE,
    "predict": "networks 4→64→3 and 784→64→3, one row a request, JSON",
    "connections": CONNECTIONS,
    "seconds_per_load": LOAD_SECONDS,
}


def main() -> None:
    """Measure, write the results, and print them."""
    began, machine = time.monotonic(), about(LIBRARIES)
    deadline = began + LIMIT_SECONDS
    with tempfile.TemporaryDirectory(prefix="fitserve-bench-") as name:
        folder = Path(name)
        ready = [_seconds_to_ready(folder / f"start{i}", deadline) for i in range(STARTS)]
        with serve(folder / "data", deadline) as (pid, url), run(folder, deadline, *BARE) as (bare, bare_url):
            with Client(url, "", timeout=LIMIT_SECONDS) as client:
                idle = _resident_mib(pid)
                small = [_seconds_to_model(client, pid, deadline) for _ in range(TRAININGS)]
                _train_wide(client)
            until(lambda: _is_warm(pid), deadline)
            rounds: list[dict[str, dict[str, float]]] = []
            while len(rounds) < ROUNDS and (not rounds or time.monotonic() < began + ENOUGH_SECONDS):
                rounds.append({})
                for model, columns in (("small", SMALL_TABLE[1]), ("wide", WIDE_TABLE[1])):
                    body = folder / f"{model}.json"
                    body.write_text(json.dumps({"x": np.random.default_rng(1).random((1, columns)).round(4).tolist()}))
                    rounds[-1][f"bare_1x{columns}"] = _load(bare, f"{bare_url}/", body)
                    rounds[-1][f"predict_1x{columns}"] = _load(pid, f"{url}/api/v1/models/{model}/predict", body)
            loaded = _resident_mib(pid)
    results = {
        "seconds_to_ready": median(ready),
        "api_mib_when_ready": idle,
        "api_mib_after_load": loaded,
        "seconds_from_post_to_served_model": median(small),
        **_rates(rounds),
    }
    document = {**machine, "workload": WORKLOAD, "results": results, "rounds": rounds}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for name, value in results.items():
        print(f"{name:<40}{value:>12,}")


def _rates(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Return the medians over the rounds, and the medians of the ratios of prediction to bare answer in each round."""
    medians = {}
    for columns in (SMALL_TABLE[1], WIDE_TABLE[1]):
        for figure in ("per_second", "cpu_microseconds"):
            ours = [loads[f"predict_1x{columns}"][figure] for loads in rounds]
            bare = [loads[f"bare_1x{columns}"][figure] for loads in rounds]
            medians[f"predict_1x{columns}_{figure}"] = median(ours)
            medians[f"bare_1x{columns}_{figure}"] = median(bare)
            medians[f"predict_to_bare_1x{columns}_{figure}"] = median([a / b for a, b in zip(ours, bare, strict=True)])
    return medians


def _seconds_to_ready(data: Path, deadline: float) -> float:
    began = time.monotonic()
    with serve(data, deadline):
        return time.monotonic() - began


def _seconds_to_model(client: Client, api: int, deadline: float) -> float:
    """Return the seconds from the POST of a job to the new version's first prediction: a small table, a warm worker."""
    rng = np.random.default_rng(0)
    y = np.arange(SMALL_TABLE[0]) % 3
    x = rng.normal(y[:, None], 0.7, SMALL_TABLE)
    until(lambda: _is_warm(api), deadline)
    began = time.monotonic()
    job = client.wait(client.train("small", data={"x": x, "y": y}))
    client.predict(job.ref, rows=x[:1])
    return time.monotonic() - began


def _train_wide(client: Client) -> None:
    x = np.random.default_rng(0).random(WIDE_TABLE).round(4)
    network, fit = {"layers": [{"units": 64}]}, {"epochs": 1}
    client.wait(client.train("wide", data={"x": x, "y": np.arange(len(x)) % 3}, network=network, fit=fit))
    client.predict("wide", rows=x[:1])


def _load(pid: int, url: str, body: Path) -> dict[str, float]:
    """Load one server, and return its answers per second and its CPU time for one answer in microseconds."""
    command = [sys.executable, "-m", "bench.load", url, str(body), str(CONNECTIONS), str(LOAD_SECONDS)]
    before = cpu_seconds(pid)
    rate, answers, _ = map(
        float, subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    )
    return {"per_second": round(rate, 1), "cpu_microseconds": round((cpu_seconds(pid) - before) / answers * 1e6, 1)}


def _is_warm(api: int) -> bool:
    """Return whether a training process, a grandchild of the serving process, waits with everything imported."""
    for name in (folder.name for folder in Path("/proc").glob("[0-9]*")):
        with suppress(OSError):
            if int(stat(stat(name)[1])[1]) == api and _resident_mib(int(name)) > WARM_MIB:
                before = cpu_seconds(int(name))
                time.sleep(QUIET_SECONDS)
                return cpu_seconds(int(name)) == before
    return False


def _resident_mib(pid: int) -> float:
    pages = int(Path("/proc", str(pid), "statm").read_text(encoding="utf-8").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / MIB, 1)


if __name__ == "__main__":
    main()
