"""Small parsers that tables and predictions share: JSON, the delimiter of a CSV header, the header of an NPY array."""

from __future__ import annotations

import tokenize
from typing import IO, Any

import numpy as np
import orjson

from app.errors import Invalid, Malformed

DELIMITERS = ",;\t|"


def load_json(text: bytes | str, expected: str) -> Any:
    """Read JSON.

    Args:
        expected: what it should be, for the message.

    Raises:
        Malformed: it is not JSON.
        Invalid: a number in it is too large for float64.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if "infinity" in str(error):
            raise Invalid(f"Expected finite numbers, got another in {expected}: {error}.") from error
        raise Malformed(f"Expected {expected}: {error}.") from error


def sniff(header: str, prefer: str | None = None) -> str:
    """Give the delimiter of a CSV header: the preferred one if it occurs outside of quotes, else the most frequent."""
    bare = "".join(part for i, part in enumerate(header.split('"')) if i % 2 == 0)
    return prefer if prefer is not None and prefer in bare else max(DELIMITERS, key=bare.count)


#: what numpy raises on a header that is none, of which `ast.literal_eval` reads a part
NO_HEADER = (ValueError, KeyError, TypeError, EOFError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError)


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an NPY array: its shape, whether it is in Fortran's order, and its type.

    Raises:
        whatever NumPy does where there is none.
    """
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, is_fortran, dtype = read(file)
    return shape, is_fortran, dtype
