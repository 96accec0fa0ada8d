"""Columns as targets, as cells and as statistics, and the file they are kept in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.learning.table import TOP, TOP_CHARACTERS, Column, Label, Table, label_key, load, match_labels


def numeric(*values: float | None, posted: Any = "float") -> Column:
    return Column("n", "numeric", np.array([math.nan if v is None else v for v in values]), posted=posted)


def texts(*values: str | None, posted: Any = "str", kind: Any = "categorical") -> Column:
    categories = tuple(sorted({value for value in values if value is not None}))
    codes = [-1 if value is None else categories.index(value) for value in values]
    return Column("t", kind, np.array(codes, np.int32), categories, posted)


ODD = Column(
    "o", "numeric", np.array([1, 1, np.nan]), posted="str", codes=np.array([1, 0, -1], np.int32), spellings=("01", "1")
)


@pytest.mark.parametrize(
    ("column", "labels", "y"),
    [
        (numeric(3, None, 1, 3, posted="int"), [1, 3], [1, -1, 0, 1]),
        (numeric(0.5, 2.0), [0.5, 2.0], [0, 1]),
        (numeric(1, 0, posted="bool"), [False, True], [1, 0]),
        (texts("b", None, "a"), ["a", "b"], [1, -1, 0]),
        (texts("10", "9", posted="int"), [9, 10], [1, 0]),
        (ODD, ["01", "1"], [1, 0, -1]),
    ],
)
def test_labels_are_sorted_in_the_type_they_were_posted_with(column: Column, labels: list[Label], y: list[int]) -> None:
    found, codes = column.labels()

    assert labels == found
    assert [type(label) for label in labels] == [type(label) for label in found]
    assert y == codes.tolist()


def test_categories_that_no_cell_has_are_no_labels() -> None:
    column = Column("t", "categorical", np.array([2, 0], np.int32), ("a", "b", "c"), "str")

    labels, y = column.labels()

    assert ["a", "c"] == labels
    assert [1, 0] == y.tolist()
    assert 2 == column.describe()["unique"]


def test_cells_are_given_as_posted() -> None:
    assert [1, None] == numeric(1, None, 2, posted="int").cells(2)
    assert ["1", "01", None] == ODD.cells(9)
    assert ["a", None] == texts("a", None).cells(9)


@pytest.mark.parametrize(
    ("classes", "column", "y", "strange"),
    [
        ([1, 2], texts("2", "1", None), [1, 0, -1], []),
        (["1", "2"], numeric(2, 1, posted="int"), [1, 0], []),
        ([1.0, 2.0], numeric(2, 3, posted="int"), [1, -1], [3]),
        ([False, True], texts("True", "false"), [1, 0], []),
        (["a"], texts("a", "b"), [0, -1], ["b"]),
        ([2**53, 2**53 + 1], texts(str(2**53 + 1), posted="int"), [1], []),
    ],
)
def test_labels_meet_the_classes_of_a_model_whatever_their_type(
    classes: list[Label], column: Column, y: list[int], strange: list[Label]
) -> None:
    found, unknown = match_labels(column, classes)

    assert y == found.tolist()
    assert strange == unknown


def test_equal_labels_have_one_key() -> None:
    assert label_key(1) == label_key(1.0) == label_key("1") == "1"
    assert label_key(True) == label_key("True") == label_key("true") == "true"
    assert len({label_key(label) for label in ("01", 1, 1.5, "a", "A")}) == 5


def test_statistics_of_numbers_are_those_of_numpy_over_the_present_ones() -> None:
    values = np.random.default_rng(0).normal(50, 9, 100)

    found = numeric(*values.tolist(), None, None).describe()

    assert (2, 100) == (found["missing"], found["unique"])
    assert [values.min(), values.max(), values.mean(), values.std()] == [
        found[n] for n in ("min", "max", "mean", "std")
    ]
    json.dumps(found, allow_nan=False)


def test_statistics_beyond_float64_are_null() -> None:
    found = numeric(1e308, 1e308, -1e308).describe()

    assert (-1e308, 1e308, None) == (found["min"], found["max"], found["std"])


def test_the_most_frequent_values_come_first_and_long_ones_are_cut() -> None:
    values = ["b", "a", "b", "x" * 500, *(f"v{i}" for i in range(20))]

    top = texts(*values).describe()["top"]

    assert ["b", 2] == top[0]
    assert TOP == len(top)
    assert TOP_CHARACTERS + 1 == max(len(name) for name, _ in texts("x" * 500).describe()["top"])
    assert [["01", 1], ["1", 1]] == ODD.describe()["top"]


@pytest.mark.parametrize(
    ("column", "warning"),
    [
        (numeric(None, None), "every value is missing"),
        (numeric(2, 2, None), "constant"),
        (texts("a", "a"), "constant"),
        (numeric(*range(20), posted="int"), "identifier"),
        (texts(*(f"{i}" for i in range(20))), "identifier"),
        (texts("a", "b", kind="text"), "left out of the features"),
        (texts("2020-01-01", "2020-01-02", kind="datetime"), "left out of the features"),
    ],
)
def test_an_odd_column_has_a_warning(column: Column, warning: str) -> None:
    assert any(warning in each for each in column.describe()["warnings"])


@pytest.mark.parametrize("column", [numeric(1, 2, 2), numeric(*map(float, range(40))), texts("a", "b", "a")])
def test_an_ordinary_column_has_none(column: Column) -> None:
    assert [] == column.describe()["warnings"]


def test_a_table_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    odd = Column(ODD.name, "numeric", ODD.values, (), "str", ODD.codes, ODD.spellings, ("odd",))
    singles = Column("f", "numeric", np.array([1, 2, 3], np.float32))
    table = Table((numeric(1, None, 2**60), texts("é\n", None, "b"), odd, singles), "t", ("noticed",))

    table.save(tmp_path / "table")
    found = load(tmp_path / "table")

    assert (3, ["n", "t", "o", "f"], "t", ("noticed",)) == (
        found.rows,
        found.names,
        found.default_target,
        found.warnings,
    )
    for before, after in zip(table.columns, found.columns, strict=True):
        assert before.describe() == after.describe()
        assert before.cells(9) == after.cells(9)
        assert before.labels()[0] == after.labels()[0]
        assert before.values.dtype == after.values.dtype


def test_only_the_first_rows_are_read_where_no_more_are_asked_for(tmp_path: Path) -> None:
    Table((numeric(1, 2, 3), ODD), "n").save(tmp_path / "table")

    found = load(tmp_path / "table", limit=1)

    assert [[1.0], ["1"]] == [column.cells(9) for column in found.columns]


def test_an_unknown_column_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="z"):
        Table((numeric(1),), "n").column("z")


def test_spellings_of_true_that_are_classes_of_their_own_are_told_apart() -> None:
    texts = ("True", "maybe", "true")
    column = Column("y", "categorical", np.array([0, 1, 2], np.int32), texts, posted="str")

    y, unknown = match_labels(column, texts)

    assert ([0, 1, 2], []) == (y.tolist(), unknown)
