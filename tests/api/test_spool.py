"""Bodies on their way to the disk: what is written, its digest, and what a request that ends early leaves."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from pathlib import Path

import pytest
from fastapi import Request

from app.api.spool import BLOCK_BYTES, Spooled, settled, spool
from app.serving.admission import Lane

FILE = bytes(range(256)) * (3 * BLOCK_BYTES // 256) + b"the rest"
FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n' + FILE + b"\r\n--b--\r\n"


def receive(path: Path, body: bytes, salt: bytes = b"", **headers: str) -> Spooled:
    """Spool a body that comes in chunks of 64 KB."""
    chunks = [body[at : at + 65_536] for at in range(0, len(body), 65_536)] or [b""]
    messages = [
        {"type": "http.request", "body": chunk, "more_body": at < len(chunks)} for at, chunk in enumerate(chunks, 1)
    ]
    coming = iter(messages)

    async def next_message() -> dict[str, object]:
        return next(coming)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    request = Request({"type": "http", "method": "POST", "headers": raw}, next_message)
    lane = Lane("uploads", 1, 0, seconds=60)
    try:
        return asyncio.run(spool(request, path, len(FILE), lane, salt))
    finally:
        lane.close()


@pytest.mark.parametrize("salt", [b"", b"penguins\n"])
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (FILE, {"content_type": "text/csv"}),
        (FORM, {"content_type": "multipart/form-data; boundary=b"}),
        (gzip.compress(FILE, 1), {"content_type": "text/csv", "content_encoding": "gzip"}),
        (gzip.compress(FORM, 1), {"content_type": "multipart/form-data; boundary=b", "content_encoding": "gzip"}),
    ],
    ids=["plain", "a form", "compressed", "a compressed form"],
)
def test_the_digest_is_that_of_the_salt_and_the_file(
    tmp_path: Path, body: bytes, headers: dict[str, str], salt: bytes
) -> None:
    spooled = receive(tmp_path / "raw", body, salt, **headers)

    assert FILE == (tmp_path / "raw").read_bytes()
    assert Spooled("text/csv", len(FILE), hashlib.sha256(salt + FILE).hexdigest()) == spooled


def test_a_body_of_no_bytes_is_an_empty_file(tmp_path: Path) -> None:
    spooled = receive(tmp_path / "raw", b"", content_type="text/csv")

    assert b"" == (tmp_path / "raw").read_bytes()
    assert Spooled("text/csv", 0, hashlib.sha256().hexdigest()) == spooled


def test_a_cancelled_request_waits_for_its_thread() -> None:
    ended = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        ended.append("work")

    async def cancel() -> None:
        waiting = asyncio.create_task(settled(work()))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        ended.append("request")

    asyncio.run(cancel())

    assert ["work", "request"] == ended
