"""The formats of a prediction: a row has the same bits, label and warnings in all of them; bad bodies are refused."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.client import Client, Job
from tests.forms import (
    ARRAYS,
    EVERY,
    FILE,
    FLOAT32,
    NAMED,
    NPY,
    NPZ,
    PARQUET,
    RAW,
    STREAM,
    TYPED,
    array,
    arrow_file,
    arrow_stream,
    npy,
    npz,
    parquet,
    rows_of,
)
from tests.learning.requests.test_prediction_rows import LIES, columns_of, mutated, numbers, truths, words, zipped
from tests.wire import CSV, JSON, check_problem

ARROW = STREAM
WORDS = ["1", "2.50", "007", "=A1", "True", "a,;|b", "new\nline", "é", "शब्द", "👩‍🚀", None, "x"]
LABELS = ["=1+1", "-2", "é;x", "@"]
MIXED: dict[str, list[Any]] = {
    "number": [0.5, -1e6, None, 3.25, 1e6, -0.0, *range(18)],
    "truth": [True, False, None, *[True, False, False] * 7],
    "wörd": WORDS * 2,
    "label": LABELS * 6,
}
NUMBERS: dict[str, list[Any]] = {
    "x0": [i / 4 for i in range(24)],
    "x1": [None, *range(-11, 12)],
    "y": [0.5, 1.5, -2.5] * 8,
}
MIXED_ROWS: dict[str, list[Any]] = {"number": [1.5, None, 1e9], "truth": [True, None, False], "wörd": ["x", "?", "new"]}
NUMBER_ROWS: dict[str, list[Any]] = {"x0": [1.5, None, 1e9], "x1": [1.0, 2.0, None]}
Answer = tuple[list[Any], bytes, int]


@pytest.fixture(scope="module")
def mixed(client: Client) -> str:
    return _train(client, "codec-mixed", MIXED, "label")


@pytest.fixture(scope="module")
def numeric(client: Client) -> str:
    return _train(client, "codec-numbers", NUMBERS, "y")


def _train(client: Client, name: str, columns: dict[str, list[Any]], target: str) -> str:
    fit = {"epochs": 3, "batch_size": 8}
    spec: dict[str, Any] = {"target": target, "validation": None, "fit": fit}
    return client.wait(client.train(name, dataset=client.upload({"columns": columns}), **spec)).ref


def ask(
    http: httpx.Client, ref: str, body: bytes, content_type: str, accept: str = "application/json", **params: Any
) -> httpx.Response:
    headers = {"Content-Type": content_type, "Accept": accept}
    return http.post(f"/api/v1/models/{ref}/predict", content=body, headers=headers, params=params)


def of_json(answer: httpx.Response, classes: list[Any]) -> Answer:
    body = answer.json()
    assert classes == body["classes"]
    rows = [[np.nan] * len(classes) if row is None else row for row in body["probabilities"]]
    return body["predictions"], np.array(rows, np.float32).tobytes(), body["warnings_total"]


def of_csv(answer: httpx.Response, classes: list[Any]) -> Answer:
    header, *rows = csv.reader(io.StringIO(answer.text, newline=""))
    assert ["prediction", *(f"probability_{label}" for label in classes)] == header
    spelled = {inert(label): label for label in classes} | {"": None}
    probabilities = np.array([[cell or "nan" for cell in row[1:]] for row in rows], np.float32)
    return [spelled[row[0]] for row in rows], probabilities.tobytes(), total(answer)


def inert(label: Any) -> str:
    return f"'{label}" if isinstance(label, str) and label[0] in "=+-@" else str(label)


def of_npz(answer: httpx.Response, classes: list[Any]) -> Answer:
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as file:
        arrays = dict(file)
    assert {"predictions", "classes", "valid", "probabilities"} == set(arrays)
    assert classes == arrays["classes"].tolist()
    labels = [label if ok else None for label, ok in zip(arrays["predictions"].tolist(), arrays["valid"], strict=True)]
    assert np.float32 == arrays["probabilities"].dtype
    return labels, arrays["probabilities"].tobytes(), total(answer)


def of_arrow(answer: httpx.Response, classes: list[Any]) -> Answer:
    frame = pl.read_ipc_stream(answer.content)
    names = [f"probability_{label}" for label in classes]
    assert {"prediction": pl.Series(classes).dtype, **dict.fromkeys(names, pl.Float32)} == dict(frame.schema)
    rows = frame.select(names).fill_null(float("nan")).to_numpy()
    return frame["prediction"].to_list(), np.ascontiguousarray(rows).tobytes(), total(answer)


def total(answer: httpx.Response) -> int:
    return int(answer.headers["x-warnings-total"])


OUT: dict[str, Callable[[httpx.Response, list[Any]], Answer]] = {
    "application/json": of_json,
    "text/csv": of_csv,
    NPZ: of_npz,
    ARROW: of_arrow,
}


def check_every_form(http: httpx.Client, ref: str, columns: dict[str, list[Any]], forms: dict[str, Any]) -> None:
    """Assert that rows in these formats have the same answer, also in each format of an answer; bad rows are null."""
    in_json = ask(http, ref, EVERY["columns"][1](columns), "application/json", on_error="null")
    expected = in_json.raise_for_status().json()

    for name, (content_type, write) in forms.items():
        answer = ask(http, ref, write(columns), content_type, on_error="null")
        assert in_json.content == answer.content, name
        assert ref == answer.headers["x-model"]
    for accept, read in OUT.items():
        answer = ask(http, ref, EVERY["comma"][1](columns), "text/csv", accept, on_error="null").raise_for_status()
        assert accept == answer.headers["content-type"].partition(";")[0]
        assert ref == answer.headers["x-model"]
        assert of_json(in_json, expected["classes"]) == read(answer, expected["classes"]), accept


@settings(max_examples=12, deadline=None)
@given(columns=columns_of(number=numbers, truth=truths, wörd=words))
def test_mixed_rows_are_answered_the_same_in_every_format(
    http: httpx.Client, mixed: str, columns: dict[str, list[Any]]
) -> None:
    check_every_form(http, mixed, columns, EVERY)


single = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=12, deadline=None)
@given(columns=columns_of(x0={"float": single, "int": st.integers(-(2**24), 2**24)}, x1={"float": single}))
def test_numbers_are_answered_the_same_in_every_format(
    http: httpx.Client, numeric: str, columns: dict[str, list[Any]]
) -> None:
    check_every_form(http, numeric, columns, {**EVERY, **ARRAYS, **FLOAT32})


def test_an_unknown_column_is_named_the_same_in_every_format(http: httpx.Client, mixed: str) -> None:
    columns = {**MIXED_ROWS, "é'; --": [1, 2, 3], "label": ["@", "?", "nobody"]}

    answers = [ask(http, mixed, write(columns), form).json() for form, write in {**NAMED, **TYPED}.values()]

    # the target does not count as an unknown column
    assert [answers[0]] * len(answers) == answers
    assert ["é'; --"] == [
        warning["column"] for warning in answers[0]["warnings"] if warning["code"] == "unknown_column"
    ]
    assert answers[0]["warnings_total"] == len(answers[0]["warnings"]) == 6


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/*", "text/csv"),
        ("TEXT/CSV; charset=utf-8", "text/csv"),
        ("text/csv;q=0.5, application/json;q=0.4", "text/csv"),
        ("text/csv;Q=0.5, application/x-npz; q=0.6", NPZ),
        ("application/json;q=0, */*;q=0.1", "text/csv"),
        ("text/csv;q=0, text/*, application/x-npz;q=0.3", NPZ),
        ("text/html, image/*, application/vnd.apache.arrow.stream;q=0.001", ARROW),
        ("*/*, text/csv", "text/csv"),
        ("", "application/json"),
        (",", "application/json"),
        ("text/html", None),
        ("application/json;q=0", None),
        ("text/csv;q=2", None),
        ("application/vnd.apache.parquet", None),
    ],
)
def test_an_answer_has_the_format_that_accept_prefers(
    http: httpx.Client, mixed: str, accept: str, expected: str | None
) -> None:
    answer = ask(http, mixed, EVERY["records"][1](MIXED_ROWS), "application/json", accept)

    if expected is None:
        detail = check_problem(answer, 406, "not_acceptable")["detail"]
        assert all(form in detail for form in OUT)
    else:
        assert (200, expected) == (answer.status_code, answer.headers["content-type"].partition(";")[0])


@pytest.mark.parametrize("k", [1, 2, 99])
def test_top_k_gives_the_same_classes_in_every_format(http: httpx.Client, mixed: str, k: int) -> None:
    body = EVERY["columns"][1](MIXED_ROWS | {"number": [1, "bad", 3]})
    answers = {form: ask(http, mixed, body, "application/json", form, top_k=k, on_error="null") for form in OUT}

    top = answers["application/json"].json()["top"]
    _, *lines = csv.reader(io.StringIO(answers["text/csv"].text, newline=""))
    frame = pl.read_ipc_stream(answers[ARROW].content)
    with np.load(io.BytesIO(answers[NPZ].content)) as file:
        arrays = dict(file)

    assert top[1] is None
    assert {""} == set(lines[1])
    assert [None] * (1 + 2 * min(k, 4)) == list(frame.row(1))
    assert [True, False, True] == arrays["valid"].tolist()
    assert np.isnan(arrays["probabilities"][1]).all()
    for i in (0, 2):
        pairs = [(entry["class"], np.float32(entry["probability"])) for entry in top[i]]
        assert min(k, 4) == len(pairs)
        flat = [top[i][0]["class"], *(value for pair in pairs for value in pair)]
        assert flat == list(frame.row(i))
        assert [inert(v) for v in flat] == lines[i]
        assert pairs == list(zip(arrays["top_classes"][i].tolist(), arrays["probabilities"][i], strict=True))
        assert arrays["predictions"][i] == top[i][0]["class"]


@pytest.mark.parametrize(
    ("ref", "expected", "spelled", "kind"),
    [
        ("labelled@1", ["3", "7"], ["3", "7"], "U"),
        ("labelled@2", [False, True], ["false", "true"], "b"),
        ("labelled@3", [3, 7], ["3", "7"], "i"),
        ("codec-numbers", [-2.5, 0.5, 1.5], ["-2.5", "0.5", "1.5"], "f"),
    ],
)
def test_labels_keep_their_type_in_every_format(
    http: httpx.Client, labelled: Job, numeric: str, ref: str, expected: list[Any], spelled: list[str], kind: str
) -> None:
    rows = [[x, y] for x in (0.0, 3.0, 5.75) for y in (-11.0, 0.5, 11.0)]
    answers = {form: ask(http, ref, json.dumps({"x": rows}).encode(), "application/json", form) for form in OUT}

    labels = answers["application/json"].json()["predictions"]
    frame = pl.read_ipc_stream(answers[ARROW].content)
    header, *lines = csv.reader(io.StringIO(answers["text/csv"].text, newline=""))
    with np.load(io.BytesIO(answers[NPZ].content)) as file:
        assert (kind, kind) == (file["classes"].dtype.kind, file["predictions"].dtype.kind)
        assert json.dumps(labels) == json.dumps(file["predictions"].tolist())

    assert {type(label) for label in labels} == {type(expected[0])}
    assert json.dumps(labels) == json.dumps(frame["prediction"].to_list())
    assert [f"probability_{label}" for label in spelled] == header[1:] == frame.columns[1:]
    # a negative number has no quote before it, as a text with a minus would
    assert [spelled[expected.index(label)] for label in labels] == [line[0] for line in lines]


@pytest.mark.parametrize("form", EVERY)
def test_a_bad_row_is_refused_or_null_and_other_rows_are_unchanged(http: httpx.Client, mixed: str, form: str) -> None:
    content_type, write = EVERY[form]
    good = MIXED_ROWS | {"number": ["1.5", "2", "1e9"]}
    bad = good | {"number": ["1.5", "secret", "1e9"]}

    refused = check_problem(ask(http, mixed, write(bad), content_type), 422, "invalid")
    expected = ask(http, mixed, write(good), content_type).json()
    with_null = ask(http, mixed, write(bad), content_type, on_error="null").json()

    assert "got a text in row 1" in refused["detail"]
    assert "secret" not in json.dumps(refused)
    assert [1, "number"] == refused["errors"][0]["loc"]
    assert [with_null["predictions"][1], with_null["probabilities"][1]] == [None, None]
    for i in (0, 2):
        assert expected["predictions"][i] == with_null["predictions"][i]
        assert expected["probabilities"][i] == with_null["probabilities"][i]
    others = [warning for warning in expected["warnings"] if warning["row"] != 1]
    assert (
        sorted([*others, {"row": 1, "column": "number", "code": "invalid"}], key=lambda warning: warning["row"])
        == with_null["warnings"]
    )


def test_all_rows_may_be_bad_and_more_than_a_hundred(http: httpx.Client, numeric: str) -> None:
    body = json.dumps({"columns": {"x0": ["bad"] * 150, "x1": [True] * 150}}).encode()
    answers = {form: ask(http, numeric, body, "application/json", form, on_error="null") for form in OUT}

    in_json = answers["application/json"].json()
    assert (100, 300) == (len(in_json["warnings"]), in_json["warnings_total"])
    assert [i // 2 for i in range(100)] == [warning["row"] for warning in in_json["warnings"]]
    assert [None] * 150 == in_json["predictions"] == in_json["probabilities"]
    for form, read in OUT.items():
        labels, probabilities, count = read(answers[form], in_json["classes"])
        assert ([None] * 150, 300) == (labels, count)
        assert np.isnan(np.frombuffer(probabilities, np.float32)).all()
    refused = check_problem(ask(http, numeric, body, "application/json"), 422, "invalid")
    assert [[i // 2, f"x{i % 2}"] for i in range(len(refused["errors"]))] == [
        fault["loc"] for fault in refused["errors"]
    ]


def test_categories_in_arrays_are_numbers_and_float32_has_none(http: httpx.Client, mixed: str) -> None:
    columns: dict[str, list[Any]] = {"number": [1.0, None], "truth": [1.0, 0.0], "wörd": [2.5, None]}
    expected = ask(http, mixed, EVERY["x"][1](columns), "application/json").json()

    assert expected == ask(http, mixed, npy(array(columns)), NPY).json()
    assert expected == ask(http, mixed, npz(x=array(columns)), NPZ).json()
    refused = check_problem(ask(http, mixed, array(columns, "<f4").tobytes(), RAW), 422, "invalid")
    assert "'wörd' has categories" in refused["detail"]


def bad_bodies() -> Iterator[tuple[str, str, bytes, int]]:
    """Yield bodies that no format allows: a name, the Content-Type, the bytes, and the status."""
    for name, body in LIES.items():
        yield f"NPY: {name}", NPY, body, 400
    yield "NPZ: objects", NPZ, npz(x=np.array([[1, "x"]], object)), 400
    yield "NPZ: a bomb", NPZ, zipped(bytes(9 * 1024**2)), 413
    yield "NPZ: no x", NPZ, npz(y=np.ones((1, 2))), 422
    for shape in ((0, 2), (1, 3), (2,), (2, 2, 2)):
        yield f"NPY: {shape}", NPY, npy(np.ones(shape)), 422
    for size in (0, 7, 12):
        yield f"float32: {size} bytes", RAW, bytes(size), 422
    yield "float32: infinite", RAW, np.full((1, 2), np.inf, "<f4").tobytes(), 422
    yield "NDJSON: a broken line", "application/x-ndjson", b'{"x0": 1}\n{"x0": \n', 400
    yield "NDJSON: infinite", "application/x-ndjson", b'{"x0": 1e999}\n', 422
    yield "CSV: equal names", "text/csv", b"x0,x0 \n1,2\n", 422
    yield "CSV: a control character", "text/csv", b"x0,x1\x1b[2J\n1,2\n", 422
    yield "JSON: a control character", "application/json", b'{"records": [{"x0": 1, "x\\u0000": 2}]}', 422
    yield "CSV: not UTF-8", "text/csv", b"x0,x1\n1,\xff\n", 400
    yield "Parquet: nested", PARQUET, parquet({"x0": [[1]], "x1": [1]}), 422
    yield "Parquet: infinite", PARQUET, parquet({"x0": [float("inf")], "x1": [1]}), 422
    yield "Parquet: a long run", PARQUET, parquet({"x0": [1.0] * 5_000_000}), 413
    yield "Arrow: one long text", FILE, arrow_file({"x0": ["x" * 100_000] * 400}), 413
    yield "Parquet: no rows", PARQUET, parquet({"x0": [], "x1": []}), 422
    yield "Parquet: an Arrow stream", PARQUET, arrow_stream(NUMBER_ROWS), 400
    yield "Arrow: a control character", STREAM, arrow_stream({"x0": [1], "a\tb": [1]}), 422
    yield "Arrow: nothing", FILE, b"", 400
    yield "another type", "text/plain", b"1", 415
    yield "no type", "", b"1", 415


BAD = list(bad_bodies())


@pytest.mark.parametrize(("content_type", "body", "status"), [body[1:] for body in BAD], ids=[body[0] for body in BAD])
def test_bad_input_is_refused(http: httpx.Client, numeric: str, content_type: str, body: bytes, status: int) -> None:
    check_problem(ask(http, numeric, body, content_type, on_error="null" if status in (400, 413) else "fail"), status)


@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(sorted({**EVERY, **ARRAYS, **FLOAT32})), seed=st.integers(0, 2**32), is_cut=st.booleans())
def test_a_changed_body_is_read_or_refused(
    http: httpx.Client, numeric: str, form: str, seed: int, is_cut: bool
) -> None:
    rng = random.Random(seed)
    content_type, write = {**EVERY, **ARRAYS, **FLOAT32}[form]
    body = write(NUMBER_ROWS)
    body = body[: rng.randrange(len(body))] if is_cut else mutated(body, rng)

    answer = ask(http, numeric, body, content_type)

    if answer.status_code != 200:
        assert answer.status_code in (400, 413, 422)
        check_problem(answer, answer.status_code)


def evaluate(http: httpx.Client, ref: str, body: bytes, content_type: str, **params: str) -> httpx.Response:
    headers = {"Content-Type": content_type}
    return http.post(f"/api/v1/models/{ref}/evaluate", content=body, headers=headers, params=params)


def in_data(body: bytes) -> bytes:
    return b'{"data": ' + body + b"}"


def test_an_evaluation_gives_the_same_figures_in_every_format(http: httpx.Client, mixed: str, numeric: str) -> None:
    x, y = array({name: NUMBERS[name] for name in ("x0", "x1")}), np.array(NUMBERS["y"])

    for ref, columns in ((mixed, MIXED | {"number": [*MIXED["number"][:-1], -1.0]}), (numeric, NUMBERS)):
        floats = {n: [float(v) if type(v) is int else v for v in cells] for n, cells in columns.items()}
        answers = {
            name: evaluate(http, ref, in_data(write(floats)) if form == "application/json" else write(floats), form)
            for name, (form, write) in {**NAMED, **TYPED}.items()
        }
        if ref == numeric:
            answers["npz"] = evaluate(http, ref, npz(x=x, y=y), NPZ)
            matrix = {"x": rows_of({"x0": NUMBERS["x0"], "x1": NUMBERS["x1"]}), "y": NUMBERS["y"]}
            answers["matrix"] = evaluate(http, ref, in_data(json.dumps(matrix).encode()), "application/json")
        documents = {name: answer.raise_for_status().json() for name, answer in answers.items()}
        assert dict.fromkeys(documents, documents["records"]) == documents
        assert (24, None) == (documents["records"]["rows"], documents["records"].get("slices"))


@pytest.mark.parametrize("by", ["truth", "wörd", "label", "group"])
def test_slices_have_the_figures_of_their_rows(http: httpx.Client, mixed: str, by: str) -> None:
    columns = MIXED | {"group": [2, 1, None] * 8, "label": [None, *MIXED["label"][1:]]}
    rows = [dict(zip(columns, row, strict=True)) for row in rows_of(columns)]

    def scored(chosen: list[dict[str, Any]], **params: str) -> dict[str, Any]:
        body = json.dumps({"data": {"records": chosen}}).encode()
        scores: dict[str, Any] = evaluate(http, mixed, body, "application/json", **params).raise_for_status().json()
        return scores

    whole = scored(rows, by=by)
    slices = whole.pop("slices")

    assert whole == scored(rows)
    labelled_rows = [row for row in rows if row["label"] is not None]
    present = {json.dumps(row[by]): row[by] for row in labelled_rows}
    assert present == {json.dumps(figures["value"]): figures["value"] for figures in slices}
    for figures in slices:
        alone = scored([row for row in labelled_rows if row[by] == figures["value"]])
        # the bits of a network may depend on the number of rows that are computed at once
        close = {name: pytest.approx(v, rel=1e-5) if type(v) is float else v for name, v in alone.items()}
        assert {name: close[name] for name in figures if name != "value"} == {
            name: value for name, value in figures.items() if name != "value"
        }


def test_several_accept_headers_are_one_list(http: httpx.Client, mixed: str) -> None:
    headers = [("Content-Type", "text/csv"), ("Accept", "text/html"), ("Accept", "application/x-npz")]

    answer = http.post(f"/api/v1/models/{mixed}/predict", content=b"number\n1\n", headers=headers)

    assert (200, NPZ) == (answer.status_code, answer.headers["content-type"])


def test_slices_by_an_unknown_column_or_over_100_values_are_refused(http: httpx.Client, numeric: str) -> None:
    def sliced(rows: int, by: str) -> httpx.Response:
        lines = "".join(f"{i},{i % 3},{i % 2 + 0.5}\n" for i in range(rows))
        return evaluate(http, numeric, f"x0,x1,y\n{lines}".encode(), CSV["Content-Type"], by=by)

    assert 100 == len(sliced(100, "x0").raise_for_status().json()["slices"])
    assert "at most 100 values" in check_problem(sliced(101, "x0"), 422, "invalid")["detail"]
    for unknown in ("nobody", "", "X0"):
        assert ["by"] == check_problem(sliced(3, unknown), 422, "invalid")["errors"][0]["loc"]


def test_an_unknown_value_of_on_error_is_refused(http: httpx.Client, numeric: str) -> None:
    body = EVERY["records"][1](NUMBER_ROWS)

    for on_error in ("", "NULL", "skip"):
        check_problem(ask(http, numeric, body, JSON["Content-Type"], on_error=on_error), 422, "invalid")
