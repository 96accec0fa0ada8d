"""Tensors as the Open Inference Protocol writes them, in JSON or as bytes after the JSON. Knows no model.

Source: Open Inference Protocol, inference_rest.md; Triton's extension_binary_data.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import Invalid

#: datatypes of numbers, and their layout in bytes
NUMBERS = {
    "BOOL": np.dtype("u1"),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
BYTES = "BYTES"
_LENGTH = struct.Struct("<I")

Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class Tensor:
    """Named values, row after row: n, or n × f. None and NaN are missing; values of BYTES are texts."""

    name: str
    shape: tuple[int, ...]
    values: Sequence[Any] | NDArray[Any]


class BinaryTail:
    """The bytes after the JSON of a body, which its tensors take one after the other."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def take(self, size: int, loc: Loc) -> memoryview:
        """Return the next bytes; raises `Invalid` where fewer are left."""
        if size > len(self._data):
            raise Invalid.at(loc, f"Expected {size} more bytes after the JSON, got {len(self._data)}.")
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def check_end(self) -> None:
        """Raise `Invalid` where bytes are left."""
        if self._data:
            raise Invalid(
                f"Expected binary_data_size of the inputs to cover the body, got {len(self._data)} bytes more."
            )


def read_tensor(entry: object, loc: Loc, tail: BinaryTail) -> Tensor:
    """Read one input of a request.

    Args:
        entry: the input's JSON.
        loc: its place in the request, for messages.

    Raises:
        Invalid: the entry is no tensor of one or two dimensions of its datatype; says where.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise Invalid.at(loc, "Expected an input to be an object with a name.")
    name, datatype = entry["name"], entry.get("datatype")
    shown = repr(name[:80])
    if not isinstance(datatype, str) or (datatype != BYTES and datatype not in NUMBERS):
        raise Invalid.at((*loc, "datatype"), f"Expected the datatype of {shown} to be BYTES, {', '.join(NUMBERS)}.")
    shape = _shape(entry.get("shape"), (*loc, "shape"), shown)
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Invalid.at((*loc, "parameters"), f"Expected the parameters of {shown} to be an object.")
    if "shared_memory_region" in parameters:
        raise Invalid.at((*loc, "parameters"), f"Expected the data of {shown} in the body; there is no shared memory.")
    size = parameters.get("binary_data_size")
    if size is None:
        values = _flat(entry.get("data"), shape, (*loc, "data"), shown)
        _check_values(datatype, values, (*loc, "data"), shown)
        return Tensor(name, shape, values)
    if "data" in entry or type(size) is not int or size < 0:
        raise Invalid.at(loc, f"Expected {shown} to have data, or a binary_data_size of at least 0.")
    return Tensor(name, shape, _binary_values(datatype, shape, size, tail, loc, shown))


def _shape(shape: object, loc: Loc, shown: str) -> tuple[int, ...]:
    if isinstance(shape, list) and 1 <= len(shape) <= 2 and all(type(n) is int and n >= 0 for n in shape):
        return tuple(shape)
    raise Invalid.at(loc, f"Expected the shape of {shown} to be [rows] or [rows, columns].")


def _flat(data: object, shape: tuple[int, ...], loc: Loc, shown: str) -> list[Any]:
    """Return the values of a list of values, or of a list of rows."""
    if not isinstance(data, list):
        raise Invalid.at(loc, f"Expected the data of {shown} to be a list.")
    if len(shape) == 2 and any(isinstance(row, list) for row in data):
        for i, row in enumerate(data):
            if not isinstance(row, list) or len(row) != shape[1]:
                raise Invalid.at((*loc, i), f"Expected {shape[1]} values in row {i} of {shown}, got something else.")
        if len(data) != shape[0]:
            raise Invalid.at(loc, f"Expected {shape[0]} rows in {shown}, as its shape says, got {len(data)}.")
        return [value for row in data for value in row]
    if len(data) != math.prod(shape):
        raise Invalid.at(loc, f"Expected {math.prod(shape)} values in {shown}, as its shape says, got {len(data)}.")
    return data


def _check_values(datatype: str, values: list[Any], loc: Loc, shown: str) -> None:
    types = set(map(type, values)) - {type(None)}
    if datatype == BYTES:
        expected: set[type] = {str}
    elif datatype == "BOOL":
        expected = {bool}
    else:
        expected = {int, float} if datatype.startswith("FP") else {int}
    if not types <= expected:
        wrong = next(i for i, value in enumerate(values) if value is not None and type(value) not in expected)
        raise Invalid.at((*loc, wrong), f"Expected values of {datatype} in {shown}, got another at {wrong}.")
    if expected == {int} and types:
        bounds = np.iinfo(NUMBERS[datatype])
        for i, value in enumerate(values):
            if value is not None and not bounds.min <= value <= bounds.max:
                raise Invalid.at((*loc, i), f"Expected values of {datatype} in {shown}, got one beyond it at {i}.")


def _binary_values(
    datatype: str, shape: tuple[int, ...], size: int, tail: BinaryTail, loc: Loc, shown: str
) -> Sequence[Any] | NDArray[Any]:
    """Take a tensor's `size` bytes from the tail, and read its values."""
    count = math.prod(shape)
    if datatype == BYTES:
        return _texts(tail.take(size, loc), count, loc, shown)
    dtype = NUMBERS[datatype]
    if size != count * dtype.itemsize:
        expected = f"{count * dtype.itemsize} bytes for {datatype} of shape {list(shape)}"
        raise Invalid.at(loc, f"Expected binary_data_size of {shown} to be {expected}, got {size}.")
    values: NDArray[Any] = np.frombuffer(tail.take(size, loc), dtype)
    return values != 0 if datatype == "BOOL" else values


def _texts(data: memoryview, count: int, loc: Loc, shown: str) -> list[str]:
    """Read texts in UTF-8, each after its length in 4 bytes."""
    texts: list[str] = []
    end = 0
    while end + _LENGTH.size <= len(data) and len(texts) < count:
        (length,) = _LENGTH.unpack_from(data, end)
        end += _LENGTH.size + length
        if end > len(data):
            break
        try:
            texts.append(str(data[end - length : end], "utf-8"))
        except UnicodeDecodeError as error:
            raise Invalid.at(loc, f"Expected texts in UTF-8 in {shown}, got another at {len(texts)}.") from error
    if end != len(data) or len(texts) != count:
        raise Invalid.at(
            loc, f"Expected {count} texts in {shown}, each after its length in 4 bytes, got something else."
        )
    return texts


def to_bytes(values: Sequence[str] | NDArray[np.float32]) -> bytes:
    """Write FP32 or BYTES values as the bytes that follow a response's JSON."""
    if isinstance(values, np.ndarray):
        return values.astype("<f4", copy=False).tobytes()
    encoded = [text.encode() for text in values]
    return b"".join(part for text in encoded for part in (_LENGTH.pack(len(text)), text))
