"""The bodies of TensorFlow Serving's REST API as rows: `instances`, `inputs` and `examples`. Knows no model.

Source: TensorFlow Serving, g3doc/api_rest.md and util/json_tensor.cc.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeGuard

from app.errors import Invalid
from app.learning.requests.prediction_rows import Rows, rows_from_columns, rows_from_matrix, rows_from_records

SIGNATURE = "serving_default"
AnswerKey = Literal["predictions", "outputs"]
#: by the key of the request
_ANSWER_KEYS: dict[str, AnswerKey] = {"instances": "predictions", "inputs": "outputs"}


def read_predict_request(document: Mapping[str, object], inputs: Sequence[str]) -> tuple[Rows, AnswerKey]:
    """Read the body of a predict request.

    Args:
        inputs: the model's columns, in the order that rows without names have.

    Returns:
        The rows, and the key under which the answer has its values.

    Raises:
        Invalid: the body has no rows; says where.
    """
    check_signature(document)
    keys = [key for key in _ANSWER_KEYS if key in document]
    if len(keys) != 1:
        came = "both" if keys else "neither"
        raise Invalid(f"Expected an object with one of 'instances' and 'inputs', got {came}.")
    (key,) = keys
    values = _without_tensor_name(document[key], inputs)
    if key == "inputs" and isinstance(values, dict):
        rows = rows_from_columns(values, key)
    elif _are_scalars(values) and len(inputs) == 1:
        rows = Rows({inputs[0]: values}, len(values))
    elif key == "instances" and isinstance(values, list) and values and isinstance(values[0], dict):
        rows = rows_from_records(values, key, inputs)
    else:
        rows = rows_from_matrix(values, key, inputs)
    return _unwrapped(rows), _ANSWER_KEYS[key]


def read_classify_request(document: Mapping[str, object], inputs: Sequence[str]) -> Rows:
    """Read the body of a classify request; the features of its `context` are added to every example.

    Args:
        inputs: the model's columns.

    Raises:
        Invalid: the body has no examples, or one that repeats a feature of the context; says where.
    """
    check_signature(document)
    examples, context = document.get("examples"), document.get("context", {})
    if not isinstance(context, dict):
        raise Invalid.at(("context",), "Expected context to be an object of features.")
    rows = rows_from_records(examples, "examples", inputs)
    repeated = next((name for name in context if name in rows.columns), None)
    if repeated is not None:
        raise Invalid.at(("context", repeated), f"Expected {repeated[:80]!r} in the context or in examples, got both.")
    shared = {name: [value] * rows.count for name, value in context.items()}
    return _unwrapped(Rows({**rows.columns, **shared}, rows.count))


def check_signature(document: Mapping[str, object]) -> None:
    """Raise `Invalid` where a request names a signature other than the one that every model has."""
    if document.get("signature_name") not in (None, "", SIGNATURE):
        raise Invalid.at(("signature_name",), f"Expected signature_name {SIGNATURE!r} or none, got another.")


def _without_tensor_name(values: object, inputs: Sequence[str]) -> Any:
    """Return the rows of a tensor of all columns without the tensor's name, which Keras takes from a layer."""
    first = values[0] if isinstance(values, list) and values else values
    name = next(iter(first)) if isinstance(first, dict) and len(first) == 1 else None
    if not isinstance(first, dict) or name is None or name in inputs or not isinstance(first[name], list):
        return values
    if not isinstance(values, list):
        return first[name]
    return [row[name] if isinstance(row, dict) and set(row) == {name} else row for row in values]


def _are_scalars(values: object) -> TypeGuard[list[Any]]:
    return isinstance(values, list) and bool(values) and not any(isinstance(v, list) or _is_record(v) for v in values)


def _is_record(value: object) -> bool:
    return isinstance(value, dict) and set(value) != {"b64"}


def _unwrapped(rows: Rows) -> Rows:
    """Return the cells without the two wrappings of TensorFlow: a list of one, as of shape (n, 1), and base64."""
    return Rows({name: _unwrapped_cells(name, list(cells)) for name, cells in rows.columns.items()}, rows.count)


def _unwrapped_cells(name: str, cells: Sequence[Any]) -> Sequence[Any]:
    if not {list, dict} & set(map(type, cells)):
        return cells
    single = [cell[0] if isinstance(cell, list) and len(cell) == 1 else cell for cell in cells]
    return [_from_base64(name, row, cell) if isinstance(cell, dict) else cell for row, cell in enumerate(single)]


def _from_base64(name: str, row: int, cell: Mapping[str, Any]) -> str:
    try:
        if set(cell) == {"b64"}:
            return base64.b64decode(cell["b64"], validate=True).decode()
    except (binascii.Error, ValueError, TypeError):
        pass
    raise Invalid.at(
        (row, name),
        f"Expected a value or {{'b64': text in base64}} in column {name!r}, got another object in row {row}.",
    )
