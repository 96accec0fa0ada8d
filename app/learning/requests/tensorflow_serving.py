"""The bodies of TensorFlow Serving's REST API as rows: `instances`, `inputs` and `examples`. Knows no model.

Source: TensorFlow Serving, g3doc/api_rest.md and util/json_tensor.cc.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from app.errors import Invalid
from app.learning.requests.prediction_rows import Rows, columns_rows, matrix_rows, records_rows

SIGNATURE = "serving_default"
#: by the key of the request
ANSWERS: dict[str, Literal["predictions", "outputs"]] = {"instances": "predictions", "inputs": "outputs"}


def read_predict(document: Mapping[str, Any], inputs: Sequence[str]) -> tuple[Rows, Literal["predictions", "outputs"]]:
    """Read the body of a predict request.

    Args:
        inputs: the model's columns, in the order that rows without names have.

    Returns:
        The rows, and the key that the answer has.

    Raises:
        Invalid: it has no rows; says where.
    """
    check_signature(document)
    given = [key for key in ANSWERS if key in document]
    if len(given) != 1:
        came = "both" if given else "neither"
        raise Invalid(f"Expected an object with one of 'instances' and 'inputs', got {came}.")
    (key,) = given
    values = _of_one_tensor(document[key], inputs)
    if key == "inputs" and isinstance(values, dict):
        rows = columns_rows(values, key)
    elif _are_scalars(values) and len(inputs) == 1:
        rows = Rows({inputs[0]: values}, len(values))
    elif key == "instances" and isinstance(values, list) and values and isinstance(values[0], dict):
        rows = records_rows(values, key, inputs)
    else:
        rows = matrix_rows(values, key, inputs)
    return _plain(rows), ANSWERS[key]


def read_examples(document: Mapping[str, Any], inputs: Sequence[str]) -> Rows:
    """Read the body of a classify request; what `context` holds is in every example.

    Raises:
        Invalid: it has no examples, or one that repeats a feature of the context; says where.
    """
    check_signature(document)
    examples, context = document.get("examples"), document.get("context", {})
    if not isinstance(context, dict):
        raise Invalid.at(("context",), "Expected context to be an object of features.")
    rows = records_rows(examples, "examples", inputs)
    repeated = next((name for name in context if name in rows.columns), None)
    if repeated is not None:
        raise Invalid.at(("context", repeated), f"Expected {repeated[:80]!r} in the context or in examples, got both.")
    shared = {name: [value] * rows.count for name, value in context.items()}
    return _plain(Rows({**rows.columns, **shared}, rows.count))


def _of_one_tensor(values: Any, inputs: Sequence[str]) -> Any:
    """Give the rows of a tensor of all columns, which Keras names after a layer, without that name."""
    first = values[0] if isinstance(values, list) and values else values
    name = next(iter(first)) if isinstance(first, dict) and len(first) == 1 else None
    if name is None or name in inputs or not isinstance(first[name], list):
        return values
    if first is values:
        return values[name]
    return [each[name] if isinstance(each, dict) and set(each) == {name} else each for each in values]


def check_signature(document: Mapping[str, Any]) -> None:
    """Raise `Invalid` where a request names a signature that no model here has."""
    if document.get("signature_name") not in (None, "", SIGNATURE):
        raise Invalid.at(("signature_name",), f"Expected signature_name {SIGNATURE!r} or none, got another.")


def _are_scalars(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and not any(isinstance(v, list) or _is_record(v) for v in values)


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and set(value) != {"b64"}


def _plain(rows: Rows) -> Rows:
    """Give the cells without what TensorFlow wraps them in: a list of one, as of shape (n, 1), or base64."""
    return Rows({name: _cells(name, list(cells)) for name, cells in rows.columns.items()}, rows.count)


def _cells(name: str, cells: Sequence[Any]) -> Sequence[Any]:
    if not {list, dict} & set(map(type, cells)):
        return cells
    single = [cell[0] if isinstance(cell, list) and len(cell) == 1 else cell for cell in cells]
    return [_text(name, row, cell) if isinstance(cell, dict) else cell for row, cell in enumerate(single)]


def _text(name: str, row: int, cell: Mapping[str, Any]) -> str:
    try:
        if set(cell) == {"b64"}:
            return base64.b64decode(cell["b64"], validate=True).decode()
    except (binascii.Error, ValueError, TypeError):
        pass
    raise Invalid.at(
        (row, name),
        f"Expected a value or {{'b64': text in base64}} in column {name!r}, got another object in row {row}.",
    )
