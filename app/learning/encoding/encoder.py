"""The encoder: columns of a table, or of posted rows, to the rows that a network reads.

Imputes and scales in float64, and returns float32. Knows nothing of networks or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from app.learning.encoding.cell_warnings import CellFaults, CellWarnings
from app.learning.encoding.inputs import MISSING_CODE, UNSEEN, Input, InputDocument, InputKind
from app.learning.encoding.numeric_inputs import NO_ROWS, NumericInputs, OddRows


@dataclass(frozen=True)
class Encoder:
    """The inputs, in order; d is the sum of their widths."""

    inputs: tuple[Input, ...]

    @cached_property
    def width(self) -> int:
        """The number of features, d."""
        return sum(each.width for each in self.inputs)

    @cached_property
    def places(self) -> tuple[int, ...]:
        """For each input the index of its first feature."""
        return tuple(accumulate((each.width for each in self.inputs), initial=0))[:-1]

    @cached_property
    def numeric_inputs(self) -> NumericInputs:
        """The numeric and boolean inputs, which are encoded together."""
        chosen = [(each, place) for each, place in zip(self.inputs, self.places, strict=True) if each.is_number]
        return NumericInputs([each for each, _ in chosen], [place for _, place in chosen], self.width)

    def document(self) -> list[InputDocument]:
        """Return the state as plain JSON."""
        return [each.document() for each in self.inputs]

    @classmethod
    def from_document(cls, document: Sequence[Mapping[str, Any]]) -> Encoder:
        """Rebuild an encoder from its state; raises `KeyError` about another kind of input."""
        for state in document:
            if state["kind"] not in get_args(InputKind):
                raise KeyError(state["kind"])
        return cls(tuple(Input(**{**state, "categories": tuple(state["categories"])}) for state in document))

    def encode(
        self,
        cells: Mapping[str, NDArray[Any]],
        warnings: CellWarnings | None = None,
        faults: CellFaults | None = None,
    ) -> NDArray[np.float32]:
        """Encode n rows.

        Args:
            cells: for each input its n cells: float (n,) with NaN for missing; for a categorical one codes
                int (n,) into its `categories`, `MISSING_CODE` or `UNSEEN`.
            warnings: where given, gets a warning for each odd cell.
            faults: where given, gets each refused cell, which is then encoded as if it were missing, or as 0;
                where not given, a refused cell raises.

        Returns:
            float32 (n, d).

        Raises:
            Invalid: a missing value in an input that refuses it, or a number beyond float32; says where.
        """
        refused = CellFaults() if faults is None else faults
        x = np.zeros((len(next(iter(cells.values()))), self.width), np.float32)
        columns = [cells[each.name] for each in self.inputs if each.is_number]
        odd_numbers = self.numeric_inputs.encode_columns(columns, x, finds_strange=warnings is not None)
        for each, place in zip(self.inputs, self.places, strict=True):
            name = each.name
            odd = odd_numbers.get(name) if each.is_number else _encode_categories(cells[name], x, place)
            if odd is None:
                continue
            if each.marks_missing:
                x[odd.missing, place + each.width - 1] = 1.0
            if each.missing == "error":
                refused.add(each.name, odd.missing, partial(_no_value, each), "missing")
            refused.add(each.name, odd.too_large, partial(_too_large, each), "out_of_range")
            if warnings is not None:
                warnings.add(each.name, "imputed", odd.missing)
                warnings.add(each.name, each.strange, odd.strange)
        if faults is None:
            refused.check()
        return x


def _encode_categories(codes: NDArray[Any], x: NDArray[np.float32], place: int) -> OddRows | None:
    """Set a one at the place of each category of a column; a missing or unseen category stays zeros."""
    rows = np.flatnonzero(codes >= 0)
    x[rows, place + codes[rows]] = 1.0
    if len(rows) == len(codes):
        return None
    return OddRows(np.flatnonzero(codes == MISSING_CODE), np.flatnonzero(codes == UNSEEN), NO_ROWS)


def _no_value(each: Input, _row: int, row: int) -> str:
    return f"Expected a value in column {each.name!r}, got none in row {row}."


def _too_large(each: Input, _row: int, row: int) -> str:
    return f"Expected numbers within float32 in column {each.name!r} after scaling, got a larger one in row {row}."
