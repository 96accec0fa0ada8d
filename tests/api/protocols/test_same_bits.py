"""One row, one answer: the same bits on the native route, TensorFlow Serving's and V2, in JSON and in binary."""

from __future__ import annotations

import csv
import json
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.client import Job
from tests.conftest import PENGUINS
from tests.tensors import Input, as_bytes, as_json, outputs

#: columns of `penguins` without the target, by the type of their cells
TEXTS = ("island", "sex")
NUMBERS = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g", "year")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Real rows, with None for missing cells, and some odd rows."""
    with PENGUINS.open(encoding="utf-8", newline="") as file:
        real = [
            {name: cell if name in TEXTS else float(cell) for name, cell in row.items() if name in TEXTS + NUMBERS}
            if "NA" not in row.values()
            else dict.fromkeys(TEXTS + NUMBERS)
            for row in csv.DictReader(file)
        ]
    assert len({*real[0]}) == 7
    return [*real, {**real[0], "island": "Atlantis"}, {**real[0], "year": 1e30}, {**real[0], "sex": None}]


def native(http: httpx.Client, model: str, body: dict[str, Any]) -> tuple[list[Any], bytes]:
    answer = http.post(f"/api/v1/models/{model}/predict", json=body).raise_for_status().json()
    return answer["predictions"], np.array(answer["probabilities"], np.float32).tobytes()


def v1(http: httpx.Client, model: str, body: dict[str, Any]) -> bytes:
    answer = http.post(f"/v1/models/{model}:predict", content=json.dumps(body))
    assert 200 == answer.status_code, answer.text[:500]
    (rows,) = answer.json().values()
    return np.array(rows, np.float32).tobytes()


def v2(http: httpx.Client, model: str, sent: tuple[bytes, dict[str, str]]) -> tuple[list[Any], bytes]:
    body, headers = sent
    tensors = outputs(http.post(f"/v2/models/{model}/infer", content=body, headers=headers))
    return tensors["label"].tolist(), tensors["probabilities"].tobytes()


def test_real_rows_have_the_same_bits_on_every_protocol(
    http: httpx.Client, penguins: Job, rows: list[dict[str, Any]]
) -> None:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    order = [tensor["name"] for tensor in http.get("/v2/models/penguins").json()["inputs"]]
    lists = [[row[name] for name in order] for row in rows]
    labels, bits = native(http, "penguins", {"records": rows})

    for body in (
        {"instances": rows},
        {"instances": lists},
        {"inputs": columns},
        {"inputs": lists},
        {"inputs": {name: [[cell] for cell in cells] for name, cells in columns.items()}},
    ):
        assert bits == v1(http, "penguins", body)
    for depth in ([], [1]):
        shape = [len(rows), *depth]
        tensors = [Input(name, "BYTES" if name in TEXTS else "FP64", shape, cells) for name, cells in columns.items()]
        for write in (as_json, as_bytes):
            assert (labels, bits) == v2(http, "penguins", write(tensors)), (depth, write)
    results = http.post("/v1/models/penguins:classify", content=json.dumps({"examples": rows})).json()["results"]
    assert bits == np.array([[p for _, p in row] for row in results], np.float32).tobytes()


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    table=st.lists(
        st.tuples(*[st.one_of(st.none(), st.floats(-(2.0**99), 2.0**99, width=32), st.integers(-(2**20), 2**20))] * 2),
        min_size=1,
        max_size=9,
    )
)
def test_any_numbers_have_the_same_bits_on_every_protocol(
    http: httpx.Client, versioned: list[Job], table: list[tuple[float | None, ...]]
) -> None:
    flat = [cell for row in table for cell in row]
    labels, bits = native(http, "versioned", {"x": table})
    raw = http.post(
        "/api/v1/models/versioned/predict",
        content=Input("x", "FP32", [], flat).raw(),
        headers={"Content-Type": "application/octet-stream"},
    )

    # each number is exact in float32
    assert bits == np.array(raw.json()["probabilities"], np.float32).tobytes()
    assert bits == v1(http, "versioned", {"instances": table})
    for datatype in ("FP32", "FP64"):
        matrix = [Input("rows", datatype, [len(table), 2], flat)]
        apart = [Input("ab"[j], datatype, [len(table), 1][: 1 + j], flat[j::2]) for j in (0, 1)]
        for tensors in (matrix, apart):
            for write in (as_json, as_bytes):
                assert (labels, bits) == v2(http, "versioned", write(tensors)), (datatype, write)


@pytest.mark.parametrize("datatype", ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16"])
def test_a_number_is_the_same_in_every_datatype_that_holds_it(
    http: httpx.Client, versioned: list[Job], datatype: str
) -> None:
    values = [0, 3, 24, 100]
    expected = native(http, "versioned", {"x": [values[:2], values[2:]]})

    for write in (as_json, as_bytes):
        assert expected == v2(http, "versioned", write([Input("rows", datatype, [2, 2], values)]))


def test_truth_is_the_same_as_a_boolean_and_as_text(http: httpx.Client, truths: Job) -> None:
    expected = native(http, "truths", {"columns": {"sure": [True, False, None]}})

    for tensor in (Input("sure", "BOOL", [3], [True, False, None]), Input("sure", "BYTES", [3], ["true", "False", ""])):
        assert expected == v2(http, "truths", as_json([tensor]))
    two = Input("sure", "BOOL", [2], [True, False])
    assert native(http, "truths", {"columns": {"sure": [True, False]}}) == v2(http, "truths", as_bytes([two]))


@pytest.fixture(scope="module")
def truths(client: Any) -> Job:
    columns = {"sure": [True, False] * 12, "y": ["p", "q"] * 12}
    job: Job = client.wait(client.train("truths", data={"columns": columns}, target="y", fit={"epochs": 2}))
    return job


def test_a_row_has_the_same_bits_whatever_it_is_sent_with(http: httpx.Client, versioned: list[Job]) -> None:
    values = [float(i) for i in range(128)]
    _, together = v2(http, "versioned", as_bytes([Input("rows", "FP32", [64, 2], values)]))

    alone = [
        v2(http, "versioned", as_bytes([Input("rows", "FP32", [1, 2], values[2 * i : 2 * i + 2])]))[1] for i in range(8)
    ]

    assert together[: len(b"".join(alone))] == b"".join(alone)
