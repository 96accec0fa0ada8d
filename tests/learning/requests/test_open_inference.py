"""Tensors in JSON and in bytes are the same rows, and what is none is a fact, whatever its bytes are."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import FitserveError, Invalid
from app.learning.requests.open_inference import RequestedOutput, read_infer_request
from app.learning.requests.open_inference_response import InferResponse, write_infer_response
from app.learning.requests.prediction_rows import Rows
from tests.tensors import LENGTH, TYPES, Input, as_bytes, as_json, texts

NAMES = ["a", "b"]


def values_of(datatype: str) -> st.SearchStrategy[Any]:
    """Give what a datatype holds."""
    if datatype == "BYTES":
        return st.text()
    if datatype == "BOOL":
        return st.booleans()
    if datatype.startswith("FP"):
        return st.floats(allow_nan=False, allow_infinity=False, width=int(datatype[2:]))  # type: ignore[arg-type]
    bounds = np.iinfo(TYPES[datatype])
    return st.integers(int(bounds.min), int(bounds.max))


@st.composite
def tables(draw: st.DrawFn) -> list[Input]:
    """Make the tensors of one request: a matrix, or columns."""
    rows = draw(st.integers(1, 4))
    if draw(st.booleans()):
        datatype = draw(st.sampled_from([*TYPES, "BYTES"]))
        cells = st.lists(values_of(datatype), min_size=2 * rows, max_size=2 * rows)
        return [Input("of all columns", datatype, [rows, 2], draw(cells))]
    made = []
    for name in draw(st.sampled_from([["a"], ["b", "a"], ["a", "unknown"]])):
        datatype = draw(st.sampled_from([*TYPES, "BYTES"]))
        cells = st.lists(values_of(datatype), min_size=rows, max_size=rows)
        made.append(Input(name, datatype, draw(st.sampled_from([[rows], [rows, 1]])), draw(cells)))
    return made


def read(sent: tuple[bytes, dict[str, str]]) -> Rows:
    body, headers = sent
    return read_infer_request(body, int(headers[LENGTH]) if headers else None, NAMES).rows


def lists(rows: Rows) -> dict[str, list[Any]]:
    return {
        name: cells.tolist() if isinstance(cells, np.ndarray) else list(cells) for name, cells in rows.columns.items()
    }


@given(tables())
def test_json_and_bytes_are_the_same_rows(tensors: list[Input]) -> None:
    by_json, by_bytes = read(as_json(tensors)), read(as_bytes(tensors))

    if tensors[0].name in NAMES:
        expected = {each.name: each.values for each in tensors}
    else:
        expected = {name: tensors[0].values[j::2] for j, name in enumerate(NAMES)}
    assert expected == lists(by_json) == lists(by_bytes)
    assert tensors[0].shape[0] == by_json.count == by_bytes.count


def test_nested_data_is_flat_data() -> None:
    head = b'{"inputs": [{"name": "m", "datatype": "FP32", "shape": [2, 2], "data": '

    assert lists(read((head + b"[[1, 2], [3, 4]]}]}", {}))) == lists(read((head + b"[1, 2, 3, 4]}]}", {})))


def test_changed_bytes_are_rows_or_a_fact() -> None:
    chosen = random.Random(3)
    tensors = [Input("a", "FP32", [3], [1, 2, 3]), Input("b", "BYTES", [3, 1], ["x", "", "é"])]
    for body, headers in (as_bytes(tensors), as_json(tensors)):
        for _ in range(2000):
            changed = bytearray(body)
            for _ in range(chosen.randint(1, 4)):
                at = chosen.randrange(len(changed))
                changed[at : at + chosen.randint(0, 2)] = chosen.randbytes(chosen.randint(0, 2))
            length = {name: str(int(value) + chosen.randint(-2, 2)) for name, value in headers.items()}
            with suppress(FitserveError):
                read((bytes(changed), length))


ANSWER = InferResponse(["p", "é"], np.array([[0.75, 0.25], [0.1, 0.9]], np.float32), ["p", "é"])


@pytest.mark.parametrize("is_binary", [True, False])
def test_an_answer_has_the_outputs_that_were_asked_for_in_their_order(is_binary: bool) -> None:
    asked = [RequestedOutput("probabilities", is_binary), RequestedOutput("label", not is_binary)]

    body, length = write_infer_response(ANSWER, asked, {"model_name": "m"})

    assert length is not None
    text, tail = body[:length], body[length:]
    if is_binary:
        assert ANSWER.probabilities.tobytes() == tail
        assert b'"data":["p","\xc3\xa9"]' in text
    else:
        assert ["p", "é"] == texts(tail)
        assert b'"data":[0.75,0.25,0.1,0.9]' in text


def test_more_classes_than_there_are_is_all_of_them() -> None:
    body, _ = write_infer_response(ANSWER, [RequestedOutput("probabilities", is_binary=False, top=9)], {})

    assert b'"shape":[2,2],"data":["0.75:0:p","0.25:1:\xc3\xa9","0.9:1:\xc3\xa9","0.1:0:p"]' in body


def test_a_number_beyond_its_datatype_is_refused_where_it_stands() -> None:
    with pytest.raises(Invalid) as caught:
        read(as_json([Input("a", "INT8", [3], [1, None, 128])]))

    assert ("inputs", 0, "data", 2) == caught.value.faults[0].loc
