"""Rows of the fast path to features: matrices by the encoder's own arithmetic, a few rows of any kind cell by cell.

Gives the bits and the warnings of `Encoder.encode`. Rows that cannot be vouched for become None: the route encodes them
then, and says what is wrong with them. A property test holds the two to each other. Knows no bodies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from app.learning.encoding.cell_warnings import WarningCode
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.inputs import FLOAT32_MAX, UNSEEN, Input
from app.learning.encoding.numeric_inputs import Matrix
from app.learning.encoding.read_value import value_reader
from app.learning.requests.prediction_rows import Rows

#: cells of one call of the network, beyond which no further request joins the call: the system allocates larger arrays
#: of float64 anew with every use, which costs five times as much
CALL_CELLS = 48 * 1024
#: cells up to which rows are encoded one cell at a time
FEW_CELLS = 2048

#: a warning: its row, and the rest of it as JSON
RowWarning = tuple[int, bytes]


def warning_of(column: str, code: WarningCode) -> bytes:
    """Return the part after the row in a warning's JSON object."""
    return b'"column":%b,"code":"%b"}' % (orjson.dumps(column), code.encode())


@dataclass(frozen=True)
class Encoded:
    """n rows as the network reads them, float32 (n, d), and the warnings about them in order of rows."""

    x: NDArray[np.float32]
    warnings: Sequence[RowWarning] = ()

    @property
    def size(self) -> int:
        """The number of features of all rows."""
        return self.x.size

    def __len__(self) -> int:
        """Return n."""
        return len(self.x)


class MatrixEncoder:
    """Encodes matrices for an encoder whose inputs are all numbers."""

    def __init__(self, encoder: Encoder) -> None:
        self._inputs = encoder.numeric_inputs
        self._warnings = [warning_of(each.name, each.strange) for each in encoder.inputs]

    @classmethod
    def of(cls, encoder: Encoder) -> MatrixEncoder | None:
        """Return the matrix encoder of an encoder, None where one of its inputs is no number."""
        return cls(encoder) if all(each.kind == "numeric" for each in encoder.inputs) else None

    def encode(self, parts: Sequence[Matrix]) -> tuple[NDArray[np.float32], list[Sequence[RowWarning] | None]]:
        """Encode several matrices at once.

        Returns:
            The rows of those parts whose numbers can all be read, one part after the other, float32 (n, d); and for
            each part the warnings about its rows, or None where a number is missing or too large.
        """
        values: Any = parts[0] if len(parts) == 1 else np.concatenate(parts)
        features, odd = self._inputs.encode(values)
        x = self._inputs.to_rows(features)
        if odd is None:
            return x, [()] * len(parts)
        is_readable = np.ones(len(x), np.bool_)
        for rows in (*odd.missing.values(), *odd.too_large.values()):
            is_readable[rows] = False
        is_outside = odd.is_outside
        warnings: list[Sequence[RowWarning] | None] = []
        end = 0
        for part in parts:
            of_part = slice(end, end := end + len(part))
            is_whole = is_readable[of_part].all()
            is_readable[of_part] = is_whole
            warnings.append(self._outside(is_outside[of_part]) if is_whole else None)
        return x if is_readable.all() else x[is_readable], warnings

    def _outside(self, is_outside: NDArray[np.bool_]) -> list[RowWarning]:
        rows, columns = np.nonzero(is_outside)
        return [(row, self._warnings[j]) for row, j in zip(rows.tolist(), columns.tolist(), strict=True)]


class RowEncoder:
    """Encodes a few rows of any kind, cell by cell in Python, which for a few cells is faster than a dozen NumPy calls for each column.

    Args:
        target: the column that the model predicts, which is passed over where it comes.
    """

    def __init__(self, encoder: Encoder, target: str) -> None:
        self.names = [each.name for each in encoder.inputs]
        self._width = encoder.width
        #: columns that get no warning
        self.known = {*self.names, target}
        self._columns = [_Column(each, place) for each, place in zip(encoder.inputs, encoder.places, strict=True)]

    def encode(self, rows: Rows) -> Encoded | None:
        """Encode rows of lists of cells; None where there are more than `FEW_CELLS` cells, or a cell is refused."""
        if rows.count * len(self._columns) > FEW_CELLS:
            return None
        features = _Features(rows.count, self._width)
        warnings: list[RowWarning] = []
        for column in self._columns:
            cells: Any = rows.columns.get(column.name)
            if not column.encode([None] * rows.count if cells is None else cells, features, warnings):
                return None
        unknown = [name for name in rows.columns if name not in self.known]
        warnings += [(0, warning_of(name, "unknown_column")) for name in unknown]
        if rows.count > 1:
            warnings.sort(key=lambda warning: warning[0])
        return Encoded(features.array(), warnings)


class _Features:
    """The features of n rows that are not zero, in any order."""

    def __init__(self, rows: int, width: int) -> None:
        self.width = width
        self._rows = rows
        self._places: list[int] = []
        self._values: list[float] = []

    def put(self, place: int, value: float) -> None:
        """Set one feature, by its place among the features of all rows."""
        self._places.append(place)
        self._values.append(value)

    def array(self) -> NDArray[np.float32]:
        """Return all features, float32 (n, width)."""
        x = np.zeros(self._rows * self.width, np.float32)
        x[self._places] = self._values
        return x.reshape(self._rows, self.width)


class _Column:
    """One input: from the cells of a column to its features."""

    def __init__(self, each: Input, place: int) -> None:
        self.name = each.name
        self._input = each
        self._low, self._high = each.range
        self._read = value_reader(each)
        self._put = self._put_number if each.is_number else self._put_code
        self._place, self._mark = place, place + each.width - 1
        self._imputed = warning_of(each.name, "imputed")
        self._strange = warning_of(each.name, each.strange)

    def encode(self, cells: Sequence[Any], features: _Features, warnings: list[RowWarning]) -> bool:
        """Add the features; returns whether every cell could be encoded."""
        start = 0
        for row, value in enumerate(cells):
            cell = self._read(value)
            if cell is None or not self._put(cell, features, start, row, warnings):
                return False
            start += features.width
        return True

    def _put_code(self, code: int, features: _Features, start: int, row: int, warnings: list[RowWarning]) -> bool:
        if code >= 0:
            features.put(start + self._place + code, 1.0)
        elif code == UNSEEN:
            warnings.append((row, self._strange))
        else:
            return self._miss(features, start, row, warnings)
        return True

    def _put_number(self, value: float, features: _Features, start: int, row: int, warnings: list[RowWarning]) -> bool:
        if value != value:
            if not self._miss(features, start, row, warnings):
                return False
            value = self._input.impute
        elif not self._low <= value <= self._high:
            warnings.append((row, self._strange))
        feature = self._input.scaled(value)
        features.put(start + self._place, feature)
        return abs(feature) <= FLOAT32_MAX

    def _miss(self, features: _Features, start: int, row: int, warnings: list[RowWarning]) -> bool:
        if self._input.missing == "error":
            return False
        warnings.append((row, self._imputed))
        if self._input.marks_missing:
            features.put(start + self._mark, 1.0)
        return True
