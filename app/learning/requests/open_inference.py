"""Requests of the Open Inference Protocol: tensors as rows, and which outputs are wanted. Knows neither HTTP nor a network.

Source: Open Inference Protocol, inference_rest.md; Triton's extension_binary_data.md and extension_classification.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from app.errors import Invalid
from app.learning.requests.json_with_nan import parse_json_with_nan
from app.learning.requests.open_inference_tensors import BinaryTail, Tensor, read_tensor
from app.learning.requests.prediction_rows import Rows

LABEL, PROBABILITIES = "label", "probabilities"


@dataclass(frozen=True)
class RequestedOutput:
    """An output that a request asks for.

    Args:
        is_binary: whether its values follow the response's JSON as bytes.
        top: None for all probabilities, or a number k for the k most probable classes as texts.
    """

    name: str
    is_binary: bool
    top: int | None = None


@dataclass(frozen=True)
class InferRequest:
    """Rows, and the outputs that their response has; the id comes back in the response."""

    id: str | None
    rows: Rows
    outputs: tuple[RequestedOutput, ...]


def read_infer_request(body: bytes, json_bytes: int | None, inputs: Sequence[str]) -> InferRequest:
    """Read the body of an inference request.

    Args:
        json_bytes: the length of its JSON where tensors follow, None where the body is JSON alone.
        inputs: the model's columns, in the order that a matrix has them.

    Raises:
        Malformed: the JSON cannot be parsed.
        Invalid: the JSON is no request, or its tensors are no rows; says where.
    """
    if json_bytes is not None and json_bytes > len(body):
        raise Invalid(f"Expected JSON of {json_bytes} bytes, as the header says, got a body of {len(body)}.")
    view = memoryview(body)
    end = len(body) if json_bytes is None else json_bytes
    document = parse_json_with_nan(bytes(view[:end]))
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise Invalid.at(("id",), "Expected id to be a text.")
    entries = document.get("inputs")
    if not isinstance(entries, list) or not entries:
        raise Invalid.at(("inputs",), "Expected inputs to be a list of at least one tensor.")
    tail = BinaryTail(view[end:])
    tensors = [read_tensor(entry, ("inputs", i), tail) for i, entry in enumerate(entries)]
    tail.check_end()
    return InferRequest(request_id, _rows(tensors, inputs), read_outputs(document))


def _rows(tensors: Sequence[Tensor], inputs: Sequence[str]) -> Rows:
    """Join tensors into rows: one tensor for each column, or one tensor of all columns."""
    first = tensors[0]
    if len(tensors) == 1 and len(first.shape) == 2 and first.name not in inputs:
        columns = _columns_of_matrix(first, inputs)
    else:
        columns = _columns_of_tensors(tensors, first.shape[0])
    if not first.shape[0]:
        raise Invalid.at(("inputs",), "Expected at least one row, got none.")
    return Rows(columns, first.shape[0])


def _columns_of_matrix(tensor: Tensor, inputs: Sequence[str]) -> Mapping[str, Sequence[Any] | NDArray[Any]]:
    width = len(inputs)
    if tensor.shape[1] != width:
        raise Invalid.at(
            ("inputs", 0, "shape"),
            f"Expected shape [rows, {width}], a column for each input, got {list(tensor.shape)}.",
        )
    return {name: tensor.values[j::width] for j, name in enumerate(inputs)}


def _columns_of_tensors(tensors: Sequence[Tensor], rows: int) -> Mapping[str, Sequence[Any] | NDArray[Any]]:
    columns: dict[str, Sequence[Any] | NDArray[Any]] = {}
    for i, tensor in enumerate(tensors):
        if tensor.name in columns:
            raise Invalid.at(("inputs", i), f"Expected inputs of different names, got {tensor.name[:80]!r} twice.")
        if len(tensor.shape) == 2 and tensor.shape[1] != 1:
            raise Invalid.at(
                ("inputs", i, "shape"),
                f"Expected shape [rows] or [rows, 1] for column {tensor.name[:80]!r}, got {list(tensor.shape)}.",
            )
        if tensor.shape[0] != rows:
            raise Invalid.at(
                ("inputs", i, "shape"),
                f"Expected {rows} rows as in the first input, got {tensor.shape[0]} in {tensor.name[:80]!r}.",
            )
        columns[tensor.name] = tensor.values
    return columns


def read_outputs(document: Mapping[str, object]) -> tuple[RequestedOutput, ...]:
    """Read which outputs a request wants and how; both outputs where it names none.

    Raises:
        Invalid: an output is unknown or named twice, or its parameters are not as the protocol has them; says where.
    """
    is_binary = _flag(document, "binary_data_output", False, ("parameters",))
    entries = document.get("outputs") or []
    if not isinstance(entries, list):
        raise Invalid.at(("outputs",), "Expected outputs to be a list.")
    if not entries:
        return RequestedOutput(LABEL, is_binary), RequestedOutput(PROBABILITIES, is_binary)
    outputs: dict[str, RequestedOutput] = {}
    for i, entry in enumerate(entries):
        loc = ("outputs", i)
        name = entry.get("name") if isinstance(entry, dict) else None
        if name not in (LABEL, PROBABILITIES) or name in outputs:
            raise Invalid.at(loc, f"Expected outputs named {LABEL} and {PROBABILITIES}, each once, got another.")
        is_own_binary = _flag(entry, "binary_data", is_binary, (*loc, "parameters"))
        top = entry.get("parameters", {}).get("classification")
        if top is not None and (type(top) is not int or top < 1 or name != PROBABILITIES):
            raise Invalid.at(loc, f"Expected classification to be a number of at least 1, of {PROBABILITIES}.")
        outputs[name] = RequestedOutput(name, is_own_binary, top)
    return tuple(outputs.values())


def _flag(document: Mapping[str, object], name: str, default: bool, loc: tuple[str | int, ...]) -> bool:
    parameters = document.get("parameters", {})
    value = parameters.get(name, default) if isinstance(parameters, dict) else None
    if not isinstance(value, bool):
        raise Invalid.at(loc, f"Expected parameters to be an object, and {name} in it to be true or false.")
    return value
