"""Columns to features: the same bits whichever way a row comes in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.errors import Invalid
from app.learning.encoding.cell_warnings import CellWarning, CellWarnings
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.fit_encoder import fit_encoder
from app.learning.encoding.read_cells import records_cells, table_cells
from app.learning.tables.column import ColumnKind
from app.learning.tables.incoming_table import TableLimits
from app.learning.tables.read_raw_file import read_raw_file
from app.learning.tables.table import Table

Columns = dict[str, list[Any]]


def to_table(folder: Path, columns: Columns, kinds: dict[str, ColumnKind] | None = None) -> Table:
    (folder / "upload").write_text(json.dumps({"columns": columns}))
    return read_raw_file(folder / "upload", "json", TableLimits(1000, 50), kinds or {})


def to_csv_table(folder: Path, columns: Columns) -> Table:
    file = io.StringIO()
    rows = zip(*columns.values(), strict=True)
    csv.writer(file).writerows([list(columns), *(["" if cell is None else cell for cell in row] for row in rows)])
    (folder / "upload").write_text(file.getvalue(), newline="")
    return read_raw_file(folder / "upload", "csv", TableLimits(1000, 50), {})


def fitted(table: Table, rows: Sequence[int] = (), scaling: str = "standard", encoding: str = "auto") -> Encoder:
    chosen = np.array(rows or range(table.rows))
    return fit_encoder(table, table.names, chosen, scaling=scaling, encoding=encoding)


def encoded(encoder: Encoder, columns: Columns) -> NDArray[np.float32]:
    return encoder.encode(records_cells(encoder, columns, len(next(iter(columns.values())))))


def test_numbers_become_standard_scores_in_float64(tmp_path: Path) -> None:
    values = [1e9 + i for i in (1, 2, 4, 8)]

    x = encoded(fitted(to_table(tmp_path, {"a": values})), {"a": values})

    expected = (np.array(values) - np.mean(values)) / np.std(values)
    assert np.float32 == x.dtype
    np.testing.assert_array_equal(expected.astype(np.float32)[:, None], x)


def test_without_scaling_and_marks_nothing_stands_between_the_matrix_and_the_network(tmp_path: Path) -> None:
    columns: Columns = {"a": [0.1, -2.0, 3e30], "b": [1, 2, 3]}

    x = encoded(fitted(to_table(tmp_path, columns), scaling="none", encoding="plain"), columns)

    np.testing.assert_array_equal(np.array([*columns.values()]).T.astype(np.float32), x)


def test_missing_numbers_become_the_median_and_a_mark(tmp_path: Path) -> None:
    columns = {"a": [1.0, None, 2.0, 9.0]}

    marked = encoded(fitted(to_table(tmp_path, columns), scaling="none"), columns)
    plain = encoded(fitted(to_table(tmp_path, columns), scaling="none", encoding="plain"), columns)

    assert [[1, 0], [2, 1], [2, 0], [9, 0]] == marked.tolist()
    assert [[1], [2], [2], [9]] == plain.tolist()


def test_a_category_becomes_a_one_among_zeros_and_an_unseen_one_zeros(tmp_path: Path) -> None:
    encoder = fitted(to_table(tmp_path, {"c": ["b", "a", None]}))

    x = encoded(encoder, {"c": ["a", "b", None, "z", " a "]})

    assert [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]] == x.tolist()


def test_booleans_become_zero_and_one_and_missing_ones_the_most_frequent(tmp_path: Path) -> None:
    encoder = fitted(to_table(tmp_path, {"b": [True, True, False]}))

    x = encoded(encoder, {"b": [False, True, None, "TRUE", "false", 0, 1.0]})

    assert [0, 1, 1, 1, 0, 0, 1] == x[:, 0].tolist()


def test_an_encoder_learns_from_the_training_rows_alone(tmp_path: Path) -> None:
    table = to_table(tmp_path, {"a": [1, 3, 100], "c": ["x", "y", "z"]})

    number, category = fitted(table, rows=[0, 1]).inputs

    assert (2, 1, 1, 3) == (number.mean, number.scale, number.low, number.high)
    assert ("x", "y") == category.categories


@pytest.mark.parametrize("magnitude", [1e-300, 1e-30, 1e-3, 1.0, 1e3, 1e30, 1e300, 4e307])
@pytest.mark.parametrize("rows", [3, 200])
def test_scores_do_not_depend_on_the_magnitude(tmp_path: Path, magnitude: float, rows: int) -> None:
    unit = np.random.default_rng(0).uniform(-1, 1, rows)

    scaled = (unit * magnitude).tolist()
    x = encoded(fitted(to_table(tmp_path, {"a": scaled})), {"a": [*scaled, None]})

    expected = (unit - unit.mean()) / unit.std()
    np.testing.assert_allclose(expected, x[:-1, 0], rtol=1e-6, atol=1e-6)
    assert np.isfinite(x[-1, 0])


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-300, 7e300, 1e9 + 0.1])
def test_a_constant_column_becomes_zero(tmp_path: Path, value: float) -> None:
    encoder = fitted(to_table(tmp_path, {"a": [value] * 7}))

    x = encoded(encoder, {"a": [value, None]})

    assert [[0], [0]] == x.tolist()
    assert 1 == encoder.inputs[0].scale


def test_a_column_without_a_value_in_the_training_rows_still_encodes(tmp_path: Path) -> None:
    table = to_table(tmp_path, {"a": [None, 5], "c": [None, "x"]})

    encoder = fitted(table, rows=[0])

    assert [[0, 1, 1], [5, 0, 0]] == encoder.encode(table_cells(encoder, table)).tolist()


def test_plain_encoding_refuses_a_missing_value_that_no_row_of_the_table_lacked(tmp_path: Path) -> None:
    encoder = fitted(to_table(tmp_path, {"a": [1, 2], "b": [1, None]}), rows=[0], encoding="plain")

    assert ["error", "impute"] == [each.missing for each in encoder.inputs]
    with pytest.raises(Invalid, match="Expected a value in column 'a', got none in row 1") as caught:
        encoded(encoder, {"a": [1, None], "b": [1, 1]})
    assert (1, "a") == caught.value.faults[0].loc
    with pytest.raises(Invalid, match="Expected a column 'a', got none; the model does not impute it"):
        encoded(encoder, {"b": [1]})


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("n", "five", "Expected a finite number in column 'n', got a text in row 1"),
        ("n", "1e999", "got a text in row 1"),
        ("n", "inf", "got a text in row 1"),
        ("n", "1_000", "got a text in row 1"),
        ("n", "٣", "got a text in row 1"),
        ("n", True, "got a boolean in row 1"),
        ("n", [1], "got a list in row 1"),
        ("n", float("nan"), "got a number in row 1"),
        ("n", 10**400, "got a number in row 1"),
        ("b", 2, "Expected true or false in column 'b', got a number in row 1"),
        ("b", "yes", "got a text in row 1"),
        ("c", {"a": 1}, "Expected a text or a number in column 'c', got an object in row 1"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_at_its_place(
    tmp_path: Path, column: str, value: Any, message: str
) -> None:
    columns: Columns = {"n": [1, 2.5], "b": [True, False], "c": ["x", "y"]}
    encoder = fitted(to_table(tmp_path, columns))
    columns[column][1] = value

    with pytest.raises(Invalid) as caught:
        encoded(encoder, columns)

    assert message in caught.value.message
    assert ((1, column), "wrong_type") == (caught.value.faults[0].loc, caught.value.faults[0].code)


def test_a_number_beyond_float32_after_scaling_is_refused_at_its_place(tmp_path: Path) -> None:
    encoder = fitted(to_table(tmp_path, {"a": [1, 2]}), scaling="none")

    with pytest.raises(Invalid, match="within float32 in column 'a' after scaling, got a larger one in row 1"):
        encoded(encoder, {"a": [1, 1e39]})


def test_odd_cells_are_noted(tmp_path: Path) -> None:
    encoder = fitted(to_table(tmp_path, {"a": [1, 2, None], "c": ["x", "y", "x"]}))
    notes = CellWarnings()

    encoder.encode(records_cells(encoder, {"a": [None, 2.5, 1], "c": ["z", "x", None]}, 3), notes)

    assert {
        CellWarning(0, "a", "imputed"),
        CellWarning(1, "a", "out_of_range"),
        CellWarning(0, "c", "unseen_category"),
        CellWarning(2, "c", "imputed"),
    } == set(notes)


def test_an_encoder_comes_back_from_its_document(tmp_path: Path) -> None:
    columns: Columns = {"a": [1, 2.5, None], "b": [True, False, None], "c": ["x", "é", None]}
    encoder = fitted(to_table(tmp_path, columns))

    found = Encoder.from_document(json.loads(json.dumps(encoder.document(), allow_nan=False)))

    assert encoder == found
    assert encoded(encoder, columns).tobytes() == encoded(found, columns).tobytes()


@pytest.mark.parametrize(
    ("trained", "posted", "code"),
    [
        ("1", 1, 0),
        ("1", 1.0, 0),
        ("1.0", 1, 0),
        ("1.50", 1.5, 0),
        ("01", "01", 0),
        ("01", 1, -2),
        ("True", True, 0),
        ("true", "TRUE", 0),
        ("9007199254740993", 9007199254740993, 0),
        ("9007199254740993", 9007199254740992, -2),
        ("1", 2, -2),
        ("x", "X", -2),
        ("x", "?", -1),
    ],
)
def test_a_number_meets_its_category_however_it_is_spelled(
    tmp_path: Path, trained: str, posted: Any, code: int
) -> None:
    encoder = fitted(to_table(tmp_path, {"c": [trained]}, {"c": "categorical"}))

    assert [code] == records_cells(encoder, {"c": [posted]}, 1)["c"].tolist()
    assert [code] == table_cells(encoder, to_table(tmp_path, {"c": [posted]}))["c"].tolist()


def test_spellings_of_one_meaning_are_one_category(tmp_path: Path) -> None:
    encoder = fitted(to_table(tmp_path, {"c": ["1.0", "1", "01", "True", "true", "x"]}))

    assert ("01", "1", "True", "x") == encoder.inputs[0].categories
    assert [1, 1, 0, 2, 2, 3] == encoded(encoder, {"c": [1, "1.0", "01", True, "true", "x"]}).argmax(1).tolist()


@pytest.mark.parametrize(
    "columns",
    [
        {"n": ["7", "1e1"], "b": [0, 1]},
        {"n": ["x", "1"], "b": [0, 1]},
        {"n": [1, 2], "b": [5, 1]},
        {"n": [True], "b": [1]},
    ],
)
def test_a_table_of_another_kind_is_read_or_refused_as_posted_values_are(tmp_path: Path, columns: Columns) -> None:
    encoder = fitted(to_table(tmp_path, {"n": [1, 2.5], "b": [True, False]}))
    rows = len(columns["n"])

    def outcome(read: Callable[[], dict[str, NDArray[Any]]]) -> bytes | str:
        try:
            return encoder.encode(read()).tobytes()
        except Invalid as error:
            return error.message

    posted = outcome(lambda: records_cells(encoder, columns, rows))
    tabled = outcome(lambda: table_cells(encoder, to_table(tmp_path, columns)))

    assert posted == tabled


number = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.floats(-1e300, 1e300),
    st.integers(-(2**60), 2**60),
    st.sampled_from([0.1, 1e30, 1e-30, 5e-324]),
    st.none(),
)
word = st.one_of(st.sampled_from(["a", "b", "1", "01", "1.0", "true", "True", "2.50", " x", "nan", "é\n"]), st.none())
KINDS = {"number": number, "truth": st.one_of(st.booleans(), st.none()), "word": word}


@settings(max_examples=80, deadline=None)
@given(data=st.data(), encoding=st.sampled_from(["auto", "plain"]))
def test_a_row_has_the_same_bits_whichever_way_it_comes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, encoding: str
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    rows = data.draw(st.integers(1, 8))
    columns = {kind: [data.draw(values) for _ in range(rows)] for kind, values in KINDS.items()}
    table = to_table(folder, columns, {"number": "numeric", "truth": "boolean", "word": "categorical"})
    encoder = fitted(table, encoding=encoding)

    x = encoded(encoder, columns)

    assert np.isfinite(x).all()
    for other in (table, to_table(folder, columns), to_csv_table(folder, columns)):
        assert x.tobytes() == encoder.encode(table_cells(encoder, other)).tobytes()
    alone = [encoded(encoder, {name: cells[i : i + 1] for name, cells in columns.items()}) for i in range(rows)]
    assert x.tobytes() == np.concatenate(alone).tobytes()
    as_csv = {name: ["" if cell is None else str(cell) for cell in cells] for name, cells in columns.items()}
    assert x.tobytes() == encoded(encoder, as_csv).tobytes()
