"""Encoding a table some rows at a time, to memory and to files: the same rows as encoding it whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.errors import Invalid
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.fit_encoder import fit_encoder
from app.learning.encoding.read_cells import table_cells
from app.learning.tables.column import Column
from app.learning.tables.incoming_table import TableLimits
from app.learning.tables.read_raw_file import read_raw_file
from app.learning.tables.table import Table
from app.learning.tables.table_file import TableFile, load_table, write_columns, write_table
from app.learning.training.encode_table import READ_BYTES, LabelledRows, encode_table
from app.learning.training.examples import Examples, ExampleSource
from app.learning.training.stored_examples import StoredExamples

#: memory in which nothing is kept, and in which all is
NONE, PLENTY = 1, 2**40


def file_of(folder: Path, table: Table) -> TableFile:
    write_table(folder / "table", table)
    return TableFile(folder / "table")


def parsed(folder: Path, columns: dict[str, list[Any]]) -> TableFile:
    (folder / "upload").write_text(json.dumps({"columns": columns}))
    return file_of(folder, read_raw_file(folder / "upload", "json", TableLimits(10_000, 50), {}))


def numbers(folder: Path, x: NDArray[np.float64]) -> TableFile:
    columns = (Column(f"x{i}", "numeric", values) for i, values in enumerate(x.T))
    write_columns(folder / "table", columns, x.shape[1], "x0")
    return TableFile(folder / "table")


def fitted(table: TableFile, names: list[str] | None = None, encoding: str = "auto") -> Encoder:
    rows = np.arange(table.rows)
    return fit_encoder(table, table.names if names is None else names, rows, scaling="standard", encoding=encoding)


def part(rows: NDArray[np.intp], *, is_weighted: bool = False) -> LabelledRows:
    return LabelledRows(rows, (rows % 7).astype(np.int32), rows.astype(np.float32) if is_weighted else None)


def contents(source: ExampleSource) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32] | None]:
    """All of a source as it is stored."""
    found = list(source.windows(None, 0, 4))
    x, y = (np.concatenate([getattr(window, name)[window.order] for window in found]) for name in ("x", "y"))
    weights = [window.weight[window.order] for window in found if window.weight is not None]
    return x, y, np.concatenate(weights) if weights else None


NUMBER = st.none() | st.floats(-1e6, 1e6) | st.integers(-9, 9)
TEXT = st.sampled_from([None, "a", "b", "c", "true", "007"])


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, list[Any]], list[list[int]]]:
    """Columns with missing values, and the rows of two parts that share none, with some in neither."""
    count = draw(st.integers(2, 40))
    cells = {"a": NUMBER, "b": st.none() | st.booleans(), "c": TEXT, "d": NUMBER}
    columns = {name: draw(st.lists(each, min_size=count, max_size=count)) for name, each in cells.items()}
    owners = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    return columns, [[row for row in range(count) if owners[row] == each] for each in (0, 1)]


@given(drawn=tables(), memory_bytes=st.sampled_from([NONE, 2000, PLENTY]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_are_the_rows_of_the_whole(tmp_path: Path, drawn: Any, memory_bytes: int) -> None:
    columns, owned = drawn
    table = parsed(tmp_path, columns)
    encoder = fitted(table)
    whole = load_table(tmp_path / "table")
    x = encoder.encode(table_cells(encoder, whole))
    parts = [part(np.array(rows, np.intp), is_weighted=bool(i)) for i, rows in enumerate(owned)]

    made = encode_table(table, encoder, parts, memory_bytes=memory_bytes, folder=tmp_path)

    for asked, source in zip(parts, made, strict=True):
        assert len(asked.rows) == source.rows
        if not source.rows:
            continue
        found = contents(source)
        np.testing.assert_array_equal(x[asked.rows], found[0])
        np.testing.assert_array_equal(asked.y, found[1])
        assert (asked.weight is None) == (found[2] is None)
        assert asked.weight is None or (asked.weight == found[2]).all()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[TableFile, NDArray[np.float64]]:
    """A table that is read in several blocks."""
    width = 200
    rows = 5 * READ_BYTES // (8 * width) // 2
    x = np.random.default_rng(0).normal(0, 1, (rows, width))
    x[::7, 3] = np.nan
    return numbers(tmp_path_factory.mktemp("wide"), x), x


@pytest.mark.slow
@pytest.mark.parametrize("memory_bytes", [10 * 1024**2, PLENTY], ids=["files", "memory"])
def test_a_table_of_several_blocks_is_encoded_as_one(
    wide: tuple[TableFile, NDArray[np.float64]], tmp_path: Path, memory_bytes: int
) -> None:
    table, x = wide
    encoder = fit_encoder(table, table.names, np.arange(table.rows), scaling="none", encoding="auto")
    held_out = np.arange(0, table.rows, 5)
    parts = [part(np.setdiff1d(np.arange(table.rows), held_out)), part(held_out, is_weighted=True)]

    made = encode_table(table, encoder, parts, memory_bytes=memory_bytes, folder=tmp_path)

    marked = np.column_stack([x[:, :4], np.isnan(x[:, 3]), x[:, 4:]]).astype(np.float32)
    marked[np.isnan(x[:, 3]), 3] = encoder.inputs[3].impute
    for asked, source in zip(parts, made, strict=True):
        assert isinstance(source, Examples if memory_bytes == PLENTY else StoredExamples)
        np.testing.assert_array_equal(marked[asked.rows], contents(source)[0])
    sizes = [file.stat().st_size for file in sorted(tmp_path.iterdir())]
    assert ([] if memory_bytes == PLENTY else [4 * encoder.width * len(each.rows) for each in parts]) == sizes


def test_rows_go_to_files_where_they_and_the_devices_copy_would_not_fit(tmp_path: Path) -> None:
    table = numbers(tmp_path, np.arange(200.0).reshape(100, 2))
    needed = 2 * 100 * 2 * 4

    kinds = {
        memory_bytes: type(encode_table(table, fitted(table), [part(np.arange(100))], memory_bytes=memory_bytes, folder=tmp_path)[0])
        for memory_bytes in (needed - 1, needed)
    }  # fmt: skip

    assert {needed - 1: StoredExamples, needed: Examples} == kinds


@pytest.mark.parametrize("memory_bytes", [NONE, PLENTY], ids=["files", "memory"])
@pytest.mark.parametrize("bad", [3, -2])
def test_an_error_names_the_row_of_the_whole_table(tmp_path: Path, memory_bytes: int, bad: int) -> None:
    """In the first block, and in the last."""
    rows = READ_BYTES // 8 // 64 + 1000
    x = np.ones((rows, 64))
    x[:, 0] = np.arange(rows)
    encoder = fitted(numbers(tmp_path, x), encoding="plain")
    x[bad, 2] = np.nan
    table = numbers(tmp_path, x)
    row = bad % rows

    with pytest.raises(Invalid, match=f"Expected a value in column 'x2', got none in row {row}") as caught:
        encode_table(table, encoder, [part(np.arange(rows))], memory_bytes=memory_bytes, folder=tmp_path)

    assert [(row, "x2")] == [fault.loc for fault in caught.value.faults]


@pytest.mark.slow
def test_an_error_of_another_kind_of_column_names_the_row_of_the_whole_table(tmp_path: Path) -> None:
    rows = READ_BYTES // 8 + 1000
    encoder = fitted(numbers(tmp_path, np.arange(8.0).reshape(8, 1)))
    codes = np.zeros(rows, np.int32)
    codes[-2] = 1
    column = Column("x0", "categorical", codes, ("1", "word"), "str")
    write_columns(tmp_path / "other", [column], 1, "x0")

    with pytest.raises(Invalid, match=f"Expected a finite number in column 'x0', got a text in row {rows - 2}"):
        encode_table(
            TableFile(tmp_path / "other"), encoder, [part(np.arange(rows))], memory_bytes=PLENTY, folder=tmp_path
        )


def test_a_table_with_none_of_the_columns_is_imputed_throughout(tmp_path: Path) -> None:
    """As one may be that a model is validated on."""
    encoder = fitted(parsed(tmp_path, {"a": [1.0, None, 3.0], "c": ["x", None, "y"]}))
    bare = parsed(tmp_path, {"y": ["u", "v"]})

    (source,) = encode_table(bare, encoder, [part(np.arange(2))], memory_bytes=PLENTY, folder=tmp_path)

    assert [[0, 1, 0, 0, 1]] * 2 == contents(source)[0].tolist()


def test_a_column_that_must_not_be_missing_is_asked_for(tmp_path: Path) -> None:
    encoder = fitted(parsed(tmp_path, {"a": [1.0, 2.0], "b": [1.0, 2.0]}), encoding="plain")
    other = parsed(tmp_path, {"a": [1.0, 2.0]})

    with pytest.raises(Invalid, match="Expected a column 'b', got none"):
        encode_table(other, encoder, [part(np.arange(2))], memory_bytes=PLENTY, folder=tmp_path)


def test_a_table_larger_than_the_memory_is_never_held(tmp_path: Path) -> None:
    """What NumPy holds at once is a block and what becomes of it, however many there are."""
    import tracemalloc

    width = 64
    rows = 6 * READ_BYTES // (8 * width)
    columns = (Column(f"x{i}", "numeric", np.full(rows, float(i))) for i in range(width))
    write_columns(tmp_path / "table", columns, width, "x0")
    table = TableFile(tmp_path / "table")
    encoder = fit_encoder(table, table.names, np.arange(2), scaling="none", encoding="plain")
    parts = [part(np.arange(rows))]
    tracemalloc.start()
    try:
        (source,) = encode_table(table, encoder, parts, memory_bytes=8 * 1024**2, folder=tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert isinstance(source, StoredExamples)
    assert peak < 3.5 * READ_BYTES
