"""NVIDIA's own client of the Open Inference Protocol, synchronous and asynchronous, against a real service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from app.client import Job
from tests.service import Service
from tests.shared_services import KEY

ROWS = np.array([[0.5, 3.0], [np.nan, 11.0], [5.75, 23.0]], np.float32)
ENCODINGS = [None, "gzip", "deflate"]


@pytest.fixture(scope="module")
def connected(service: Service, versioned: list[Job]) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(urlsplit(service.url).netloc) as client:
        yield client


@pytest.fixture(scope="module")
def expected(http: httpx.Client, versioned: list[Job]) -> tuple[list[str], NDArray[np.float32]]:
    rows = [[None if value != value else value for value in row] for row in ROWS.tolist()]
    answer = http.post("/api/v1/models/versioned/predict", json={"x": rows}).raise_for_status().json()
    return answer["predictions"], np.array(answer["probabilities"], np.float32)


def matrix(is_binary: bool) -> list[triton.InferInput]:
    """Return one tensor of all columns."""
    rows = triton.InferInput("rows", list(ROWS.shape), "FP32")
    return [rows.set_data_from_numpy(ROWS, binary_data=is_binary)]


def columns(is_binary: bool) -> list[triton.InferInput]:
    """Return a tensor for each column, of shape (n,) and (n, 1)."""
    parts: dict[str, NDArray[Any]] = {"a": ROWS[:, 0].copy(), "b": ROWS[:, 1:].astype(np.float64)}
    return [
        triton.InferInput(name, list(part.shape), "FP32" if name == "a" else "FP64").set_data_from_numpy(
            part, binary_data=is_binary
        )
        for name, part in parts.items()
    ]


def wanted(is_binary: bool) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, binary_data=is_binary) for name in ("probabilities", "label")]


def check(result: Any, expected: tuple[list[str], NDArray[np.float32]]) -> None:
    labels, probabilities = expected
    assert labels == [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("label")]
    assert probabilities.tobytes() == result.as_numpy("probabilities").tobytes()
    assert ("versioned", "3", "q") == tuple(
        result.get_response()[name] for name in ("model_name", "model_version", "id")
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("make", [matrix, columns])
def test_it_infers_in_json_and_in_binary(
    connected: triton.InferenceServerClient,
    expected: tuple[list[str], NDArray[np.float32]],
    make: Any,
    encoding: str | None,
) -> None:
    for is_binary in (True, False):
        for outputs in (None, wanted(True), wanted(False)):
            result = connected.infer(
                "versioned",
                make(is_binary),
                outputs=outputs,
                request_id="q",
                request_compression_algorithm=encoding,
            )
            check(result, expected)


def test_it_infers_asynchronously(
    service: Service, versioned: list[Job], expected: tuple[list[str], NDArray[np.float32]]
) -> None:
    async def ask() -> list[Any]:
        async with triton_aio.InferenceServerClient(urlsplit(service.url).netloc) as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("versioned", "1")
            requests = [
                (make(is_binary), outputs)
                for make in (matrix, columns)
                for is_binary in (True, False)
                for outputs in (None, wanted(False))
            ]
            return await asyncio.gather(
                *(client.infer("versioned", inputs, outputs=outputs, request_id="q") for inputs, outputs in requests)
            )

    results = asyncio.run(ask())

    assert 8 == len(results)
    for result in results:
        check(result, expected)


def test_it_reads_the_metadata_of_server_and_model(connected: triton.InferenceServerClient) -> None:
    assert connected.is_server_live()
    assert connected.is_server_ready()
    assert connected.is_model_ready("versioned")
    assert connected.is_model_ready("versioned", "2")
    assert not connected.is_model_ready("versioned", "99")
    assert not connected.is_model_ready("nobody")
    assert "binary_tensor_data" in connected.get_server_metadata()["extensions"]
    assert ["1", "2", "3"] == connected.get_model_metadata("versioned")["versions"]
    assert "TYPE_FP64" == connected.get_model_config("versioned")["input"][0]["data_type"]


def test_it_requests_the_best_classes(
    connected: triton.InferenceServerClient, expected: tuple[list[str], NDArray[np.float32]]
) -> None:
    for is_binary in (True, False):
        best = triton.InferRequestedOutput("probabilities", binary_data=is_binary, class_count=2)

        classes = connected.infer("versioned", matrix(True), outputs=[best]).as_numpy("probabilities")

        assert (3, 2) == classes.shape
        for row, probabilities in zip(classes.tolist(), expected[1], strict=True):
            parts = [(text.decode() if isinstance(text, bytes) else text).split(":") for text in row]
            order = [int(index) for _, index, _ in parts]
            assert sorted(order, key=lambda i: -probabilities[i]) == order
            assert [probabilities[i] for i in order] == [np.float32(value) for value, _, _ in parts]
            assert ["pq"[i] for i in order] == [label for _, _, label in parts]


def test_it_loads_and_unloads_and_reads_the_index(connected: triton.InferenceServerClient, http: httpx.Client) -> None:
    def loaded() -> set[str]:
        return {version["model"] for version in http.get("/api/v1/system").json()["loaded"]}

    connected.load_model("versioned")
    assert "versioned" in loaded()
    connected.unload_model("versioned")
    assert "versioned" not in loaded()
    # the next request loads the model again
    connected.infer("versioned", matrix(True))
    assert "versioned" in loaded()
    index = [entry for entry in connected.get_model_repository_index() if entry["name"] == "versioned"]
    assert [{"name": "versioned", "version": str(n), "state": "READY", "reason": ""} for n in (1, 2, 3)] == index
    with pytest.raises(InferenceServerException, match="made by training"):
        connected.load_model("versioned", config='{"max_batch_size": 8}')
    with pytest.raises(InferenceServerException, match="no model 'nobody'"):
        connected.unload_model("nobody")


def test_it_reads_the_statistics(connected: triton.InferenceServerClient) -> None:
    (before,) = connected.get_inference_statistics("versioned", "2")["model_stats"]

    for _ in range(3):
        connected.infer("versioned", matrix(True), model_version="2")
    with pytest.raises(InferenceServerException, match="at least one row"):
        connected.infer(
            "versioned", [triton.InferInput("a", [0], "FP32").set_data_from_numpy(np.zeros(0, np.float32))], "2"
        )

    (after,) = connected.get_inference_statistics("versioned", "2")["model_stats"]
    assert before["inference_count"] + 9 == after["inference_count"]
    assert before["execution_count"] + 3 == after["execution_count"]
    assert after["last_inference"] >= before["last_inference"]
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert before["inference_stats"][name]["count"] + 3 == after["inference_stats"][name]["count"]
        assert before["inference_stats"][name]["ns"] < after["inference_stats"][name]["ns"]
    assert before["inference_stats"]["fail"]["count"] + 1 == after["inference_stats"]["fail"]["count"]
    every = connected.get_inference_statistics()["model_stats"]
    assert after in every


def test_it_raises_the_errors_of_the_service(connected: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"\[400\] Expected shape \[rows, 2\]"):
        connected.infer(
            "versioned", [triton.InferInput("rows", [1, 3], "FP32").set_data_from_numpy(np.zeros((1, 3), np.float32))]
        )
    with pytest.raises(InferenceServerException, match=r"\[404\] There is no model 'nobody'"):
        connected.infer("nobody", matrix(True))
    with pytest.raises(InferenceServerException, match=r"\[400\] Expected .* an infinite one in row 0"):
        connected.infer(
            "versioned", [triton.InferInput("a", [1], "FP32").set_data_from_numpy(np.array([np.inf], np.float32))]
        )


def test_it_sends_a_key(locked: httpx.Client) -> None:
    with triton.InferenceServerClient(locked.base_url.netloc.decode()) as client:
        assert not client.is_server_ready()
        assert client.is_server_ready(headers={"Authorization": f"Bearer {KEY}"})
        with pytest.raises(InferenceServerException, match=r"\[401\] Expected a key"):
            client.infer("nobody", matrix(True))
        with pytest.raises(InferenceServerException, match=r"\[404\] There is no model"):
            client.infer("nobody", matrix(True), headers={"Authorization": f"Bearer {KEY}"})
