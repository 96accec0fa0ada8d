"""Bodies in NPY and NPZ to one array, which is never larger than the bytes that came or the limit. Knows no rows."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import Invalid, Malformed, TooLarge
from app.learning.tables.parse_text import NPY_HEADER_ERRORS, read_npy_header


def read_npy(body: bytes) -> NDArray[Any]:
    """Read an array of plain numbers of any shape, or raise `Malformed`."""
    # numpy's own reader would allocate the size that the header declares before it reads
    file = io.BytesIO(body)
    try:
        shape, is_fortran, dtype = read_npy_header(file)
    except NPY_HEADER_ERRORS as error:
        raise Malformed("Expected an NPY array of plain numbers.") from error
    if dtype.kind not in "fiub" or dtype.subdtype or min(shape, default=0) < 0:
        raise Malformed(f"Expected an NPY array of plain numbers, got {str(dtype)[:40]}.")
    if math.prod(shape) * dtype.itemsize != len(body) - file.tell():
        raise Malformed("Expected an NPY array of plain numbers, as many as its header says.")
    x: NDArray[Any] = np.frombuffer(file.read(), dtype)
    return x.reshape(shape, order="F" if is_fortran else "C")


def read_npz(body: bytes, max_bytes: int) -> NDArray[Any]:
    """Read the one array, `x`, of an NPZ file.

    Raises:
        TooLarge: the array would unpack to more than `max_bytes`.
        Malformed: the file cannot be read to its end.
        Invalid: the file has other arrays.
    """
    return read_npy(_unzipped(body, max_bytes))


def _unzipped(body: bytes, max_bytes: int) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            names = archive.namelist()
            if names != ["x.npy"]:
                came = ", ".join(repr(name[:40]) for name in names[:5]) or "none"
                raise Invalid(f"Expected one array, x, got {came}.")
            if archive.getinfo("x.npy").file_size > max_bytes:
                raise TooLarge(f"Expected an array of at most {max_bytes} bytes.")
            if archive.getinfo("x.npy").compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Malformed("Expected an NPZ file as NumPy writes it, stored or deflated.")
            with archive.open("x.npy") as member:
                return member.read(max_bytes)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
        raise Malformed("Expected an NPZ file that could be read to its end.") from error
