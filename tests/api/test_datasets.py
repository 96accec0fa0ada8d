"""Routes of data sets: every format, statistics, corrected kinds, and a delete that harms no job."""

from __future__ import annotations

import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.shared_services import listed
from tests.wire import CSV, JSON, check_problem

FIELDS = {
    "id",
    "name",
    "status",
    "format",
    "rows",
    "size_bytes",
    "sha256",
    "columns",
    "warnings",
    "error",
    "created_at",
}
COLUMN_FIELDS = {"name", "kind", "missing", "unique", "min", "max", "mean", "std", "top", "warnings"}
TABLE = "zip,height,flag,town\n01234,1.5,true,Åre\n01235,NA,false,Oslo\n01234,2.5,?,\n"


def upload(http: httpx.Client, body: bytes | str, headers: dict[str, str] = CSV, **params: str) -> httpx.Response:
    """Upload a table."""
    return http.post("/api/v1/datasets", content=body, headers=headers, params=params)


def test_an_upload_is_described_in_full(http: httpx.Client) -> None:
    answer = upload(http, TABLE, name="Towns, élan")

    dataset = answer.json()
    assert 201 == answer.status_code
    assert FIELDS == set(dataset)
    assert f"/api/v1/datasets/{dataset['id']}" == answer.headers["location"]
    assert dataset["id"].startswith("ds_")
    assert ("Towns, élan", "ready", "csv", 3) == tuple(dataset[n] for n in ("name", "status", "format", "rows"))
    assert (len(TABLE.encode()), hashlib.sha256(TABLE.encode()).hexdigest()) == (
        dataset["size_bytes"],
        dataset["sha256"],
    )
    assert dataset["created_at"].endswith("Z")
    columns = {column["name"]: column for column in dataset["columns"]}
    assert all(COLUMN_FIELDS == set(column) for column in dataset["columns"])
    assert ["numeric", "numeric", "boolean", "categorical"] == [column["kind"] for column in columns.values()]
    assert [0, 1, 1, 1] == [column["missing"] for column in columns.values()]
    height = {name: columns["height"][name] for name in ("min", "max", "mean", "std", "unique")}
    assert {"min": 1.5, "max": 2.5, "mean": 2.0, "std": 0.5, "unique": 2} == height
    assert columns["town"]["mean"] is None
    assert dataset == http.get(answer.headers["location"]).json()


def test_the_same_bytes_give_the_same_data_set(http: httpx.Client) -> None:
    first = upload(http, "same,y\n1,a\n2,b\n", name="first")
    before = listed(http)

    again = upload(http, "same,y\n1,a\n2,b\n", name="second")

    assert (201, 200) == (first.status_code, again.status_code)
    assert first.json() == again.json()
    assert first.headers["location"] == again.headers["location"]
    assert before == listed(http)


def test_twenty_uploads_of_the_same_bytes_at_once_make_one_data_set(http: httpx.Client) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: upload(http, "at,once\n1,a\n2,b\n"), range(20)))

    assert [200] * 19 + [201] == sorted(answer.status_code for answer in answers)
    assert 1 == len({answer.json()["id"] for answer in answers})


