"""The encoder's quick ways: for matrices of numbers, and for a few rows of any kind. Knows no bodies.

They give the bits and the warnings of `Encoder.encode`. What they cannot vouch for gives None: `Encoder.encode` decides
then, and words what is wrong. A property test holds them to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from app.fast_path.parse import Matrix
from app.learning.encoding.cell_warnings import WarningCode
from app.learning.encoding.encoder import UNSEEN, Encoder, Input
from app.learning.encoding.read_cells import reader
from app.learning.requests.prediction_rows import Rows

#: numbers that are best encoded at once, and that a call begins no further request beyond: larger arrays of float64 come
#: from the system with every use, and cost five times as much
CALL_CELLS = 48 * 1024
#: cells up to which Python's own arithmetic is quicker than NumPy's calls, a dozen for each column
FEW_CELLS = 2048
_FLOAT32_MAX = float(np.finfo(np.float32).max)

#: a warning: its row, and the rest of it as JSON
RowWarning = tuple[int, bytes]


def warning_of(column: str, code: WarningCode) -> bytes:
    """Give what follows the row in a warning's JSON object."""
    return b'"column":%b,"code":"%b"}' % (orjson.dumps(column), code.encode())


def _within_float32(
    low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the least and the greatest float32 within each range: to compare as float32 is then to compare as float64."""
    with np.errstate(over="ignore"):
        least, most = low.astype(np.float32), high.astype(np.float32)
        least = np.where(least < low, np.nextafter(least, np.float32(np.inf)), least)
        return least, np.where(most > high, np.nextafter(most, np.float32(-np.inf)), most)


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
        """Give n."""
        return len(self.x)


class MatrixEncoder:
    """Encodes matrices for an encoder all of whose inputs are numbers."""

    def __init__(self, encoder: Encoder) -> None:
        inputs = encoder.inputs
        self._width = encoder.width
        self._places = np.cumsum([0, *(each.width for each in inputs)])[:-1]
        self._mean, self._scale = np.array([e.mean for e in inputs]), np.array([e.scale for e in inputs])
        self._is_scaled = bool((self._mean != 0).any() or (self._scale != 1).any())
        self._low, self._high = np.array([e.low for e in inputs]), np.array([e.high for e in inputs])
        self._ranges = {np.float64: (self._low, self._high), np.float32: _within_float32(self._low, self._high)}
        self._warnings = [warning_of(each.name, "out_of_range") for each in inputs]
        with np.errstate(over="ignore"):
            ends = (np.array([self._low, self._high]) - self._mean) / self._scale
        # scaling is monotonic: what is within the range is then within float32 too
        self._is_tame = bool((np.abs(ends) <= _FLOAT32_MAX).all())

    @classmethod
    def of(cls, encoder: Encoder) -> MatrixEncoder | None:
        """Make one, or give None for an encoder with other inputs."""
        return cls(encoder) if all(each.kind == "numeric" for each in encoder.inputs) else None

    def encode(self, parts: Sequence[Matrix]) -> tuple[NDArray[np.float32], list[Sequence[RowWarning] | None]]:
        """Encode several matrices at once.

        Returns:
            The rows of those parts whose numbers can all be read, one part after the other, float32 (n, d); and for
            each part the warnings about its rows, or None where a number is missing or too large.
        """
        values: Any = parts[0] if len(parts) == 1 else np.concatenate(parts)
        low, high = self._ranges[values.dtype.type]
        is_inside = (values >= low) & (values <= high)
        if self._is_tame and is_inside.all():
            return self._placed(self._scaled(values)), [()] * len(parts)
        with np.errstate(all="ignore"):
            scaled = self._scaled(values)
            x = self._placed(scaled)
        is_good = (np.abs(scaled) <= _FLOAT32_MAX).all(axis=1)
        is_kept = np.ones(len(x), np.bool_)
        found: list[Sequence[RowWarning] | None] = []
        end = 0
        for part in parts:
            at = slice(end, end := end + len(part))
            is_kept[at] = is_good[at].all()
            found.append(self._outside(~is_inside[at]) if is_kept[at].all() else None)
        return x if is_kept.all() else x[is_kept], found

    def _scaled(self, values: Any) -> Any:
        if not self._is_scaled:
            return values
        scaled = np.subtract(values, self._mean)
        return np.divide(scaled, self._scale, out=scaled)

    def _placed(self, scaled: Matrix) -> NDArray[np.float32]:
        if self._width == scaled.shape[1]:
            return scaled.astype(np.float32)
        # the other features say what is missing, and nothing is
        x = np.zeros((len(scaled), self._width), np.float32)
        x[:, self._places] = scaled
        return x

    def _outside(self, is_outside: NDArray[np.bool_]) -> list[RowWarning]:
        rows, columns = np.nonzero(is_outside)
        return [(row, self._warnings[j]) for row, j in zip(rows.tolist(), columns.tolist(), strict=True)]


class RowEncoder:
    """Encodes a few rows of any kind, cell by cell."""

    def __init__(self, encoder: Encoder, target: str) -> None:
        self.names = [each.name for each in encoder.inputs]
        self._width = encoder.width
        #: columns that are read, or passed over
        self.known = {*self.names, target}
        starts = np.cumsum([0, *(each.width for each in encoder.inputs)]).tolist()
        self._columns = [_Column(each, at) for each, at in zip(encoder.inputs, starts, strict=False)]

    def encode(self, rows: Rows) -> Encoded | None:
        """Encode rows of lists of cells; many, or one with a fault, give None."""
        if rows.count * len(self._columns) > FEW_CELLS:
            return None
        features = _Features(rows.count, self._width)
        warnings: list[RowWarning] = []
        for column in self._columns:
            cells: Any = rows.columns.get(column.name)
            if not column.encode([None] * rows.count if cells is None else cells, features, warnings):
                return None
        strange = [name for name in rows.columns if name not in self.known]
        warnings += [(0, warning_of(name, "unknown_column")) for name in strange]
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
        """Set one feature, by its place among those of all rows."""
        self._places.append(place)
        self._values.append(value)

    def array(self) -> NDArray[np.float32]:
        """Give them all, float32 (n, width)."""
        x = np.zeros(self._rows * self.width, np.float32)
        x[self._places] = self._values
        return x.reshape(self._rows, self.width)


class _Column:
    """One input: from the cells of a column to its features."""

    def __init__(self, each: Input, at: int) -> None:
        self.name = each.name
        self._input = each
        self._read: Callable[[Any], Any] = reader(each)
        self._put = self._put_code if each.kind == "categorical" else self._put_number
        self._at, self._mark = at, at + each.width - 1
        self._imputed = warning_of(each.name, "imputed")
        self._odd = warning_of(each.name, "unseen_category" if each.kind == "categorical" else "out_of_range")

    def encode(self, cells: Sequence[Any], features: _Features, warnings: list[RowWarning]) -> bool:
        """Add the features; tells whether every cell could be read."""
        start = 0
        for row, value in enumerate(cells):
            cell = self._read(value)
            if cell is None or not self._put(cell, features, start, row, warnings):
                return False
            start += features.width
        return True

    def _put_code(self, code: int, features: _Features, start: int, row: int, warnings: list[RowWarning]) -> bool:
        if code >= 0:
            features.put(start + self._at + code, 1.0)
        elif code == UNSEEN:
            warnings.append((row, self._odd))
        else:
            return self._miss(features, start, row, warnings)
        return True

    def _put_number(self, value: float, features: _Features, start: int, row: int, warnings: list[RowWarning]) -> bool:
        each = self._input
        if value != value:
            if not self._miss(features, start, row, warnings):
                return False
            value = each.impute
        elif each.kind == "numeric" and not each.low <= value <= each.high:
            warnings.append((row, self._odd))
        scaled = (value - each.mean) / each.scale
        features.put(start + self._at, scaled)
        return abs(scaled) <= _FLOAT32_MAX

    def _miss(self, features: _Features, start: int, row: int, warnings: list[RowWarning]) -> bool:
        if self._input.missing == "error":
            return False
        warnings.append((row, self._imputed))
        if self._input.marks_missing:
            features.put(start + self._mark, 1.0)
        return True
