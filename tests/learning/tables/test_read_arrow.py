"""Parquet, Arrow and lines of JSON to typed columns, as the other forms give them, and back to Arrow."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import FitserveError, Invalid, Malformed, TooLarge
from app.learning.requests.read_rows import read_rows
from app.learning.tables.describe_column import describe
from app.learning.tables.incoming_table import MemoryBudget, TableLimits
from app.learning.tables.read_raw_file import read_raw_file
from app.learning.tables.table import Table
from app.learning.tables.transcode_arrow import to_frame

BOUNDS = TableLimits(rows=1000, columns=50)
FORMS = ("parquet", "arrow_file", "arrow_stream")
Read = Callable[..., Table]


def write(frame: pl.DataFrame, form: str) -> bytes:
    file = io.BytesIO()
    if form == "parquet":
        frame.write_parquet(file)
    elif form == "arrow_file":
        frame.write_ipc(file)
    else:
        frame.write_ipc_stream(file)
    return file.getvalue()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an upload lies."""
    return tmp_path_factory.mktemp("frames") / "upload"


@pytest.fixture(scope="module")
def read(path: Path) -> Read:
    """Parse bytes, or a frame written in this form."""

    def run(given: bytes | pl.DataFrame, form: str, bounds: TableLimits = BOUNDS, **kinds: Any) -> Table:
        path.write_bytes(given if isinstance(given, bytes) else write(given, form))
        whole = read_raw_file(path, form, bounds, kinds)
        in_passes = read_raw_file(path, form, bounds, kinds, MemoryBudget(pass_bytes=1, block_bytes=1))
        assert [describe(column) for column in whole.columns] == [describe(column) for column in in_passes.columns]
        return in_passes

    return run


MOMENT = datetime(2020, 1, 31, 10, 0, 0, 1000, UTC)
TYPES: dict[str, tuple[list[Any], Any, str, list[Any]]] = {
    **{
        str(dtype): ([1, None, 3], dtype, "numeric", [1, None, 3])
        for dtype in (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Int128, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
    },
    "largest": ([2**64 - 1, None, 2**53 + 1], pl.UInt64, "numeric", [2**64 - 1, None, 2**53 + 1]),
    "Float16": ([1.5, None, float("nan")], pl.Float16, "numeric", [1.5, None, None]),
    "Float32": ([1.5, None, float("nan")], pl.Float32, "numeric", [1.5, None, None]),
    "Float64": ([0.1, None, float("nan")], pl.Float64, "numeric", [0.1, None, None]),
    "Decimal": ([Decimal("1.25"), None, Decimal(-2)], pl.Decimal(20, 2), "numeric", [1.25, None, -2.0]),
    "Boolean": ([True, None, False], pl.Boolean, "boolean", [True, None, False]),
    "String": (["x", None, " y "], pl.String, "categorical", ["x", None, "y"]),
    "spelled missing": (["x", "N/A", "?"], pl.String, "categorical", ["x", None, None]),
    "spelled numbers": (["1", None, "02"], pl.String, "numeric", ["1", None, "02"]),
    "Categorical": (["x", None, "y"], pl.Categorical, "categorical", ["x", None, "y"]),
    "Enum": (["x", None, "y"], pl.Enum(["y", "z", "x"]), "categorical", ["x", None, "y"]),
    "Date": ([date(2020, 1, 31), None], pl.Date, "datetime", ["2020-01-31", None]),
    "Datetime": ([MOMENT.replace(tzinfo=None), None], pl.Datetime("ms"), "datetime", ["2020-01-31T10:00:00.001", None]),
    "Datetime in a zone": (
        [MOMENT, None],
        pl.Datetime("us", "Europe/Berlin"),
        "datetime",
        ["2020-01-31T11:00:00.001000+01:00", None],
    ),
    "Null": ([None, None], pl.Null, "numeric", [None, None]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TYPES)
def test_each_type_becomes_a_kind_and_its_cells_come_back(read: Read, form: str, name: str) -> None:
    values, dtype, kind, expected = TYPES[name]

    column = read(pl.DataFrame({"a": pl.Series(values, dtype=dtype)}), form).column("a")

    assert kind == column.kind
    assert expected == column.cells(9)
    assert [type(cell) for cell in expected] == [type(cell) for cell in column.cells(9)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("list", pl.Series([[1]])),
        ("array", pl.Series([[1, 2]], dtype=pl.Array(pl.Int8, 2))),
        ("struct", pl.Series([{"a": 1}])),
        ("binary", pl.Series([b"x"])),
        ("time", pl.Series([time(1)])),
        ("duration", pl.Series([timedelta(1)])),
        ("extension", pl.Series([1]).ext.to(pl.Extension("acme.money", pl.Int64))),
    ],
)
def test_a_type_that_is_no_cell_is_refused_by_its_column(read: Read, form: str, name: str, series: pl.Series) -> None:
    frame = pl.DataFrame({"fine": [1], "odd": series})

    with pytest.raises(Invalid, match=f"dates or date-times in column 'odd', got {name}") as caught:
        read(frame, form)

    assert ("columns", "odd") == caught.value.faults[0].loc


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [pl.Float16, pl.Float32, pl.Float64])
def test_an_infinite_number_is_refused_at_its_place(read: Read, form: str, dtype: pl.DataType) -> None:
    frame = pl.DataFrame({"a": [1, 2, 3], "b": pl.Series([0.5, None, float("-inf")], dtype=dtype)})

    with pytest.raises(Invalid, match="finite numbers in column 'b', got an infinite one in row 2") as caught:
        read(frame, form)

    assert ("rows", 2, "b") == caught.value.faults[0].loc


