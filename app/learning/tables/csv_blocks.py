"""The bytes of a CSV file: whether they are UTF-8, the header record, and blocks that end where a record ends. Knows no columns."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from app.errors import Malformed

#: the longest record; a quote that is never closed would make one record of the rest of the file
MAX_RECORD_BYTES = 64 * 1024**2


def check_utf8(path: Path) -> None:
    """Raise `Malformed` where a file is not UTF-8; says the line."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with path.open("rb") as file:
        while chunk := file.read(1024**2):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line += chunk[: max(error.start, 0)].count(b"\n")
                raise Malformed(
                    f"Expected UTF-8 text, got byte 0x{error.object[error.start]:02x} in line {line}."
                ) from error
            line += chunk.count(b"\n")
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise Malformed(f"Expected UTF-8 text, but the file ends inside a character in line {line}.") from error


def first_record(path: Path) -> tuple[bytes, int]:
    """Return the header's bytes without a byte order mark, and the offset of the first row."""
    lines: list[bytes] = []
    quotes = 0
    with path.open("rb") as file:
        for line in file:
            lines.append(line)
            quotes += line.count(b'"')
            if quotes % 2 == 0:
                break
        return b"".join(lines).removeprefix(codecs.BOM_UTF8), file.tell()


def read_blocks(file: BinaryIO, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Read the rest of a file in blocks that end where a record ends; each comes with its offset.

    Raises:
        Malformed: a record is longer than `MAX_RECORD_BYTES`.
    """
    offset, body = file.tell(), b""
    while chunk := file.read(block_bytes):
        body += chunk
        end = _end_of_last_record(body)
        if end:
            yield offset, body[:end]
            offset, body = offset + end, body[end:]
        elif len(body) > MAX_RECORD_BYTES:
            raise Malformed(f"Expected rows of at most {MAX_RECORD_BYTES} bytes whose quotes are balanced.")
    if body:
        yield offset, body


def _end_of_last_record(body: bytes) -> int:
    """Return the index after the last newline outside of quotes, 0 where there is none."""
    quotes, end = body.count(b'"'), len(body)
    while (newline := body.rfind(b"\n", 0, end)) >= 0:
        quotes -= body.count(b'"', newline, end)
        if quotes % 2 == 0:
            return newline + 1
        end = newline
    return 0


def line_count(body: bytes) -> int:
    """Return the number of line ends, where CR, LF and CRLF are one each."""
    return body.count(b"\n") + body.count(b"\r") - body.count(b"\r\n")
