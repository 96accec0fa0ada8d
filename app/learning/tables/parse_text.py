"""Small parsers that tables and predictions share: JSON, column names, the delimiter of CSV, the header of NPY."""

from __future__ import annotations

import tokenize
from collections.abc import Iterable
from typing import IO, Any

import numpy as np
import orjson

from app.errors import Invalid, Malformed

DELIMITERS = ",;\t|"
#: errors that numpy raises on a malformed NPY header, a part of which `ast.literal_eval` parses
NPY_HEADER_ERRORS = (
    *(ValueError, KeyError, TypeError, EOFError, SyntaxError, RecursionError, MemoryError),
    tokenize.TokenError,
)


def parse_json(text: bytes | str, expected: str) -> Any:
    """Parse JSON.

    Args:
        expected: what the text should be, for the message.

    Raises:
        Malformed: the text is not JSON.
        Invalid: a number in it is too large for float64.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if "infinity" in str(error):
            raise Invalid(f"Expected finite numbers, got another in {expected}: {error}.") from error
        raise Malformed(f"Expected {expected}: {error}.") from error


def clean_names(header: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the names of columns without blanks around them, and warnings about absent ones.

    Raises:
        Invalid: two names are equal, or one cannot be printed.
    """
    names: dict[str, None] = {}
    warnings = []
    for i, raw in enumerate(header):
        name = raw.strip()
        if not name:
            name = f"unnamed_{i}"
            warnings.append(f"column {i} has no name in the header; it is called {name!r}")
        if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name) or len(name) > 200:
            raise Invalid.at(
                ("columns", i), f"Expected column names of at most 200 printable characters; column {i} has another."
            )
        if name in names:
            raise Invalid.at(("columns", i), f"Expected different column names, got {name!r} twice.")
        names[name] = None
    return list(names), warnings


def csv_delimiter(header: str, prefer: str | None = None) -> str:
    """Return the delimiter of a CSV header: `prefer` if it occurs outside of quotes, else the most frequent one."""
    unquoted = "".join(part for i, part in enumerate(header.split('"')) if i % 2 == 0)
    return prefer if prefer is not None and prefer in unquoted else max(DELIMITERS, key=unquoted.count)


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an NPY array: its shape, whether it is in Fortran's order, and its type.

    Raises:
        NPY_HEADER_ERRORS: the header is malformed.
    """
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, is_fortran, dtype = readers[version](file)
    return shape, is_fortran, dtype