def npz(**arrays: Any) -> bytes:
    """Return an NPZ file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


X, Y = np.array([[0.5, np.nan], [2.5, 3.0]]), np.array([7, 9])
CELLS: dict[str, tuple[dict[str, str], bytes | str, list[str], list[list[Any]]]] = {
    "csv": (CSV, 'a,"b;c"\n1," x"\n,y\n', ["a", "b;c"], [[1, "x"], [None, "y"]]),
    "csv with a mark and semicolons": (CSV, "\ufeffa;b\r\n0.5;true\r\n", ["a", "b"], [[0.5, "true"]]),
    "tsv": ({"Content-Type": "text/tab-separated-values; charset=utf-8"}, "a\tb\n1\tx\n", ["a", "b"], [[1, "x"]]),
    "records": (JSON, '{"records": [{"a": 1, "b": true}, {"b": false}]}', ["a", "b"], [[1, True], [None, False]]),
    "columns": (JSON, '{"columns": {"a": [1.5, null], "b": ["1", "2"]}}', ["a", "b"], [[1.5, "1"], [None, "2"]]),
    "matrix": (JSON, '{"x": [[1, 2.5], [3, null]], "y": ["n", "p"]}', ["x0", "x1", "y"], [[1, 2.5, "n"], [3, None, "p"]]),
    "one-hot": (JSON, '{"x": [[1], [2]], "y": [[0, 1], [1, 0]]}', ["x0", "y"], [[1, 1], [2, 0]]),
    "npz": ({"Content-Type": "application/x-npz"}, npz(x=X, y=Y), ["x0", "x1", "y"], [[0.5, None, 7], [2.5, 3.0, 9]]),
}  # fmt: skip


@pytest.mark.parametrize("form", CELLS)
def test_rows_come_back_as_they_were_posted_in_every_form(http: httpx.Client, form: str) -> None:
    headers, body, names, rows = CELLS[form]
    dataset = upload(http, body, headers).raise_for_status().json()

    answer = http.get(f"/api/v1/datasets/{dataset['id']}/rows").raise_for_status()

    assert {"columns": names, "rows": rows} == answer.json()
    # compared as JSON: 1 == True == 1.0 in Python
    assert json.dumps(rows) == json.dumps(answer.json()["rows"])


def test_rows_are_limited(http: httpx.Client) -> None:
    dataset = upload(http, "n\n" + "".join(f"{i}\n" for i in range(60))).json()
    path = f"/api/v1/datasets/{dataset['id']}/rows"

    assert [[0], [1]] == http.get(path, params={"limit": 2}).json()["rows"]
    assert 50 == len(http.get(path).json()["rows"])
    assert 60 == len(http.get(path, params={"limit": 500}).json()["rows"])
    for limit in ("0", "501", "x", "1e1"):
        check_problem(http.get(path, params={"limit": limit}), 422, "invalid")


def test_a_corrected_kind_is_read_from_the_same_bytes(http: httpx.Client) -> None:
    dataset = upload(http, "code,y\n01,a\n02,b\n01,a\n").json()
    path = f"/api/v1/datasets/{dataset['id']}"

    answer = http.patch(path, json={"columns": {"code": {"kind": "categorical"}}})

    assert 200 == answer.status_code
    changed = answer.json()
    assert ["categorical", "categorical"] == [column["kind"] for column in changed["columns"]]
    assert [["01", 2], ["02", 1]] == changed["columns"][0]["top"]
    assert (dataset["id"], dataset["sha256"]) == (changed["id"], changed["sha256"])
    assert changed == http.get(path).json()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"columns": {"nobody": {"kind": "numeric"}}}, 422, "'nobody'"),
        ({"columns": {"word": {"kind": "numeric"}}}, 422, "row 0"),
        ({"columns": {"word": {"kind": "boolean"}}}, 422, "'word'"),
        ({"columns": {"word": {"kind": "colour"}}}, 422, "categorical"),
        ({"columns": {"word": {"kind": "datetime"}}}, 422, "Expected numeric"),
        ({"columns": {"word": {}}}, 422, "required"),
        ({"columns": {"word": {"kind": "text", "unit": "m"}}}, 422, "not permitted"),
        ({"columns": {}}, 422, "at least 1"),
        ({}, 422, "required"),
        ([], 422, ""),
        ('{"columns": NaN}', 422, ""),
        ('{"columns": ', 400, "JSON"),
        ("[" * 100_000, 400, "JSON"),
        (r'{"columns": {"\ud800": {"kind": "text"}}}', 400, "JSON"),
        (b"\xff\xfe", 400, "JSON"),
    ],
)
def test_a_correction_that_cannot_be_made_changes_nothing(
    http: httpx.Client, body: Any, status: int, words: str
) -> None:
    dataset = upload(http, "word,y\nx,a\nz,b\nx,a\n").json()
    path = f"/api/v1/datasets/{dataset['id']}"
    content = body if isinstance(body, str | bytes) else json.dumps(body)

    answer = http.patch(path, content=content, headers=JSON)

    assert words in check_problem(answer, status)["detail"]
    assert dataset == http.get(path).json()


def test_a_page_without_a_json_header_can_correct_nothing(http: httpx.Client) -> None:
    answer = http.patch("/api/v1/datasets/ds_0", content=b"{}", headers={"Content-Type": "text/plain"})

    check_problem(answer, 415, "unsupported_media_type")


def test_pages_go_through_all_newest_first(limited: httpx.Client) -> None:
    ids = [upload(limited, f"a,b\n{i},x\n").json()["id"] for i in range(5)]

    first = limited.get("/api/v1/datasets", params={"limit": 2}).json()
    second = limited.get("/api/v1/datasets", params={"limit": 2, "after": first["next"]}).json()

    assert ids[:0:-1] == [item["id"] for item in (*first["items"], *second["items"])]
    last = limited.get("/api/v1/datasets", params={"after": ids[0]}).json()
    assert {"items": [], "next": None} == last
    for dataset_id in ids:
        assert 204 == limited.delete(f"/api/v1/datasets/{dataset_id}").status_code


@pytest.mark.parametrize("params", [{"limit": "0"}, {"limit": "501"}, {"limit": "many"}, {"after": "x" * 201}])
@pytest.mark.parametrize("noun", ["datasets", "jobs", "models"])
def test_a_page_that_is_none_is_422(http: httpx.Client, noun: str, params: dict[str, str]) -> None:
    document = check_problem(http.get(f"/api/v1/{noun}", params=params), 422, "invalid")

    assert [["query", *params]] == [fault["loc"] for fault in document["errors"]]


@pytest.mark.parametrize("name", ["", "x" * 201, "a\x00b", "a\nb"])
def test_a_name_that_is_none_is_422(http: httpx.Client, name: str) -> None:
    before = listed(http)

    check_problem(upload(http, "own,y\n1,a\n", name=name), 422, "invalid")

    assert before == listed(http)


def test_a_table_beyond_the_limits_is_413(limited: httpx.Client) -> None:
    before = listed(limited)
    wide, long = "a,b,c,d,e,f,g\n1,2,3,4,5,6,7\n", "a,b\n" + "1,x\n" * 41
    wide_json = json.dumps({"records": [{f"c{i}": i for i in range(7)}]})
    wide_npz = npz(x=np.zeros((2, 6)), y=np.zeros(2))

    answers = {
        "6 columns, got 7": [
            upload(limited, wide),
            upload(limited, wide_npz, {"Content-Type": "application/x-npz"}),
        ],
        "6 columns, got more": [upload(limited, wide_json, JSON)],
        "40 rows, got 41": [upload(limited, long), upload(limited, json.dumps({"columns": {"a": [1] * 41}}), JSON)],
    }

    for words, same_answers in answers.items():
        for answer in same_answers:
            assert words in check_problem(answer, 413, "too_large")["detail"]
    assert before == listed(limited)


def test_a_deleted_data_set_is_gone_and_can_come_back(http: httpx.Client) -> None:
    dataset = upload(http, "gone,y\n1,a\n2,b\n").json()
    path = f"/api/v1/datasets/{dataset['id']}"

    answer = http.delete(path)

    assert (204, b"") == (answer.status_code, answer.content)
    for gone in (http.get(path), http.delete(path), http.get(f"{path}/rows")):
        check_problem(gone, 404, "not_found")
    assert 201 == upload(http, "gone,y\n1,a\n2,b\n").status_code


def test_a_data_set_that_a_queued_job_needs_stays(limited: httpx.Client) -> None:
    dataset = upload(limited, "a,y\n1,p\n2,q\n3,p\n4,q\n").json()
    job = limited.post("/api/v1/models/keeper/train", json={"dataset": dataset["id"]}).json()
    path = f"/api/v1/datasets/{dataset['id']}"

    check_problem(limited.delete(path), 409, "conflict")

    assert limited.get(path).is_success
    limited.post(f"/api/v1/jobs/{job['id']}/cancel").raise_for_status()
    assert 204 == limited.delete(path).status_code
