"""Bad input over a real socket: each kind has its status, the response says what was expected and where, nothing is stored."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import numpy as np
import pytest

from app.client import Job
from tests.wire import CSV, JSON, check_problem

pytestmark = pytest.mark.usefixtures("nothing_stored")

DEEP = "[" * 100_000
LONG_NUMBER = "9" * 400
NPZ = {"Content-Type": "application/x-npz"}


def npz(**arrays: Any) -> bytes:
    """Write an NPZ file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


UPLOADS: dict[str, tuple[dict[str, str], bytes | str, int, str, str]] = {
    "an empty file": (CSV, "", 422, "invalid", "empty"),
    "a header only": (CSV, "a,b\n", 422, "invalid", "one row of data"),
    "a blank header": (CSV, "\na,b\n1,2\n", 422, "invalid", "header"),
    "a long row": (CSV, "a,b\n1,x\n1,x,3\n", 422, "invalid", "got 3 in row 1 (line 3)"),
    "a short row": (CSV, "a,b\n1,x\n1\n", 422, "invalid", "got 1 in row 1 (line 3)"),
    "a name twice": (CSV, "a,a\n1,x\n", 422, "invalid", "'a' twice"),
    "broken UTF-8": (CSV, b"a,b\n1,x\n2,\xff\n", 400, "malformed", "byte 0xff in line 3"),
    "a cut character": (CSV, b"a,b\n1,\xe2\x82", 400, "malformed", "inside a character"),
    "an infinite number": (CSV, "a,b\n1,x\ninf,y\n", 422, "invalid", "'a', got an infinite one in row 1"),
    "a number beyond float64": (CSV, "a,b\n1e999,x\n1,y\n", 422, "invalid", "infinite one in row 0"),
    "an infinite array": (NPZ, npz(x=np.array([[np.inf]]), y=np.array([1])), 422, "invalid", "'x0'"),
    "no zip": (NPZ, b"PK\x03\x04 nothing", 400, "malformed", "NPZ"),
    "half a zip": (NPZ, npz(x=np.zeros((9, 2)), y=np.zeros(9))[:-30], 400, "malformed", "NPZ"),
    "pickled objects": (NPZ, npz(x=np.zeros((1, 1)), y=np.array([{}], object)), 400, "malformed", "pickled"),
    "arrays of other names": (NPZ, npz(a=np.zeros(3)), 422, "invalid", "x and y"),
    "a flat x": (NPZ, npz(x=np.zeros(3), y=np.zeros(3)), 422, "invalid", "shape"),
    "a short y": (NPZ, npz(x=np.zeros((3, 1)), y=np.zeros(2)), 422, "invalid", "as many labels as rows"),
    "no JSON": (JSON, "{", 400, "malformed", "JSON"),
    "no JSON at all": (JSON, "", 400, "malformed", "JSON"),
    "NaN": (JSON, '{"x": [[NaN]], "y": [1]}', 400, "malformed", "JSON"),
    "Infinity": (JSON, '{"x": [[-Infinity]], "y": [1]}', 400, "malformed", "JSON"),
    "1e999": (JSON, '{"x": [[1e999]], "y": [1]}', 422, "invalid", "infinity"),
    "400 digits": (JSON, f'{{"x": [[{LONG_NUMBER}]], "y": [1]}}', 422, "invalid", "infinity"),
    "100,000 brackets": (JSON, DEEP, 400, "malformed", "depth"),
    "half a surrogate": (JSON, r'{"columns": {"\ud800": [1]}}', 400, "malformed", "JSON"),
    "a list": (JSON, "[1]", 422, "invalid", "got a list"),
    "another form": (JSON, '{"rows": [1]}', 422, "invalid", "'rows'"),
    "two forms": (JSON, '{"records": [], "columns": {}}', 422, "invalid", "'columns', 'records'"),
    "ragged x": (JSON, '{"x": [[1, 2], [1]], "y": [0, 1]}', 422, "invalid", "got 1 in row 1"),
    "too few labels": (JSON, '{"x": [[1], [2]], "y": [0]}', 422, "invalid", "2 rows and 1 labels"),
    "no records": (JSON, '{"records": []}', 422, "invalid", "none"),
    "a record that is none": (JSON, '{"records": [{"a": 1}, 2]}', 422, "invalid", "record 1"),
    "columns of two lengths": (JSON, '{"columns": {"a": [1, 2], "b": [1]}}', 422, "invalid", "got 1 in 'b'"),
    "an object in a cell": (JSON, '{"columns": {"a": [1, {}]}}', 422, "invalid", "an object in row 1"),
    "booleans among numbers": (JSON, '{"columns": {"a": [1, true]}}', 422, "invalid", "'a', got booleans"),
}


