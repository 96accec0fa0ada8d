"""TensorFlow Serving's bodies as rows: the same rows in each of its forms, and a fact for anything else."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import FitserveError, Invalid
from app.learning.requests.tensorflow_serving import read_classify_request, read_predict_request

NAMES = ["a", "b"]
cells = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
anything = st.recursive(
    cells, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b64", "c"]), inner)
)


def b64(cell: Any) -> Any:
    return {"b64": base64.b64encode(cell.encode()).decode()} if isinstance(cell, str) else cell


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=4))
def test_every_form_is_the_same_rows(table: list[tuple[Any, ...]]) -> None:
    lists = [list(row) for row in table]
    records = [dict(zip(NAMES, row, strict=True)) for row in table]
    columns = {name: [row[j] for row in table] for j, name in enumerate(NAMES)}
    forms: list[tuple[str, Any]] = [
        ("instances", lists),
        ("instances", records),
        ("inputs", lists),
        ("inputs", columns),
    ]
    forms += [("instances", [[[cell] for cell in row] for row in lists])]
    forms += [("inputs", {name: [[cell] for cell in each] for name, each in columns.items()})]
    forms += [("instances", [{"dense_input": row} for row in lists]), ("inputs", {"keras_tensor": lists})]
    forms += [("instances", [[b64(cell) for cell in row] for row in lists])]

    for key, given_rows in forms:
        rows, answer = read_predict_request({key: given_rows}, NAMES)
        assert columns == {name: list(each) for name, each in rows.columns.items()}
        assert len(table) == rows.count
        assert {"instances": "predictions", "inputs": "outputs"}[key] == answer
    examples = [{"b": row[1]} for row in table]
    rows = read_classify_request({"examples": examples, "context": {"a": table[0][0]}}, NAMES)
    assert {"a": [table[0][0]] * len(table), "b": columns["b"]} == {n: list(each) for n, each in rows.columns.items()}


@given(st.dictionaries(st.sampled_from(["instances", "inputs", "examples", "context", "signature_name"]), anything))
def test_anything_is_rows_or_a_fact(document: dict[str, Any]) -> None:
    for read in (read_predict_request, read_classify_request):
        for names in (NAMES, ["a"]):
            try:
                found: Any = read(document, names)
            except FitserveError:
                continue
            rows = found[0] if isinstance(found, tuple) else found
            assert all(len(each) in (0, rows.count) for each in rows.columns.values())


def test_values_alone_are_rows_of_a_model_of_one_column() -> None:
    assert {"a": [1.5, None, "x"]} == read_predict_request({"instances": [1.5, None, {"b64": "eA=="}]}, ["a"])[
        0
    ].columns
    with pytest.raises(Invalid, match="2 values"):
        read_predict_request({"instances": [1.5]}, NAMES)
