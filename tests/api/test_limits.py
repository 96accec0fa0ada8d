"""Every limit of requests at its edge: the last byte, row, column and class that fits, and one more."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest

from tests.conftest import Start
from tests.shared_services import listed
from tests.wire import CSV, JSON, check_problem

UPLOAD = "/api/v1/datasets"
NPZ = {"Content-Type": "application/x-npz"}
NDJSON = {"Content-Type": "application/x-ndjson"}
PARQUET = {"Content-Type": "application/vnd.apache.parquet"}


@pytest.fixture(autouse=True)
def left_as_it_was(limited: httpx.Client) -> Iterator[None]:
    """Delete the data sets that a test adds to the shared service."""
    before = set(listed(limited)["datasets"])
    yield
    for dataset_id in set(listed(limited)["datasets"]) - before:
        limited.delete(f"{UPLOAD}/{dataset_id}").raise_for_status()


def form_of(body: bytes, media: str) -> bytes:
    """Return a form with one file."""
    disposition = 'Content-Disposition: form-data; name="file"'
    return f"--b\r\n{disposition}\r\nContent-Type: {media}\r\n\r\n{body.decode()}\r\n--b--\r\n".encode()


def csv_of(size: int) -> bytes:
    """Return a CSV table of this size in bytes."""
    return b"a,y\n1,p\n2,q\n3," + b"x" * (size - 15) + b"\n"


def json_of(size: int, text: str = '{"columns": {"a": [1, 2], "y": ["p", "q"]}}') -> bytes:
    """Return JSON of this size in bytes."""
    return text.encode().ljust(size)


def whole(body: bytes) -> Any:
    return body


def in_pieces(body: bytes) -> Iterable[bytes]:
    return iter([body[:100], body[100:]])


@pytest.mark.parametrize("cut", [whole, in_pieces])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_sizes_are_limited_to_the_byte(limited: httpx.Client, cut: Callable[[bytes], Any], encoding: str) -> None:
    spec = '{"data": {"columns": {"a": [1, 2, 3, 4], "y": ["p", "q", "p", "q"]}}}'
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    pack = gzip.compress if encoding == "gzip" else bytes
    asks: list[tuple[str, dict[str, str], Callable[[int], bytes], int, tuple[int, ...]]] = [
        (UPLOAD, CSV, csv_of, 6000, (200, 201)),
        (UPLOAD, multipart, lambda size: form_of(csv_of(size), "text/csv"), 6000, (200, 201)),
        (UPLOAD, JSON, json_of, 4000, (200, 201)),
        (
            UPLOAD,
            multipart,
            lambda size: form_of(json_of(size), JSON["Content-Type"]),
            4000,
            (200, 201),
        ),
        ("/api/v1/models/m/train?dry_run=true", JSON, lambda size: json_of(size, spec), 4000, (200,)),
        # the model does not exist: a body within the limit is answered 404
        ("/api/v1/models/m/predict", JSON, lambda size: json_of(size, '{"x": [[1]]}'), 1000, (404,)),
        ("/api/v1/models/m/predict", CSV, csv_of, 1000, (404,)),
    ]

    for path, headers, make, limit, expected in asks:
        coded = {**headers, "Content-Encoding": encoding}
        fits = limited.post(path, content=cut(pack(make(limit))), headers=coded)
        assert fits.status_code in expected, (path, fits.text)
        over = limited.post(path, content=cut(pack(make(limit + 1))), headers=coded)
        assert f"at most {limit} bytes" in check_problem(over, 413, "too_large")["detail"], path


def tables(rows: int, columns: int) -> list[tuple[dict[str, str], bytes]]:
    """Return a table of this shape in every format."""
    cells = {f"c{i}": [i] * rows for i in range(columns)}
    records = [dict.fromkeys(cells, 1)] * rows
    frame, x = pl.DataFrame(cells), np.zeros((rows, columns - 1))
    files = [io.BytesIO() for _ in range(4)]
    np.savez(files[0], x=x, y=np.zeros(rows))
    frame.write_parquet(files[1])
    frame.write_ipc(files[2])
    frame.write_ipc_stream(files[3])
    arrow = "application/vnd.apache.arrow"
    return [
        (CSV, frame.write_csv().encode()),
        ({"Content-Type": "text/tab-separated-values"}, frame.write_csv(separator="\t").encode()),
        (JSON, json.dumps({"columns": cells}).encode()),
        (JSON, json.dumps({"records": records}).encode()),
        (JSON, json.dumps({"x": x.tolist(), "y": [0] * rows}).encode()),
        (NDJSON, "\n".join(json.dumps(record) for record in records).encode()),
        *zip(
            (NPZ, PARQUET, {"Content-Type": f"{arrow}.file"}, {"Content-Type": f"{arrow}.stream"}),
            (file.getvalue() for file in files),
            strict=True,
        ),
    ]


@pytest.mark.parametrize(("fits", "over"), [((40, 2), (41, 2)), ((2, 6), (2, 7))], ids=["rows", "columns"])
def test_rows_and_columns_are_limited_to_the_last_one(
    limited: httpx.Client, fits: tuple[int, int], over: tuple[int, int]
) -> None:
    for (headers, good), (_, bad) in zip(tables(*fits), tables(*over), strict=True):
        answer = limited.post(UPLOAD, content=good, headers=headers)
        assert answer.status_code in (200, 201), (headers, answer.text)
        check_problem(limited.post(UPLOAD, content=bad, headers=headers), 413, "too_large")


@pytest.mark.parametrize(("classes", "status"), [(3, 200), (4, 422)])
def test_classes_are_limited_to_the_last_one(limited: httpx.Client, classes: int, status: int) -> None:
    data = {"columns": {"a": list(range(20)), "y": [f"class {i % classes}" for i in range(20)]}}

    answer = limited.post("/api/v1/models/m/train", params={"dry_run": "true"}, json={"data": data})

    assert status == answer.status_code, answer.text


def test_the_limit_of_uploads_holds_for_json_too(start: Start) -> None:
    service = start(workers="0", max_upload_bytes="300")
    spec = '{"data": {"columns": {"a": [1, 2, 3, 4], "y": ["p", "q", "p", "q"]}}}'

    for path, text in ((UPLOAD, spec[9:-1]), ("/api/v1/models/m/train?dry_run=true", spec)):
        fits, over = (
            httpx.post(service.url + path, content=json_of(size, text), headers=JSON, timeout=60) for size in (300, 301)
        )
        assert fits.is_success, fits.text
        check_problem(over, 413, "too_large")