@pytest.mark.parametrize("case", UPLOADS)
def test_a_bad_upload_is_told_what_is_wrong_and_where(http: httpx.Client, case: str) -> None:
    headers, body, status, code, words = UPLOADS[case]

    answer = http.post("/api/v1/datasets", content=body, headers=headers)

    assert words in check_problem(answer, status, code)["detail"]


TABLE = {"columns": {"a": [1, 2, 3, 4], "b": ["x", "y", "x", "y"], "c": ["s", "t", "s", "t"]}}
ONE_CLASS = {"columns": {"a": [1, 2, 3], "c": ["s", "s", "s"]}}
TRAININGS: dict[str, tuple[dict[str, Any] | str, int, str, list[Any]]] = {
    "nothing to learn from": ({}, 422, "got neither", []),
    "two sources": ({"dataset": "ds_1", "data": TABLE}, 422, "got both", []),
    "an unknown data set": ({"dataset": "ds_0"}, 404, "'ds_0'", []),
    "a data set that is no id": ({"dataset": 7}, 422, "an id", ["dataset"]),
    "ragged rows": ({"data": {"x": [[1], [1, 2]], "y": [0, 1]}}, 422, "got 2 in row 1", ["x", 1]),
    "one class": ({"data": ONE_CLASS}, 422, "at least 2 classes in column 'c', got 1", ["target"]),
    "a target that is missing": ({"data": TABLE, "target": "d"}, 422, "'d'", ["target"]),
    "a target that is no name": ({"data": TABLE, "target": 3}, 422, "string", ["target"]),
    "an unknown column": ({"data": TABLE, "features": {"exclude": ["d"]}}, 422, "'d'", ["features", "exclude", 0]),
    "no column left": ({"data": TABLE, "features": {"include": []}}, 422, "at least one column", ["features"]),
    "the target as a feature": ({"data": TABLE, "features": {"include": ["c"]}}, 422, "'c'", ["features", "include"]),
    "an unknown field": ({"data": TABLE, "epochs": 3}, 422, "not permitted", ["epochs"]),
    "a text for a number": ({"data": TABLE, "fit": {"epochs": "ten"}}, 422, "", ["fit", "epochs"]),
    "no units": ({"data": TABLE, "network": {"layers": [{"units": 0}]}}, 422, "", ["network", "layers", 0, "units"]),
    "a rate below 0": ({"data": TABLE, "optimizer": {"learning_rate": -1}}, 422, "", ["optimizer", "learning_rate"]),
    "a number for a switch": ({"data": TABLE, "fit": {"shuffle": 1}}, 422, "boolean", ["fit", "shuffle"]),
    "an unknown activation": (
        {"data": TABLE, "network": {"layers": [{"units": 1, "activation": "step"}]}},
        422,
        "relu",
        ["network", "layers", 0, "activation"],
    ),
    "two validations": (
        {"data": TABLE, "validation": {"fraction": 0.5, "dataset": "ds_0"}},
        422,
        "got both",
        ["validation"],
    ),
    "an unknown validation": ({"data": TABLE, "validation": {"dataset": "ds_0"}}, 404, "'ds_0'", []),
    "too long a run": ({"data": TABLE, "fit": {"max_seconds": 1e6}}, 422, "3600", ["fit", "max_seconds"]),
    "a list": ("[]", 422, "object", []),
    "NaN": ('{"data": {"x": [[NaN], [1]], "y": [0, 1]}}', 400, "JSON", []),
    "1e999": ('{"dataset": "ds_0", "fit": {"max_seconds": 1e999}}', 422, "infinity", []),
    "400 digits": (f'{{"dataset": "ds_0", "fit": {{"epochs": {LONG_NUMBER}}}}}', 422, "infinity", []),
    "100,000 brackets": (DEEP, 400, "depth", []),
    "1000 levels of data": ('{"data": {"records": [{"a": ' + "[" * 900 + "]" * 900 + "}]}}", 400, "nested", []),
    "1000 levels of tags": ('{"dataset": "ds_0", "tags": ' + '{"a":' * 900 + "1" + "}" * 901, 400, "nested", []),
}


