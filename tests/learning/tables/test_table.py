"""Columns as targets, as cells and as statistics, and the file they are kept in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from app.learning.tables.column import Column, match_labels
from app.learning.tables.describe_column import TOP, TOP_CHARACTERS, describe
from app.learning.tables.label import Label, label_key
from app.learning.tables.table import Table
from app.learning.tables.table_file import TableFile, load_table, write_table


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
    assert 2 == describe(column)["unique"]


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

    found = describe(numeric(*values.tolist(), None, None))

    assert (2, 100) == (found["missing"], found["unique"])
    assert [values.min(), values.max(), values.mean(), values.std()] == [
        found[n] for n in ("min", "max", "mean", "std")
    ]
    json.dumps(found, allow_nan=False)


def test_statistics_beyond_float64_are_null() -> None:
    found = describe(numeric(1e308, 1e308, -1e308))

    assert (-1e308, 1e308, None) == (found["min"], found["max"], found["std"])


def test_the_most_frequent_values_come_first_and_long_ones_are_cut() -> None:
    values = ["b", "a", "b", "x" * 500, *(f"v{i}" for i in range(20))]

    top = describe(texts(*values))["top"]

    assert ["b", 2] == top[0]
    assert TOP == len(top)
    assert TOP_CHARACTERS + 1 == max(len(str(name)) for name, _ in describe(texts("x" * 500))["top"])
    assert [["01", 1], ["1", 1]] == describe(ODD)["top"]


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
    assert any(warning in each for each in describe(column)["warnings"])


@pytest.mark.parametrize("column", [numeric(1, 2, 2), numeric(*map(float, range(40))), texts("a", "b", "a")])
def test_an_ordinary_column_has_none(column: Column) -> None:
    assert [] == describe(column)["warnings"]


def test_a_table_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    odd = Column(ODD.name, "numeric", ODD.values, (), "str", ODD.codes, ODD.spellings, ("odd",))
    singles = Column("f", "numeric", np.array([1, 2, 3], np.float32))
    table = Table((numeric(1, None, 2**60), texts("é\n", None, "b"), odd, singles), "t", ("noticed",))

    write_table(tmp_path / "table", table)
    found = load_table(tmp_path / "table")

    assert (3, ["n", "t", "o", "f"], "t", ("noticed",)) == (
        found.rows,
        found.names,
        found.default_target,
        found.warnings,
    )
    for before, after in zip(table.columns, found.columns, strict=True):
        assert describe(before) == describe(after)
        assert before.cells(9) == after.cells(9)
        assert before.labels()[0] == after.labels()[0]
        assert before.values.dtype == after.values.dtype


def test_only_the_first_rows_are_read_where_no_more_are_asked_for(tmp_path: Path) -> None:
    write_table(tmp_path / "table", Table((numeric(1, 2, 3), ODD), "n"))

    found = load_table(tmp_path / "table", limit=1)

    assert [[1.0], ["1"]] == [column.cells(9) for column in found.columns]


def test_an_unknown_column_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="z"):
        Table((numeric(1),), "n").column("z")


def test_spellings_of_true_that_are_classes_of_their_own_are_told_apart() -> None:
    texts = ("True", "maybe", "true")
    column = Column("y", "categorical", np.array([0, 1, 2], np.int32), texts, posted="str")

    y, unknown = match_labels(column, texts)

    assert ([0, 1, 2], []) == (y.tolist(), unknown)


#: one column of each way that a table keeps cells
MANY = Table(
    (
        numeric(*range(20_000)),
        Column("f", "numeric", np.arange(20_000, dtype=np.float32)),
        Column("o", "numeric", np.ones(20_000), codes=np.arange(20_000, dtype=np.int32) % 2, spellings=("01", "1")),
        texts(*("é\n", None, "b", "b") * 5000),
    ),
    "t",
    ("noticed",),
)


def shown(column: Column) -> list[Any]:
    """Give what can be compared of a column: its fields, and its cells as bytes."""
    fields = {
        field: getattr(column, field) for field in ("name", "kind", "categories", "posted", "spellings", "warnings")
    }
    return [fields, *((a.dtype, a.tobytes()) for a in (column.values, column.codes) if a is not None)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `MANY` is kept."""
    path = tmp_path_factory.mktemp("table") / "table"
    write_table(path, MANY)
    return path


