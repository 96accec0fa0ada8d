"""Bodies as forms and as compressed streams, also at the limits of their sizes."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from backports import zstd
from fastapi import Request

from app.api.spool import spool
from app.client import Job
from app.errors import TooLarge
from app.serving.admission import Lane
from tests.service import Service
from tests.shared_services import listed
from tests.wire import CSV, JSON, check_problem, exchange, head

UPLOAD = "/api/v1/datasets"
TABLE = b"a,y\n1,p\n2,q\n3,p\n"
PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "x-gzip": gzip.compress, "zstd": zstd.compress}


def form(*parts: str, boundary: str = "b", ending: str = "--b--\r\n") -> bytes:
    """Return a form; each part is its headers, a blank line and its data."""
    lines = [f"--{boundary}\r\n{part}\r\n" for part in parts]
    return ("".join(lines) + ending).encode()


def part(name: str = "file", file: str = "", media: str = "", data: str = TABLE.decode()) -> str:
    """Return one part of a form."""
    disposition = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
    return "\r\n".join([disposition, *([f"Content-Type: {media}"] if media else []), "", data])


def send(http: httpx.Client, body: bytes, boundary: str = "b", **headers: str) -> httpx.Response:
    """Send a form."""
    content_type = f"multipart/form-data; boundary={boundary}"
    return http.post(UPLOAD, content=body, headers={"Content-Type": content_type, **headers})


@pytest.mark.parametrize(
    ("file", "media", "form_name"),
    [
        ("", "text/csv", "csv"),
        ("table", "text/csv; charset=utf-8", "csv"),
        ("table.CSV", "", "csv"),
        ("table.csv", "application/octet-stream", "csv"),
        ("C:\\tables\\table.csv", "", "csv"),
        ("table.parquet", "Text/CSV", "csv"),
        ("../../table.csv", "", "csv"),
    ],
)
def test_a_forms_file_has_its_own_type_or_that_of_its_extension(
    http: httpx.Client, file: str, media: str, form_name: str
) -> None:
    direct = http.post(UPLOAD, content=TABLE, headers=CSV).raise_for_status().json()

    answer = send(http, form(part(file=file, media=media)))

    assert (200, direct) == (answer.status_code, answer.json())
    assert form_name == direct["format"]


@pytest.mark.parametrize(("file", "media"), [("", ""), ("table", ""), ("table.xlsx", ""), ("table.csv", "image/png")])
def test_a_forms_file_of_no_known_type_is_415(http: httpx.Client, nothing_stored: None, file: str, media: str) -> None:
    check_problem(send(http, form(part(file=file, media=media))), 415, "unsupported_media_type")


def test_a_form_as_a_client_sends_it_is_read(http: httpx.Client) -> None:
    body = io.BytesIO()
    pl.DataFrame({"form": [1, 2], "y": ["p", "q"]}).write_parquet(body)

    answer = http.post(UPLOAD, files={"file": ("größe.parquet", body.getvalue())})

    assert (201, "parquet", 2) == (answer.status_code, answer.json()["format"], answer.json()["rows"])


GOOD = part(media="text/csv")
FORMS: dict[str, tuple[bytes, int, str]] = {
    "two parts": (form(GOOD, GOOD), 422, "got more parts"),
    "another name": (form(part("table", media="text/csv")), 422, "a part of another name"),
    "no name": (form(f"Content-Type: text/csv\r\n\r\n{TABLE.decode()}"), 422, "a part of another name"),
    "no part": (form(), 400, "cut off or empty"),
    "no end": (form(GOOD, ending=""), 400, "cut off or empty"),
    "cut in a boundary": (form(GOOD)[:-4], 400, "cut off or empty"),
    "cut in a head": (form(GOOD)[:20], 400, "cut off or empty"),
    "another boundary": (form(GOOD, boundary="c"), 400, "broken"),
    "a preamble": (b"this is a form\r\n" + form(GOOD), 400, "broken"),
    "a huge header": (form(f"X-Large: {'a' * 100_000}\r\n{GOOD}"), 400, "broken"),
    "many headers": (form("".join(f"X-{i}: a\r\n" for i in range(1000)) + GOOD), 400, "broken"),
    "a header of no name": (form(f": a\r\n{GOOD}"), 400, "broken"),
    "no form": (TABLE, 400, "broken"),
    "nothing": (b"", 400, "cut off or empty"),
}


@pytest.mark.parametrize(("body", "status", "words"), FORMS.values(), ids=FORMS)
def test_a_broken_form_is_refused(
    http: httpx.Client, service: Service, nothing_stored: None, body: bytes, status: int, words: str
) -> None:
    assert words in check_problem(send(http, body), status)["detail"]

    assert not list((service.data_dir / "staging").glob("request*"))


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", 'multipart/form-data; boundary=""', "multipart/form-data; boundary=" + "b" * 71],
)
def test_a_form_without_a_boundary_is_400(http: httpx.Client, nothing_stored: None, content_type: str) -> None:
    answer = http.post(UPLOAD, content=form(GOOD), headers={"Content-Type": content_type})

    assert "boundary" in check_problem(answer, 400, "malformed")["detail"]


def test_text_around_a_form_is_ignored(http: httpx.Client) -> None:
    direct = http.post(UPLOAD, content=TABLE, headers=CSV).raise_for_status().json()

    for body in (b"\r\n\r\n" + form(GOOD), form(GOOD) + b"an epilogue\r\n", form(GOOD, ending="--b--")):
        assert direct == send(http, body).raise_for_status().json()


def test_a_form_may_come_in_any_pieces(service: Service) -> None:
    body = form(GOOD)
    chunks = b"".join(b"1\r\n" + body[i : i + 1] + b"\r\n" for i in range(len(body))) + b"0\r\n\r\n"
    headers = ("Content-Type: multipart/form-data; boundary=b", "Transfer-Encoding: chunked")

    answer = exchange(service.url, head(service.url, "POST", UPLOAD, *headers) + chunks)

    assert answer.status_code in (200, 201)
    assert len(TABLE) == json.loads(answer.content)["size_bytes"]


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "zstd", "identity", ""])
@pytest.mark.parametrize("is_form", [False, True])
def test_a_compressed_upload_is_the_same_data_set(http: httpx.Client, encoding: str, is_form: bool) -> None:
    direct = http.post(UPLOAD, content=TABLE, headers=CSV).raise_for_status().json()
    body = PACKERS.get(encoding.lower(), bytes)(form(GOOD) if is_form else TABLE)
    headers = {"Content-Type": "multipart/form-data; boundary=b"} if is_form else CSV

    whole = http.post(UPLOAD, content=body, headers={**headers, "Content-Encoding": encoding})
    pieces = http.post(
        UPLOAD,
        content=(body[i : i + 7] for i in range(0, len(body), 7)),
        headers={**headers, "Content-Encoding": encoding},
    )

    assert direct == whole.json() == pieces.json()


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_several_members_are_one_stream(http: httpx.Client, encoding: str) -> None:
    direct = http.post(UPLOAD, content=TABLE, headers=CSV).raise_for_status().json()
    pack = PACKERS[encoding]

    answer = http.post(
        UPLOAD,
        content=pack(TABLE[:5]) + pack(b"") + pack(TABLE[5:]) + pack(b""),
        headers={**CSV, "Content-Encoding": encoding},
    )

    assert direct == answer.json()


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body[:-1],
        lambda body: body[:-12],
        lambda body: body[:3],
        lambda body: body[:0],
        lambda body: body + b"garbage",
        lambda body: body + b"\0",
        lambda body: body[:-9] + bytes([body[-9] ^ 0xFF]) + body[-8:],
        lambda body: TABLE[: len(body)],
        lambda body: body + body[:-5],
    ],
    ids=[
        "a byte short",
        "cut off",
        "a head",
        "nothing",
        "garbage after",
        "a zero after",
        "changed",
        "plain",
        "a second one cut off",
    ],
)
def test_a_broken_stream_is_400(
    http: httpx.Client, nothing_stored: None, encoding: str, spoil: Callable[[bytes], bytes]
) -> None:
    body = spoil(PACKERS[encoding](b"broken,y\n" + b"1,p\n" * 50))

    check_problem(http.post(UPLOAD, content=body, headers={**CSV, "Content-Encoding": encoding}), 400, "malformed")


@pytest.mark.parametrize(
    "encoding", ["gzip, gzip", "gzip,zstd", "br", "gzip, deflate", "compress", "gzip;q=1", "x" * 500]
)
def test_an_unknown_encoding_is_415(http: httpx.Client, nothing_stored: None, encoding: str) -> None:
    body = gzip.compress(gzip.compress(TABLE))

    answer = http.post(UPLOAD, content=body, headers={**CSV, "Content-Encoding": encoding})

    assert "Content-Encoding" in check_problem(answer, 415, "unsupported_media_type")["detail"]


def test_an_encoding_named_in_two_lines_is_two_encodings(service: Service, nothing_stored: None) -> None:
    body = gzip.compress(gzip.compress(TABLE))
    lines = ("Content-Type: text/csv", f"Content-Length: {len(body)}", *("Content-Encoding: gzip",) * 2)

    check_problem(exchange(service.url, head(service.url, "POST", UPLOAD, *lines) + body), 415)


def test_a_stream_with_a_huge_window_is_refused(http: httpx.Client, nothing_stored: None) -> None:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 30, zstd.CompressionParameter.content_size_flag: 0}
    packer = zstd.ZstdCompressor(options=options)
    body = packer.compress(TABLE) + packer.flush()

    check_problem(http.post(UPLOAD, content=body, headers={**CSV, "Content-Encoding": "zstd"}), 400, "malformed")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_is_413_at_the_limit(limited: httpx.Client, encoding: str) -> None:
    before, bomb = listed(limited), PACKERS[encoding](bytes(5_000_000))
    assert len(bomb) < 6000
    coded = {"Content-Encoding": encoding}

    answers = [
        limited.post(UPLOAD, content=bomb, headers={**CSV, **coded}),
        limited.post(UPLOAD, content=iter([bomb[:100], bomb[100:]]), headers={**CSV, **coded}),
        send(limited, PACKERS[encoding](form(part(media="text/csv", data="0" * 5_000_000))), **coded),
        limited.post("/api/v1/models/m/train", content=PACKERS[encoding](bytes(2_000_000)), headers={**JSON, **coded}),
        limited.post("/api/v1/models/m/predict", content=PACKERS[encoding](bytes(400_000)), headers={**JSON, **coded}),
        limited.patch(f"{UPLOAD}/ds_0", content=bomb, headers={**JSON, **coded}),
    ]

    for answer in answers:
        assert "at most" in check_problem(answer, 413, "too_large")["detail"]
    assert before == listed(limited)


def test_a_stream_of_nothing_has_its_limit_too(limited: httpx.Client) -> None:
    empty = gzip.compress(b"") * 400

    answer = limited.post(UPLOAD, content=iter([empty]), headers={**CSV, "Content-Encoding": "gzip"})

    check_problem(answer, 413, "too_large")


@pytest.mark.parametrize("is_form", [False, True])
def test_the_disk_holds_no_more_of_a_bomb_than_the_limit(tmp_path: Path, is_form: bool) -> None:
    data = bytes(50_000_000)
    body = gzip.compress(b"--b\r\n" + GOOD.encode() + data if is_form else data)
    headers = [
        (b"content-type", b"multipart/form-data; boundary=b" if is_form else b"text/csv"),
        (b"content-encoding", b"gzip"),
    ]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)

    with pytest.raises(TooLarge):
        asyncio.run(spool(request, tmp_path / "raw", 3_000_000, Lane("uploads", 1, 0, seconds=60)))

    assert (tmp_path / "raw").stat().st_size <= 3_000_000


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_every_body_may_be_compressed(http: httpx.Client, penguins: Job, encoding: str) -> None:
    rows = {"columns": {"a": [1, 2] * 10, "y": ["p", "q"] * 10}}
    features = {"records": [{"island": "Dream", "bill_length_mm": 40.5}]}
    document = http.get("/api/v1/models/penguins/versions/1").json()
    labels = {"columns": {i["name"]: [None] * 2 for i in document["inputs"]} | {"species": document["classes"][:2]}}
    asks: list[tuple[str, str, dict[str, str], bytes]] = [
        ("POST", "/api/v1/models/packed/train?dry_run=true", JSON, json.dumps({"data": rows}).encode()),
        ("POST", "/api/v1/models/penguins/predict?on_error=null", JSON, json.dumps(features).encode()),
        ("POST", "/api/v1/models/penguins/evaluate", JSON, json.dumps({"data": labels}).encode()),
    ]

    for method, path, headers, body in asks:
        plain = http.request(method, path, content=body, headers=headers)
        packed = http.request(
            method, path, content=PACKERS[encoding](body), headers={**headers, "Content-Encoding": encoding}
        )
        assert 200 == plain.status_code, plain.text
        assert plain.json() == packed.json(), path


@pytest.mark.parametrize("path", ["train", "evaluate"])
def test_a_large_body_without_data_is_refused_and_not_a_fault(http: httpx.Client, penguins: Job, path: str) -> None:
    body = b'{"x": [' + b"1," * 2_000_000 + b"1]}"

    answer = http.post(f"/api/v1/models/penguins/{path}", content=body, headers={"Content-Type": "application/json"})

    assert "beside data" in check_problem(answer, 413, "too_large")["detail"]
