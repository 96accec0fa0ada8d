"""Requests of the Open Inference Protocol whose one tensor is a matrix of numbers. Knows neither HTTP nor a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from app.fast_path.parse import MatrixReader
from app.learning.encoding.numeric_inputs import Matrix
from app.learning.requests.json_with_nan import parse_json_with_nan
from app.learning.requests.open_inference import RequestedOutput, read_outputs
from app.learning.requests.open_inference_tensors import NUMBERS

#: longest JSON before a matrix that is kept to be recognised, in bytes
MAX_KNOWN_BYTES = 2048


def read_matrix(
    body: bytes, json_bytes: int | None, inputs: Sequence[str], reader: MatrixReader
) -> tuple[Matrix, tuple[str | None, tuple[RequestedOutput, ...]]] | None:
    """Read a request whose one tensor is a matrix of numbers in all columns, without a Python object for each number.

    Args:
        json_bytes, inputs: as in `read_infer_request`.

    Returns:
        The rows (n, columns), NaN where a number is missing, and the id and the outputs; None where `read_infer_request` has to
        read the body.

    Raises:
        Invalid: the outputs are none that the protocol has.
    """
    if json_bytes is not None:
        read_head = _read_known_head if json_bytes <= MAX_KNOWN_BYTES else _read_head
        head = read_head(body[:json_bytes], tuple(inputs))
        if head is None or len(body) - json_bytes != math.prod(head.shape) * head.dtype.itemsize:
            return None
        return np.frombuffer(body, head.dtype, offset=json_bytes).reshape(head.shape), (head.id, head.outputs)
    found = reader.read_tensor(body, inputs)
    if found is None:
        return None
    matrix, rest = found
    request_id = rest.get("id")
    if request_id is not None and not isinstance(request_id, str):
        return None
    return matrix, (request_id, read_outputs(rest))


@dataclass(frozen=True)
class _MatrixHead:
    id: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    outputs: tuple[RequestedOutput, ...]


@lru_cache(maxsize=256)
def _read_known_head(text: bytes, inputs: tuple[str, ...]) -> _MatrixHead | None:
    """Read short JSON before a matrix in bytes; clients send the same one again and again."""
    return _read_head(text, inputs)


def _read_head(text: bytes, inputs: tuple[str, ...]) -> _MatrixHead | None:
    """Read the JSON before a matrix in bytes."""
    document = parse_json_with_nan(text)
    tensors, request_id = document.get("inputs"), document.get("id")
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(request_id, str | None):
        return None
    tensor = tensors[0]
    if not isinstance(tensor, dict) or set(tensor) != {"name", "datatype", "shape", "parameters"}:
        return None
    dtype = NUMBERS[tensor["datatype"]] if tensor["datatype"] in ("FP32", "FP64") else None
    shape, parameters = tensor["shape"], tensor["parameters"]
    is_matrix = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)
    if dtype is None or not is_matrix or shape[1] != len(inputs) or not isinstance(parameters, dict):
        return None
    size = parameters.get("binary_data_size")
    is_whole = type(size) is int and size == math.prod(shape) * dtype.itemsize and len(parameters) == 1
    if not is_whole or not isinstance(tensor["name"], str) or tensor["name"] in inputs:
        return None
    return _MatrixHead(request_id, tuple(shape), dtype, read_outputs(document))
