"""Requests and answers of the Open Inference Protocol, as rows and from probabilities. Knows neither HTTP nor a network.

Source: Open Inference Protocol, inference_rest.md; Triton's extension_binary_data.md and extension_classification.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from app.errors import Invalid
from app.learning.requests.json_with_nan import load_loose_json
from app.learning.requests.open_inference_tensors import BYTES, Tail, Tensor, read_tensor, to_bytes
from app.learning.requests.prediction_rows import Rows

LABEL, PROBABILITIES = "label", "probabilities"


@dataclass(frozen=True)
class Output:
    """An output that is asked for.

    Args:
        top: the k best classes as texts in place of all probabilities, or None.
    """

    name: str
    is_binary: bool
    top: int | None = None


@dataclass(frozen=True)
class InferRequest:
    """Rows, and how their answer is wanted."""

    id: str | None
    rows: Rows
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class Answer:
    """What a version says: n labels as texts, probabilities float32 (n, k), and the k classes as texts."""

    labels: Sequence[str]
    probabilities: NDArray[np.float32]
    classes: Sequence[str]


def read_infer(body: bytes, json_bytes: int | None, inputs: Sequence[str]) -> InferRequest:
    """Read the body of an inference request.

    Args:
        json_bytes: how long its JSON is, where tensors follow.
        inputs: the model's columns, in the order that a matrix has them.

    Raises:
        Malformed: its JSON is none.
        Invalid: it is no request, or its tensors are no rows; says where.
    """
    if json_bytes is not None and json_bytes > len(body):
        raise Invalid(f"Expected JSON of {json_bytes} bytes, as the header says, got a body of {len(body)}.")
    view = memoryview(body)
    end = len(body) if json_bytes is None else json_bytes
    document = load_loose_json(bytes(view[:end]))
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise Invalid.at(("id",), "Expected id to be a text.")
    given = document.get("inputs")
    if not isinstance(given, list) or not given:
        raise Invalid.at(("inputs",), "Expected inputs to be a list of at least one tensor.")
    tail = Tail(view[end:])
    tensors = [read_tensor(each, ("inputs", i), tail) for i, each in enumerate(given)]
    tail.check_end()
    return InferRequest(request_id, _rows(tensors, inputs), read_outputs(document))


def _rows(tensors: Sequence[Tensor], inputs: Sequence[str]) -> Rows:
    """Join tensors into rows: one for each column, or one of all columns."""
    first = tensors[0]
    if len(tensors) == 1 and len(first.shape) == 2 and first.name not in inputs:
        if first.shape[1] != len(inputs):
            raise Invalid.at(
                ("inputs", 0, "shape"),
                f"Expected shape [rows, {len(inputs)}], a column for each input, got {list(first.shape)}.",
            )
        width = len(inputs)
        columns: dict[str, Any] = {name: first.values[j::width] for j, name in enumerate(inputs)}
        return _some(columns, first.shape[0])
    columns = {}
    for i, tensor in enumerate(tensors):
        if tensor.name in columns:
            raise Invalid.at(("inputs", i), f"Expected inputs of different names, got {tensor.name[:80]!r} twice.")
        if len(tensor.shape) == 2 and tensor.shape[1] != 1:
            raise Invalid.at(
                ("inputs", i, "shape"),
                f"Expected shape [rows] or [rows, 1] for column {tensor.name[:80]!r}, got {list(tensor.shape)}.",
            )
        if tensor.shape[0] != first.shape[0]:
            raise Invalid.at(
                ("inputs", i, "shape"),
                f"Expected {first.shape[0]} rows as in the first input, got {tensor.shape[0]} in {tensor.name[:80]!r}.",
            )
        columns[tensor.name] = tensor.values
    return _some(columns, first.shape[0])


def _some(columns: Mapping[str, Any], count: int) -> Rows:
    if not count:
        raise Invalid.at(("inputs",), "Expected at least one row, got none.")
    return Rows(columns, count)


def read_outputs(document: Mapping[str, Any]) -> tuple[Output, ...]:
    """Read which outputs are wanted and how; all of them where none is named."""
    is_binary = _flag(document, "binary_data_output", False, ("parameters",))
    wanted = document.get("outputs") or []
    if not isinstance(wanted, list):
        raise Invalid.at(("outputs",), "Expected outputs to be a list.")
    if not wanted:
        return Output(LABEL, is_binary), Output(PROBABILITIES, is_binary)
    outputs: dict[str, Output] = {}
    for i, each in enumerate(wanted):
        loc = ("outputs", i)
        name = each.get("name") if isinstance(each, dict) else None
        if name not in (LABEL, PROBABILITIES) or name in outputs:
            raise Invalid.at(loc, f"Expected outputs named {LABEL} and {PROBABILITIES}, each once, got another.")
        is_own = _flag(each, "binary_data", is_binary, (*loc, "parameters"))
        top = each.get("parameters", {}).get("classification")
        if top is not None and (type(top) is not int or top < 1 or name != PROBABILITIES):
            raise Invalid.at(loc, f"Expected classification to be a number of at least 1, of {PROBABILITIES}.")
        outputs[name] = Output(name, is_own, top)
    return tuple(outputs.values())


def _flag(given: Mapping[str, Any], name: str, default: bool, loc: tuple[str | int, ...]) -> bool:
    parameters = given.get("parameters", {})
    value = parameters.get(name, default) if isinstance(parameters, dict) else None
    if not isinstance(value, bool):
        raise Invalid.at(loc, f"Expected parameters to be an object, and {name} in it to be true or false.")
    return value


def write_infer(answer: Answer, outputs: Sequence[Output], head: Mapping[str, Any]) -> tuple[bytes, int | None]:
    """Write the answer.

    Args:
        head: what stands before the outputs: the model, its version, the request's id.

    Returns:
        The body, and how long its JSON is where tensors follow.
    """
    documents: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for output in outputs:
        datatype, shape, values = _tensor(answer, output)
        document: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": shape}
        if output.is_binary:
            tail.append(to_bytes(values))
            document["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            document["data"] = values
        documents.append(document)
    text = orjson.dumps({**head, "outputs": documents}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((text, *tail)), len(text)) if tail else (text, None)


def _tensor(answer: Answer, output: Output) -> tuple[str, list[int], Sequence[str] | NDArray[np.float32]]:
    rows, classes = answer.probabilities.shape
    if output.name == LABEL:
        return BYTES, [rows], answer.labels
    if output.top is None:
        return "FP32", [rows, classes], np.ascontiguousarray(answer.probabilities).ravel()
    best = np.argsort(-answer.probabilities, axis=1, kind="stable")[:, : output.top]
    texts = [
        f"{row[i]!s}:{i}:{answer.classes[i]}"
        for row, order in zip(answer.probabilities, best.tolist(), strict=True)
        for i in order
    ]
    return BYTES, list(best.shape), texts
