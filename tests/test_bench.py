"""The load generator counts whole, good answers and nothing else, and the committed result is one of this benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app.client import Job
from tests.service import ROOT, Service

RECORD = {"records": [{"island": "Biscoe", "bill_length_mm": 49.1}]}


def load(url: str, body: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.load", url, str(body), "2", "0.5"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def body(tmp_path: Path) -> Path:
    path = tmp_path / "body.json"
    path.write_text(json.dumps(RECORD))
    return path


def test_load_counts_the_answers_that_the_service_gave(
    service: Service, http: httpx.Client, penguins: Job, body: Path
) -> None:
    def answered() -> float:
        lines = http.get("/metrics").text.splitlines()
        counts = [line for line in lines if "request_duration_seconds_count" in line and "/predict" in line]
        return sum(float(line.rpartition(" ")[2]) for line in counts)

    before = answered()
    rate, count = map(float, load(f"{service.url}/api/v1/models/{penguins.ref}/predict", body).stdout.split())
    after = answered()

    # what was on its way at the end is the service's and not the count's
    assert 0 < count <= after - before <= count + 2
    assert rate > 0


def test_load_ends_with_the_answer_that_was_not_200(service: Service, body: Path) -> None:
    ended = load(f"{service.url}/api/v1/models/no-such-model/predict", body)

    assert ended.returncode == 1
    assert "404 Not Found" in ended.stderr


def test_the_committed_result_says_where_when_and_with_what_it_was_measured() -> None:
    document = json.loads((ROOT / "bench/results/service.json").read_text())

    about = {"at", "machine", "kernel", "versions", "workload", "load_average_before"}
    assert about | {"results", "rounds"} == set(document)
    assert {"cpu", "cores", "memory_mib"} == set(document["machine"])
    assert all(figure is not None and figure > 0 for figure in document["results"].values())