@pytest.mark.parametrize("case", TRAININGS)
def test_a_bad_training_request_is_told_what_is_wrong_and_where(http: httpx.Client, case: str) -> None:
    body, status, words, loc = TRAININGS[case]
    content = body if isinstance(body, str) else json.dumps(body)

    answer = http.post("/api/v1/models/problems/train", content=content, headers=JSON)

    document = check_problem(answer, status)
    assert words in document["detail"]
    assert not loc or loc in [fault["loc"] for fault in document["errors"]]


PREDICTIONS: dict[str, tuple[dict[str, str], bytes | str, int, str, list[Any]]] = {
    "nothing": (JSON, "{}", 422, '"records"', []),
    "a list": (JSON, "[]", 422, '"records"', []),
    "two forms": (JSON, '{"x": [[1]], "records": [{}]}', 422, '"records"', []),
    "no record": (JSON, '{"records": []}', 422, "at least one", ["records"]),
    "a record that is none": (JSON, '{"records": [{}, 1]}', 422, "record 1", ["records", 1]),
    "a column that is none": (JSON, '{"columns": {"sex": 1}}', 422, "'sex'", ["columns", "sex"]),
    "columns of two lengths": (JSON, '{"columns": {"sex": ["male"], "island": []}}', 422, "[0, 1]", ["columns"]),
    "a short row": (JSON, '{"x": [[1, 2]]}', 422, "got 2 in row 0", ["x", 0]),
    "a row that is none": (JSON, '{"x": [{}]}', 422, "something else in row 0", ["x", 0]),
    "a text for a number": (
        JSON,
        '{"records": [{"bill_length_mm": 40}, {"bill_length_mm": "long"}]}',
        422,
        "in column 'bill_length_mm', got a text in row 1",
        [1, "bill_length_mm"],
    ),
    "a boolean for a number": (JSON, '{"records": [{"body_mass_g": true}]}', 422, "a boolean", [0, "body_mass_g"]),
    "a list for a category": (JSON, '{"records": [{"island": [1]}]}', 422, "a list", [0, "island"]),
    "infinity as text": (JSON, '{"records": [{"body_mass_g": "1e999"}]}', 422, "finite", [0, "body_mass_g"]),
    "NaN": (JSON, '{"records": [{"body_mass_g": NaN}]}', 400, "JSON", []),
    "1e999": (JSON, '{"records": [{"body_mass_g": 1e999}]}', 422, "infinity", []),
    "400 digits": (JSON, f'{{"records": [{{"body_mass_g": {LONG_NUMBER}}}]}}', 422, "infinity", []),
    "100,000 brackets": (JSON, DEEP, 400, "depth", []),
    "an empty CSV": (CSV, "", 422, "header row", []),
    "a header only": (CSV, "island\n", 422, "at least one data row", []),
    "a ragged CSV": (CSV, "island,sex\nDream,male\nDream\n", 422, "got 1 in row 1", ["rows", 1]),
    "a name twice": (CSV, "sex,sex\nmale,male\n", 422, "different column names", []),
    "broken UTF-8": (CSV, b"sex\n\xff\n", 400, "byte 0xff", []),
    "an open quote": (CSV, 'sex\n"male\n', 400, "CSV", []),
    "a text in CSV": (CSV, "body_mass_g\nheavy\n", 422, "a text in row 0", [0, "body_mass_g"]),
}