def test_a_file_tells_its_schema_and_gives_a_column_at_a_time(path: Path) -> None:
    file = TableFile(path)

    assert (20_000, ["n", "f", "o", "t"], "t", ("noticed",)) == (
        file.rows,
        file.names,
        file.default_target,
        file.warnings,
    )
    for column in MANY.columns:
        assert shown(column) == shown(file.column(column.name))
    with pytest.raises(KeyError, match="z"):
        file.column("z")


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (8191, 8193), (19_999, 30_000), (5, 5), (30_000, 30_001)])
def test_rows_of_a_file_are_those_of_the_table(path: Path, start: int, stop: int) -> None:
    file = TableFile(path)

    part = file.slice(start, stop, ["t", "o"])

    assert ["t", "o"] == part.names
    assert [MANY.column(n).cells(20_000)[start:stop] for n in part.names] == [c.cells(20_000) for c in part.columns]
    # texts are there once, however many parts are read
    assert part.column("t").categories is file.column("t").categories


@pytest.mark.parametrize("rows", [[], [0], [19_999], [0, 1, 8191, 8192, 16_385, 19_999], list(range(20_000))])
def test_a_few_rows_of_a_file_are_those_of_the_table(path: Path, rows: list[int]) -> None:
    part = TableFile(path).take(np.array(rows, np.intp), ["f", "t"])

    for column in part.columns:
        whole = MANY.column(column.name)
        assert whole.values.dtype == column.values.dtype
        assert whole.values[rows].tolist() == column.values.tolist()


def test_a_file_is_one_that_safetensors_reads(path: Path) -> None:
    with safe_open(path, "numpy") as file:
        assert {"0", "1", "2", "2.codes", "3", "schema"} == set(file.keys())
        assert MANY.columns[0].values.tolist() == file.get_tensor("0").tolist()
        assert [1.0, 2.0] == file.get_slice("1")[1:3].tolist()
        assert "é\n" in json.loads(file.get_tensor("schema").tobytes())["columns"][3]["categories"]


def test_a_file_of_the_layout_of_safetensors_itself_opens(tmp_path: Path, path: Path) -> None:
    with safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # as ASCII, which is how earlier releases wrote it
    schema = json.dumps(json.loads(tensors["schema"].tobytes())).encode()
    save_file({**tensors, "schema": np.frombuffer(schema, np.uint8)}, tmp_path / "table")

    found = TableFile(tmp_path / "table")

    assert [shown(column) for column in MANY.columns] == [shown(found.column(name)) for name in found.names]


@pytest.mark.parametrize("kept", [0, 4, 100, 60_000])
def test_a_file_that_is_cut_off_is_a_value_error(tmp_path: Path, path: Path, kept: int) -> None:
    (tmp_path / "table").write_bytes(path.read_bytes()[:kept])

    with pytest.raises(ValueError, match="Expected"):
        TableFile(tmp_path / "table")


def test_what_has_been_read_is_not_mapped(path: Path) -> None:
    file = TableFile(path)
    file.column("n")

    assert str(path) not in Path("/proc/self/maps").read_text()


def test_a_table_of_many_columns_has_room_for_its_header(tmp_path: Path) -> None:
    codes = np.array([0], np.int32)
    columns = [Column(f"c{i}", "numeric", np.ones(1), codes=codes, spellings=("01",)) for i in range(3000)]

    write_table(tmp_path / "table", Table(tuple(columns), "c0"))

    with safe_open(tmp_path / "table", "numpy") as file:
        assert 6001 == len(list(file.keys()))
    assert 3000 == len(TableFile(tmp_path / "table").names)
