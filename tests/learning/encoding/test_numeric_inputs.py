"""Numbers as one matrix: the same bits and findings for a matrix, for blocks of columns, and for one number at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.learning.encoding import numeric_inputs
from app.learning.encoding.cell_warnings import CellFaults, CellWarnings
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.inputs import Input

number = st.one_of(
    st.floats(-1e3, 1e3),
    st.floats(-1e300, 1e300),
    st.sampled_from([np.nan, -0.0, 5e-324, 3.4028235677973366e38, 1e39, -1e308]),
)


@st.composite
def numeric_input(draw: st.DrawFn, name: str) -> Input:
    low, high = sorted([draw(st.floats(-1e3, 1e3)), draw(st.floats(-1e3, 1e3))])
    mean, scale = draw(st.sampled_from([(0.0, 1.0), (0.1, 3.0), (-1e300, 1e-5), (0.0, 1e-300)]))
    impute = draw(st.floats(-1e3, 1e3))
    marks = draw(st.booleans())
    return Input(name, "numeric", "impute", marks, impute=impute, mean=mean, scale=scale, low=low, high=high)


def encode(encoder: Encoder, values: NDArray[Any]) -> list[Any]:
    """Return all that becomes of rows: their bits, the warnings and the faults."""
    warnings, faults = CellWarnings(), CellFaults()
    x = encoder.encode({each.name: values[:, j] for j, each in enumerate(encoder.inputs)}, warnings, faults)
    return [x.tobytes(), list(warnings), list(faults.warnings)]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), rows=st.integers(1, 6))
def test_a_number_becomes_the_feature_that_it_becomes_in_a_matrix(data: st.DataObject, rows: int) -> None:
    inputs = [data.draw(numeric_input(name)) for name in ("a", "b")]
    values = np.array(data.draw(st.lists(st.lists(number, min_size=2, max_size=2), min_size=rows, max_size=rows)))
    encoder = Encoder(tuple(inputs))

    features, _ = encoder.numeric_inputs.encode(values)

    with np.errstate(over="ignore"):
        for j, each in enumerate(inputs):
            for feature, value in zip(features[:, j].tolist(), values[:, j].tolist(), strict=True):
                expected = each.scaled(each.impute if np.isnan(value) else value)
                assert (expected if abs(expected) <= np.finfo(np.float32).max else 0.0) == feature


@settings(max_examples=150, deadline=None)
@given(data=st.data(), rows=st.integers(1, 9), narrow=st.booleans())
def test_rows_are_encoded_alike_alone_and_together(data: st.DataObject, rows: int, narrow: bool) -> None:
    encoder = Encoder(tuple(data.draw(numeric_input(name)) for name in ("a", "b", "c")))
    values = np.array(data.draw(st.lists(st.lists(number, min_size=3, max_size=3), min_size=rows, max_size=rows)))
    with np.errstate(over="ignore"):
        values = np.where(np.isinf(values.astype(np.float32)), 1.0, values).astype(np.float32) if narrow else values

    together = encode(encoder, values)

    alone = [encode(encoder, values[row : row + 1]) for row in range(rows)]
    assert together[0] == b"".join(x for x, _, _ in alone)
    for kind in (1, 2):
        codes = [(row, each.column, each.code) for row in range(rows) for each in alone[row][kind]]
        assert codes == [(each.row, each.column, each.code) for each in together[kind]]


def test_columns_longer_than_a_block_are_encoded_as_one_matrix() -> None:
    rows = numeric_inputs.BLOCK_CELLS // 2 + 3
    values = np.random.default_rng(0).normal(0, 1, (rows, 2))
    values[[0, rows - 1], [0, 1]] = np.nan
    values[[1, rows - 4, rows - 2], [1, 0, 1]] = 9.0
    inputs = [
        Input(name, "numeric", "impute", marks_missing=True, impute=0.5, mean=0.1, scale=0.3, low=-8, high=8)
        for name in "ab"
    ]

    x, warnings, faults = encode(Encoder(tuple(inputs)), values)

    expected = np.zeros((rows, 4), np.float32)
    expected[:, ::2] = (np.where(np.isnan(values), 0.5, values) - 0.1) / 0.3
    expected[0, 1] = expected[rows - 1, 3] = 1.0
    assert expected.tobytes() == x
    assert [] == faults
    assert [
        (0, "a", "imputed"),
        (1, "b", "out_of_range"),
        (rows - 4, "a", "out_of_range"),
        (rows - 2, "b", "out_of_range"),
        (rows - 1, "b", "imputed"),
    ] == [(each.row, each.column, each.code) for each in warnings]
