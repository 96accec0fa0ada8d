"""The inputs of an encoder: how one column becomes features. Their state is plain JSON."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypedDict

import numpy as np

from app.learning.encoding.cell_warnings import WarningCode
from app.learning.tables.column import MISSING

#: the code of a category that training never saw
UNSEEN = -2
#: the code of a missing category
MISSING_CODE = -1
#: the spelling of a number
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z", re.ASCII)
#: digits that spell an identifier rather than a number: leading zeros, or more digits than float64 holds
_IDENTIFIER = re.compile(r"[+-]?(0\d|\d{16,}\Z)", re.ASCII)

#: the largest feature
FLOAT32_MAX = float(np.finfo(np.float32).max)

InputKind = Literal["numeric", "boolean", "categorical"]
OnMissing = Literal["impute", "error"]


class InputDocument(TypedDict):
    """An input's state as JSON, in `encoder.json`."""

    name: str
    kind: InputKind
    missing: OnMissing
    marks_missing: bool
    impute: float
    mean: float
    scale: float
    low: float
    high: float
    categories: list[str]


@dataclass(frozen=True)
class Input:
    """How one column is encoded.

    Args:
        missing: whether a missing value is imputed, or refused.
        marks_missing: whether a last feature says that the value was missing.
        impute: the number that takes the place of a missing one, before scaling.
        mean, scale: a number becomes `(number - mean) / scale`, in float64.
        low, high: the range seen in training; a number outside of it gets a warning.
        categories: one feature each, in this order; an unseen one becomes zeros. Texts of one meaning, such as "1" and
            "1.0" or "true" and "True", are one category, by its first spelling.
    """

    name: str
    kind: InputKind
    missing: OnMissing
    marks_missing: bool
    impute: float = 0.0
    mean: float = 0.0
    scale: float = 1.0
    low: float = 0.0
    high: float = 0.0
    categories: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """The number of features that the column becomes."""
        return (len(self.categories) or self.is_number) + self.marks_missing

    @property
    def is_number(self) -> bool:
        """Whether the column's values are numbers rather than codes of categories."""
        return self.kind != "categorical"

    @property
    def strange(self) -> WarningCode:
        """The warning about a value that training never saw."""
        return "out_of_range" if self.is_number else "unseen_category"

    @property
    def range(self) -> tuple[float, float]:
        """The numbers that get no warning: those seen in training; for a boolean both numbers that there are."""
        return (0.0, 1.0) if self.kind == "boolean" else (self.low, self.high)

    def scaled(self, number: float) -> float:
        """Return a number as its feature, before it is rounded to float32."""
        return (number - self.mean) / self.scale

    def code(self, text: str) -> int:
        """Return a text's index among the categories, `MISSING_CODE` or `UNSEEN`."""
        if text in MISSING:
            return MISSING_CODE
        code = self._by_text.get(text)
        return self._by_meaning.get(meaning(text), UNSEEN) if code is None else code

    @cached_property
    def _by_text(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self.categories)}

    @cached_property
    def _by_meaning(self) -> dict[str | float, int]:
        return {meaning(text): i for i, text in enumerate(self.categories)}

    def document(self) -> InputDocument:
        """Return the input's state as JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "missing": self.missing,
            "marks_missing": self.marks_missing,
            "impute": self.impute,
            "mean": self.mean,
            "scale": self.scale,
            "low": self.low,
            "high": self.high,
            "categories": list(self.categories),
        }


def meaning(text: str) -> str | float:
    """Return the number that a text spells, or else the text; texts of equal meaning are one category.

    Digits that spell an identifier stay text: with leading zeros, or more of them than float64 holds.
    """
    if NUMBER.match(text) and not _IDENTIFIER.match(text):
        return float(text)
    return text.lower() if text.lower() in ("true", "false") else text
