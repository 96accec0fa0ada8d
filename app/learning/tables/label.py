"""Labels: the values that a classifier predicts, in the type in which they were posted. Knows no columns."""

from __future__ import annotations

from typing import Literal

Label = bool | int | float | str
LabelType = Literal["bool", "int", "float", "str"]


def typed_label(value: float | str, label_type: LabelType) -> Label:
    """Return a stored number or text as a label of the type in which it was posted."""
    if label_type == "bool":
        return value.lower() == "true" if isinstance(value, str) else bool(value)
    if label_type == "int":
        return int(value)
    if label_type == "float":
        return float(value)
    return value if isinstance(value, str) else label_key(value)


def label_key(label: Label) -> str:
    """Return the text that equal labels of different types share: 1, 1.0 and "1"; true and "True"."""
    if isinstance(label, str):
        return label.lower() if label.lower() in ("true", "false") else label
    if isinstance(label, bool):
        return "true" if label else "false"
    return str(int(label)) if float(label).is_integer() else repr(label)


def label_text(label: Label) -> str:
    """Return a label as a text, for protocols that have no other labels."""
    return label if isinstance(label, str) else label_key(label)