@pytest.mark.parametrize("case", PREDICTIONS)
def test_bad_rows_are_told_what_is_wrong_and_where(http: httpx.Client, penguins: Job, case: str) -> None:
    headers, body, status, words, loc = PREDICTIONS[case]

    answer = http.post("/api/v1/models/penguins/predict", content=body, headers=headers)

    document = check_problem(answer, status)
    assert words in document["detail"]
    assert not loc or loc in [fault["loc"] for fault in document["errors"]]


EVALUATIONS: dict[str, tuple[dict[str, str], bytes | str, int, str]] = {
    "nothing": (JSON, "{}", 422, '"dataset"'),
    "two sources": (JSON, '{"dataset": "ds_0", "data": {}}', 422, '"dataset"'),
    "another field": (JSON, '{"dataset": "ds_0", "by": "sex"}', 422, '"dataset"'),
    "an unknown data set": (JSON, '{"dataset": "ds_0"}', 404, "'ds_0'"),
    "a data set that is no id": (JSON, '{"dataset": [1]}', 422, "an id"),
    "no target": (CSV, "island,sex\nDream,male\n", 422, "'species'"),
    "a label that the model never saw": (CSV, "island,species\nDream,Rockhopper\n", 422, "'Rockhopper'"),
    "no label": (CSV, "island,species\nDream,NA\n", 422, "labelled row"),
    "a header only": (CSV, "island,species\n", 422, "one row of data"),
    "a text for a number": (CSV, "body_mass_g,species\nheavy,Adelie\nlight,Gentoo\n", 422, "'body_mass_g'"),
    "broken UTF-8": (CSV, b"island,species\n\xff,Adelie\n", 400, "byte 0xff in line 2"),
    "NaN": (JSON, '{"data": {"columns": {"species": [NaN]}}}', 400, "JSON"),
}


@pytest.mark.parametrize("case", EVALUATIONS)
def test_bad_labelled_rows_are_told_what_is_wrong(http: httpx.Client, penguins: Job, case: str) -> None:
    headers, body, status, words = EVALUATIONS[case]

    answer = http.post("/api/v1/models/penguins/evaluate", content=body, headers=headers)

    assert words in check_problem(answer, status)["detail"]


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/vnd.ms-excel", "x" * 4000])
@pytest.mark.parametrize("path", ["datasets", "models/penguins/train", "models/penguins/predict"])
def test_a_content_type_that_is_wrong_or_absent_is_refused(
    http: httpx.Client, penguins: Job, path: str, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}

    answer = http.post(f"/api/v1/{path}", content=b"a,b\n1,2\n", headers=headers)

    assert "Content-Type" in check_problem(answer, 415, "unsupported_media_type")["detail"]


def test_an_encoded_body_is_refused(http: httpx.Client) -> None:
    answer = http.post("/api/v1/datasets", content=b"a,b\n1,2\n", headers={**CSV, "Content-Encoding": "br"})

    check_problem(answer, 415, "unsupported_media_type")


def test_at_most_twenty_faults_in_four_kilobytes_are_listed(http: httpx.Client, penguins: Job) -> None:
    secret = "swordfish" * 30
    records = [{"body_mass_g": secret, "bill_length_mm": secret} for _ in range(500)]

    answer = http.post("/api/v1/models/penguins/predict", json={"records": records})

    document = check_problem(answer, 422, "invalid")
    assert 20 == len(document["errors"])
    assert "swordfish" not in answer.text


@pytest.mark.parametrize("character", ["x", "é", "😀", "\\u0001"])
def test_long_names_make_no_long_answer(http: httpx.Client, character: str) -> None:
    names = ", ".join(f'"{i}{character * 500}"' for i in range(200))
    body = f'{{"data": {{"x": [[1], [2]], "y": [0, 1]}}, "features": {{"include": [{names}]}}}}'

    answer = http.post("/api/v1/models/problems/train", content=body.encode(), headers=JSON)

    check_problem(answer, 422, "invalid")
