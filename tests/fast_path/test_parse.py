"""Matrices without a Python object for each number: plain bodies are read, and others are left to the route."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from app.fast_path.open_inference import read_matrix
from app.fast_path.parse import MatrixReader

X = np.random.default_rng(0).normal(size=(3, 4)).round(4)
NAMES = ["a", "b", "c", "d"]


def tensor(**other: Any) -> dict[str, Any]:
    return {"name": "m", "datatype": "FP64", "shape": [3, 4], "data": X.ravel().tolist(), **other}


def request(**other: Any) -> bytes:
    return json.dumps({"inputs": [tensor()], **other}).encode()


@pytest.mark.parametrize("key", ["x", "instances"])
def test_rows_are_read(key: str) -> None:
    found = MatrixReader().read_json(json.dumps({key: X.tolist()}).encode(), key, 4)

    assert found is not None
    assert X.tobytes() == found.tobytes()


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@pytest.mark.parametrize("data", [X.tolist(), X.ravel().tolist()])
def test_a_tensor_is_read_with_the_other_members_of_the_request(datatype: str, data: list[Any]) -> None:
    body = {"id": "7", "inputs": [tensor(datatype=datatype, data=data)], "outputs": [{"name": "label"}]}

    found = MatrixReader().read_tensor(json.dumps(body).encode(), NAMES)

    assert found is not None
    assert X.tobytes() == found[0].tobytes()
    assert {"id": "7", "outputs": [{"name": "label"}]} == found[1]


@pytest.mark.parametrize(
    "body",
    [
        request(x=1),
        request(outputs=None),
        request(parameters={"a": [1]}),
        json.dumps({"inputs": [tensor(name="a")]}).encode(),
        json.dumps({"inputs": [tensor(name=1)]}).encode(),
        json.dumps({"inputs": [tensor(datatype="INT64")]}).encode(),
        json.dumps({"inputs": [tensor(shape=[4, 3])]}).encode(),
        json.dumps({"inputs": [tensor(shape=[12])]}).encode(),
        json.dumps({"inputs": [tensor(data=[*X.ravel().tolist()[:-1], [1]])]}).encode(),
        json.dumps({"inputs": [tensor(), tensor(name="n")]}).encode(),
        request().replace(b'"shape"', b'"name"', 1),
        request()[:-1] + b',"inputs":[]}',
        b" " + request(),
        request()[:-1],
        b"",
    ],
)
def test_a_body_that_is_not_plain_is_left_to_the_route(body: bytes) -> None:
    assert MatrixReader().read_tensor(body, NAMES) is None


def test_a_matrix_in_bytes_is_read_in_place() -> None:
    head = {**tensor(), "datatype": "FP32", "parameters": {"binary_data_size": 48}}
    del head["data"]
    text = json.dumps({"inputs": [head]}).encode()
    data = X.astype("<f4").tobytes()

    found = read_matrix(text + data, len(text), NAMES, MatrixReader())

    assert found is not None
    assert data == found[0].tobytes()
    assert read_matrix(text + data[:-1], len(text), NAMES, MatrixReader()) is None