def test_an_infinite_number_in_lines_of_json_is_refused_at_its_line(read: Read) -> None:
    with pytest.raises(Invalid, match=r"finite numbers, got another in .* line 2"):
        read(b'{"a": 1}\n{"a": 1e999}\n', "ndjson")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("names", "kind", "words"),
    [
        (["a\x1b[31m", "b"], Invalid, "printable characters; column 0"),
        (["a", "b\x00"], Invalid, "printable characters; column 1"),
        (["a", "b" * 201], Invalid, "printable characters; column 1"),
        (["a", " a"], Invalid, "different column names, got 'a' twice"),
        ([f"c{i}" for i in range(10_001)], TooLarge, "at most 10000 columns, got 10001"),
        ([], Invalid, "at least one row of data, got none"),
    ],
    ids=["an escape", "NUL", "long", "alike but for a blank", "10,001", "none"],
)
def test_names_that_are_none_are_refused(
    read: Read, form: str, names: list[str], kind: type[FitserveError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        read(pl.DataFrame({name: [1] for name in names}), form, TableLimits(rows=10, columns=10_000))


@pytest.mark.parametrize("form", FORMS)
def test_two_columns_of_one_name_are_refused(read: Read, form: str) -> None:
    body = write(pl.DataFrame({"length_a": [1], "length_b": [2]}), form).replace(b"length_b", b"length_a")

    with pytest.raises(Malformed, match="different column names"):
        read(body, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "words"), [(0, "got none"), (11, "at most 10 rows, got 11")])
def test_rows_are_counted(read: Read, form: str, rows: int, words: str) -> None:
    with pytest.raises((Invalid, TooLarge), match=words):
        read(pl.DataFrame({"a": pl.repeat(1, rows, eager=True)}), form, TableLimits(rows=10, columns=1))


@pytest.mark.parametrize("form", FORMS)
def test_cells_are_counted(read: Read, form: str) -> None:
    with pytest.raises(TooLarge, match="at most 29 cells, got 10 rows of 3 columns"):
        read(pl.DataFrame({name: [1] * 10 for name in "abc"}), form, TableLimits(rows=10, columns=3, cells=29))


LINES: dict[str, tuple[bytes, type[FitserveError] | None, str]] = {
    "blank lines, a mark and CRLF": (b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}', None, ""),
    "no rows": (b"\n \n", Invalid, "at least one row of data, got none"),
    "no JSON": (b'{"a": 1}\n{"a": \n', Malformed, "Expected a JSON object in line 2"),
    "NaN": (b'{"a": NaN}\n', Malformed, "Expected a JSON object in line 1"),
    "two in a line": (b'{"a": 1} {"a": 2}\n', Malformed, "Expected a JSON object in line 1"),
    "broken UTF-8": (b'{"a": 1}\n\n{"a": "\xff"}\n', Malformed, "in line 3"),
    "depth": (b'{"a": ' + b"[" * 100_000 + b"\n", Malformed, "in line 1"),
    "a list": (b'{"a": 1}\n[1]\n', Invalid, "Expected record 1 to be an object, got a list"),
    "a nested cell": (b'{"a": 1}\n{"a": {}}\n', Invalid, "in column 'a', got an object in row 1"),
    "too many rows": (b'{"a": 1}\n' * 1001, TooLarge, "at most 1000 rows, got more"),
    "too many names": (json.dumps({f"c{i}": 1 for i in range(51)}).encode(), TooLarge, "at most 50 columns"),
    "an escape in a name": (rb'{"a\u001b": 1}', Invalid, "printable characters; column 0"),
}


@pytest.mark.parametrize(("body", "kind", "words"), LINES.values(), ids=LINES)
def test_lines_of_json_are_read_or_refused(
    read: Read, body: bytes, kind: type[FitserveError] | None, words: str
) -> None:
    if kind is None:
        assert [1, 2] == read(body, "ndjson").column("a").cells(9)
        return

    with pytest.raises(FitserveError, match=words) as caught:
        read(body, "ndjson")

    assert kind is type(caught.value)


words_ = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"]), min_size=1, max_size=5)
CELLS: dict[str, st.SearchStrategy[Any]] = {
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "integer": st.integers(-(2**63), 2**63 - 1),
    "word": words_.map(lambda word: f"w{word}"),
}
DTYPES = {"number": pl.Float64, "integer": pl.Int64, "word": pl.String, "label": pl.Int64}


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_table_is_the_same_in_every_form(read: Read, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 12))
    chosen = data.draw(st.lists(st.sampled_from(sorted(CELLS)), min_size=1, max_size=4))
    columns = {
        f"{kind} {i}": [data.draw(CELLS[kind]), *(data.draw(st.none() | CELLS[kind]) for _ in range(rows - 1))]
        for i, kind in enumerate(chosen)
    }
    columns["label"] = [data.draw(st.integers(-3, 3)) for _ in range(rows)]
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    frame = pl.DataFrame([pl.Series(n, cells, dtype=DTYPES[n.split(" ")[0]]) for n, cells in columns.items()])
    text = io.StringIO()
    csv.writer(text).writerows([list(columns), *(["" if c is None else c for c in r.values()] for r in records)])

    tables = {
        "csv": read(text.getvalue().encode(), "csv"),
        "json": read(json.dumps({"columns": columns}).encode(), "json"),
        "ndjson": read("\n".join(json.dumps(record) for record in records).encode(), "ndjson"),
        **{form: read(frame, form) for form in FORMS},
    }

    for form, table in tables.items():
        assert columns == {column.name: column.cells(rows) for column in table.columns}, form
        assert [describe(c) for c in tables["csv"].columns] == [describe(c) for c in table.columns], form
        labels, y = table.column("label").labels()
        assert sorted(set(columns["label"])) == labels, form
        assert {int} == {type(label) for label in labels}, form
        assert columns["label"] == [labels[i] for i in y.tolist()], form


