"""Clients that pin other versions of the service's libraries, each in an environment that `make clients` makes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from app.client import Client, Job
from tests.service import ROOT, Service

ROWS = [[0.5, 3.0], [2.25, 11.0], [5.75, 23.0], [0.1, 0.2]]
COLUMNS = {"a": [i / 4 for i in range(24)], "b": [(i * 7) % 24 for i in range(24)], "y": ["p", "q"] * 12}
SECONDS = 60


def program(client: str, name: str) -> Path:
    """Return a program of a client's environment."""
    path = ROOT / f".venv-{client}" / "bin" / name
    if not path.exists():
        pytest.skip(f"needs {client} (make clients)")
    return path


def run(*command: str | Path) -> str:
    ended = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.stdout


@pytest.fixture(scope="module")
def model(client: Client) -> Job:
    return client.wait(client.train("asked", data={"columns": COLUMNS}, target="y", fit={"epochs": 2}))


def native(http: httpx.Client, rows: NDArray[Any]) -> tuple[list[str], NDArray[np.float32]]:
    answer = http.post("/api/v1/models/asked/predict", json={"x": rows.tolist()}).raise_for_status().json()
    return answer["predictions"], np.array(answer["probabilities"], np.float32)


def test_kserve_asks_by_both_protocols(service: Service, http: httpx.Client, model: Job) -> None:
    python = program("kserve", "python")

    answers = json.loads(
        run(python, ROOT / "tests/clients/ask_with_kserve.py", service.url, "asked", json.dumps(ROWS)).splitlines()[-1]
    )

    labels, probabilities = native(http, np.array(ROWS, np.float32))
    assert {"v1", "v2 in JSON", "v2 in binary"} == set(answers["probabilities"])
    for protocol, rows in answers["probabilities"].items():
        assert probabilities.tobytes() == np.array(rows, np.float32).tobytes(), protocol
    assert {"v2 in JSON": labels, "v2 in binary": labels} == answers["labels"]
    assert [True, True, [True, True], False] == [
        answers[name] for name in ("is_live", "is_ready", "models_ready", "unknown_model_ready")
    ]
    for error, words in zip(answers["errors"], ("at least one row", "at least one tensor"), strict=True):
        # the service's own text: a client that could not read the error would have another one
        assert error.startswith("Expected")
        assert words in error
        assert "400" in error


@pytest.mark.parametrize(("batch", "more"), [("1", []), ("3", ["--binary-data"])], ids=["JSON", "binary"])
def test_mlserver_infers_a_file_of_requests(
    service: Service, http: httpx.Client, model: Job, tmp_path: Path, batch: str, more: list[str]
) -> None:
    mlserver = program("mlserver", "mlserver")
    lines = [
        {"id": str(i), "inputs": [{"name": "rows", "datatype": "FP32", "shape": [1, 2], "data": [row]}]}
        for i, row in enumerate(ROWS)
    ]
    (tmp_path / "in").write_text("".join(json.dumps(line) + "\n" for line in lines))
    at = ["--url", urlsplit(service.url).netloc, "--model-name", "asked", "--workers", "2", "--batch-size", batch]

    run(mlserver, "infer", *at, *more, "-i", tmp_path / "in", "-o", tmp_path / "out")

    answers = sorted(map(json.loads, (tmp_path / "out").read_text().splitlines()), key=lambda answer: int(answer["id"]))
    outputs = [{output["name"]: output["data"] for output in answer["outputs"]} for answer in answers]
    # in JSON the client sends every digit of its input; in binary it sends float32
    labels, probabilities = native(http, np.array(ROWS, np.float32 if more else np.float64))
    assert labels == [output["label"][0] for output in outputs]
    assert probabilities.tobytes() == np.array([output["probabilities"] for output in outputs], np.float32).tobytes()
