"""The numeric inputs of an encoder, encoded as one matrix: training, the route and the fast path all compute here.

The formula is here for a matrix (`NumericInputs._scaled`), and in `Input.scaled` for one number. Change both together: a
property test holds them to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.learning.encoding.inputs import FLOAT32_MAX, Input

Matrix = NDArray[np.float64] | NDArray[np.float32]
Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]

#: cells that are encoded at once where columns are: 2 MiB of float64, which a processor's cache holds
BLOCK_CELLS = 256 * 1024
NO_ROWS: Indices = np.empty(0, np.intp)


class OddCells(NamedTuple):
    """Cells of a matrix (n, m) that need a warning or are refused.

    Args:
        is_inside: within the range seen in training, bool (n, m); False for a missing cell.
        missing: rows whose cell is NaN, by column; their features are those of the imputed number.
        too_large: rows whose feature is beyond float32, by column; their features are 0.
    """

    is_inside: Mask
    missing: dict[int, Indices]
    too_large: dict[int, Indices]

    @property
    def is_outside(self) -> Mask:
        """Which cells are outside of the range seen in training, and not missing, bool (n, m)."""
        is_outside = ~self.is_inside
        for column, rows in self.missing.items():
            is_outside[rows, column] = False
        return is_outside


class OddRows(NamedTuple):
    """The rows of one column whose cells need a warning or are refused, ascending.

    Args:
        missing: rows without a value.
        strange: rows whose number is outside of the range seen in training, or whose category training never saw.
        too_large: rows whose number is beyond float32 after scaling.
    """

    missing: Indices
    strange: Indices
    too_large: Indices


class NumericInputs:
    """The numeric and boolean inputs of an encoder.

    Args:
        inputs: m of them.
        places: for each input the index of its feature among those of the encoder.
        width: the number of the encoder's features, d.
    """

    def __init__(self, inputs: Sequence[Input], places: Sequence[int], width: int) -> None:
        self._names = [i.name for i in inputs]
        self._width = width
        self._places = np.array(places, np.intp)
        self._fill_rows = len(inputs) == width
        self._mean, self._scale = np.array([i.mean for i in inputs]), np.array([i.scale for i in inputs])
        self._is_scaled = bool((self._mean != 0).any() or (self._scale != 1).any())
        low, high = (np.array([i.range[end] for i in inputs]) for end in (0, 1))
        self._ranges = {np.float64: (low, high), np.float32: _within_float32(low, high)}
        with np.errstate(over="ignore"):
            self._imputed = self._scaled(np.array([i.impute for i in inputs]))
            ends = self._scaled(np.array([low, high]))
        # scaling is monotonic: a number within its range is then within float32 too
        self._is_tame = bool((np.abs(ends) <= FLOAT32_MAX).all())

    def encode(self, values: Matrix) -> tuple[Matrix, OddCells | None]:
        """Encode numbers, NaN where missing.

        Args:
            values: (n, m), in any memory layout.

        Returns:
            The features (n, m), not yet rounded to float32; and which cells are odd, None where no cell is.
        """
        low, high = self._ranges[values.dtype.type]
        is_inside = (values >= low) & (values <= high)
        if self._is_tame and is_inside.all():
            return self._scaled(values), None
        with np.errstate(all="ignore"):
            features = self._scaled(values)
        is_fine = np.abs(features) <= FLOAT32_MAX
        odd = OddCells(is_inside, {}, {})
        if not is_fine.all():
            features = features.astype(np.float64, copy=features is values)
            for column in np.flatnonzero(~is_fine.all(axis=0)).tolist():
                self._mend(values, features, column, np.flatnonzero(~is_fine[:, column]), odd)
        return features, odd

    def _mend(self, values: Matrix, features: Matrix, column: int, rows: Indices, odd: OddCells) -> None:
        """Impute the missing ones of some cells of a column, and set the others to 0."""
        is_missing = np.isnan(values[rows, column])
        missing, too_large = rows[is_missing], rows[~is_missing]
        if len(missing):
            odd.missing[column] = missing
            features[missing, column] = self._imputed[column]
            if abs(self._imputed[column]) > FLOAT32_MAX:
                too_large = rows
        if len(too_large):
            odd.too_large[column] = too_large
            features[too_large, column] = 0.0

    def _scaled(self, values: Matrix) -> Matrix:
        if not self._is_scaled:
            return values
        scaled: Matrix = np.subtract(values, self._mean)
        np.divide(scaled, self._scale, out=scaled)
        return scaled

    def to_rows(self, features: Matrix) -> NDArray[np.float32]:
        """Return rows of the encoder, float32 (n, d), with these features (n, m) and zeros in all other places."""
        if self._fill_rows:
            return features.astype(np.float32)
        x = np.zeros((len(features), self._width), np.float32)
        x[:, self._places] = features
        return x

    def encode_columns(
        self, columns: Sequence[NDArray[Any]], x: NDArray[np.float32], *, finds_strange: bool
    ) -> Mapping[str, OddRows]:
        """Encode m columns (n,), NaN where missing, into their places of x, float32 (n, d).

        Args:
            finds_strange: whether numbers outside of the range seen in training are looked for.

        Returns:
            The rows of odd cells by the name of their input, for inputs that have any.
        """
        if not columns:
            return {}
        rows = max(BLOCK_CELLS // len(columns), 1)
        places = slice(None) if self._fill_rows else self._places
        missing, strange, too_large = _RowsByColumn(), _RowsByColumn(), _RowsByColumn()
        for start in range(0, len(x), rows):
            block = columns if len(x) <= rows else [column[start : start + rows] for column in columns]
            # each column's cells stay together in memory: the arithmetic is fastest along them
            values = np.concatenate(block, dtype=np.float64).reshape(len(columns), -1).T
            features, odd = self.encode(values)
            x[start : start + rows, places] = features
            if odd is not None:
                missing.add(odd.missing, start)
                too_large.add(odd.too_large, start)
                if finds_strange:
                    strange.add(_rows_by_column(odd.is_outside), start)
        odd_columns = {*missing.blocks, *strange.blocks, *too_large.blocks}
        return {self._names[i]: OddRows(missing.rows(i), strange.rows(i), too_large.rows(i)) for i in odd_columns}


class _RowsByColumn:
    """Rows by column, collected block by block."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[Indices]] = {}

    def add(self, rows_by_column: Mapping[int, Indices], first_row: int) -> None:
        """Add the rows of a block that begins at `first_row`."""
        for column, rows in rows_by_column.items():
            self.blocks.setdefault(column, []).append(rows + first_row)

    def rows(self, column: int) -> Indices:
        """Return the rows of a column, ascending."""
        blocks = self.blocks.get(column)
        return NO_ROWS if blocks is None else np.concatenate(blocks)


def _rows_by_column(mask: Mask) -> dict[int, Indices]:
    columns = np.flatnonzero(mask.any(axis=0)).tolist()
    return {column: np.flatnonzero(mask[:, column]) for column in columns}


def _within_float32(
    low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the least and the greatest float32 within each range, so that float32 compares as the same float64 does."""
    with np.errstate(over="ignore"):
        least, greatest = low.astype(np.float32), high.astype(np.float32)
        least = np.where(least < low, np.nextafter(least, np.float32(np.inf)), least)
        return least, np.where(greatest > high, np.nextafter(greatest, np.float32(-np.inf)), greatest)