@pytest.mark.parametrize("form", FORMS)
def test_what_is_to_be_predicted_becomes_arrays_of_numbers_and_lists_of_what_could_have_been_posted(
    path: Path, form: str
) -> None:
    frame = pl.DataFrame(
        {
            "number": pl.Series([0.1, float("nan"), float("inf")], dtype=pl.Float64),
            "narrow": pl.Series([0.1, None, -1], dtype=pl.Float32),
            "integer": pl.Series([2**63, None, 1], dtype=pl.UInt64),
            "truth": [True, None, False],
            "word": pl.Series(["x", None, "y"], dtype=pl.Categorical),
            "day": [date(2020, 1, 31), None, None],
            "count": pl.Series([2**63, 0, 1], dtype=pl.UInt64),
            "long": pl.Series([2**63, 0, 1], dtype=pl.Int128),
        }
    )
    path.write_bytes(write(frame, form))

    found = read_rows("frame", to_frame(path, form, BOUNDS), [], 0)

    arrays = {name: cells for name, cells in found.columns.items() if isinstance(cells, np.ndarray)}
    assert {"number": "<f8", "narrow": "<f8", "count": "<u8"} == {name: x.dtype.str for name, x in arrays.items()}
    np.testing.assert_array_equal([0.1, np.nan, np.inf], arrays["number"])
    np.testing.assert_array_equal([np.float32(0.1), np.nan, -1], arrays["narrow"])
    assert [2**63, 0, 1] == arrays["count"].tolist()
    assert {
        "integer": [2**63, None, 1],
        "truth": [True, None, False],
        "word": ["x", None, "y"],
        "day": ["2020-01-31", None, None],
        "long": [2**63, 0, 1],
    } == {name: cells for name, cells in found.columns.items() if name not in arrays}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_without_rows_is_nothing_to_predict(path: Path, form: str) -> None:
    path.write_bytes(write(pl.DataFrame({"a": pl.Series([], dtype=pl.Float64)}), form))

    with pytest.raises(Invalid, match="at least one"):
        read_rows("frame", to_frame(path, form, BOUNDS), [], 0)


def test_integers_that_json_cannot_carry_are_refused(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [1.0], "y": pl.Series([2**70], dtype=pl.Int128)})
    frame.write_ipc(tmp_path / "upload")

    with pytest.raises(Invalid, match="64 bits in column 'y', got a longer one in row 0"):
        read_raw_file(tmp_path / "upload", "arrow_file", TableLimits(10, 10), {})
