"""Posted bytes to typed columns: every form, every kind, and whatever else somebody may send."""

from __future__ import annotations

import codecs
import csv
import io
import json
import random
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.errors import FitserveError, Invalid, Malformed, TooLarge
from app.learning.tables.column import ColumnKind
from app.learning.tables.describe_column import ColumnDescription, describe
from app.learning.tables.incoming_table import MemoryBudget, TableLimits
from app.learning.tables.read_raw_file import read_raw_file
from app.learning.tables.table import Table

BOUNDS = TableLimits(rows=1000, columns=50)
#: so small that every record is a block of its own, and every column has a pass
TINY = MemoryBudget(pass_bytes=1, block_bytes=1)
Parse = Callable[..., Table]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Parse:
    """Parse bytes, or anything else as JSON."""
    path = tmp_path_factory.mktemp("formats") / "upload"

    def run(
        body: Any,
        form: str = "csv",
        kinds: Mapping[str, ColumnKind] | None = None,
        bounds: TableLimits = BOUNDS,
        portions: MemoryBudget | None = None,
    ) -> Table:
        path.write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
        return read_raw_file(path, form, bounds, kinds or {}, portions)

    return run


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def whole_of(table: Table) -> list[Any]:
    """Give all that a table is, its cells as bytes."""
    columns = [
        (
            replace(c, values=np.empty(0), codes=None),
            c.values.dtype,
            c.values.tobytes(),
            c.codes is None or c.codes.tolist(),
        )
        for c in table.columns
    ]
    return [table.default_target, table.warnings, [(repr(c[0]), *c[1:]) for c in columns]]


def cells(table: Table) -> dict[str, list[Any]]:
    return {column.name: column.cells(table.rows) for column in table.columns}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_that_the_header_has(read: Parse, delimiter: str) -> None:
    body = delimiter.join(['"a,;x"', "b"]) + "\n" + delimiter.join(["1", "x"]) + "\n"

    assert {"a,;x": [1], "b": ["x"]} == cells(read(body.encode()))


def test_a_tab_separates_in_tsv_whatever_else_the_header_has(read: Parse) -> None:
    assert {"last, first, title": [1], "b": [2]} == cells(read(b"last, first, title\tb\n1\t2\n", "tsv"))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"\xef\xbb\xbfa,b\n1,2\n", {"a": [1], "b": [2]}),
        (b"a,b\r\n1,2\r\n3,4", {"a": [1, 3], "b": [2, 4]}),
        (b'a,b\n"x\ny",2\n"z""q",3\n', {"a": ["x\ny", 'z"q'], "b": [2, 3]}),
        (b"\na ,b\n".lstrip() + b" 1 , x \n\n2,y\n\n", {"a": [1, 2], "b": ["x", "y"]}),
        ("größe,城\n1,ß\n".encode(), {"größe": [1], "城": ["ß"]}),
    ],
    ids=["byte order mark", "CRLF", "quoted newlines", "blanks and blank lines", "other letters"],
)
def test_csv_comes_in_many_dresses(read: Parse, body: bytes, expected: dict[str, list[Any]]) -> None:
    assert expected == cells(read(body))


def test_an_unnamed_column_gets_a_name_and_a_warning(read: Parse) -> None:
    table = read(b"a,\n1,2\n")

    assert ["a", "unnamed_1"] == table.names
    assert ("column 1 has no name in the header; it is called 'unnamed_1'",) == table.warnings


def test_a_blank_line_is_no_row_beside_an_unnamed_column_either(read: Parse) -> None:
    assert {"unnamed_0": [1, 2], "a": ["x", "y"]} == cells(read(b",a\n1,x\n\n2,y\n"))


@pytest.mark.parametrize("missing", ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "?", "  "])
def test_a_missing_cell_leaves_the_kind_alone(read: Parse, missing: str) -> None:
    table = read(f"number,text,truth\n1.5,x,true\n{missing},{missing},{missing}\n".encode())

    assert {"number": [1.5, None], "text": ["x", None], "truth": ["true", None]} == cells(table)
    assert ["numeric", "categorical", "boolean"] == [column.kind for column in table.columns]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "2"], "numeric"),
        (["1e3", "-.5", "+2.", "0"], "numeric"),
        (["", "?"], "numeric"),
        (["True", "false"], "boolean"),
        (["2020-01-31", "2021-02-28T10:00:00Z"], "datetime"),
        (["2020-01-31", "soon"], "categorical"),
        (["1", "two"], "categorical"),
        (["1_000", "2"], "categorical"),
        (["NAN", "2"], "categorical"),
        ([f"text {i}" for i in range(21)], "text"),
        ([f"text {i % 20}" for i in range(40)], "categorical"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "json"])
def test_kinds_are_inferred(read: Parse, form: str, values: list[str], kind: str) -> None:
    columns = {"columns": {"a": values, "b": ["x"] * len(values)}}
    table = read(("a,b\n" + "".join(f"{value},x\n" for value in values)).encode() if form == "csv" else columns, form)

    assert kind == table.column("a").kind


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["2", "10", "-1"], [-1, 2, 10]),
        (["01", "1", "02"], ["01", "02", "1"]),
        (["1.5", "2.50"], [1.5, 2.5]),
        (["9007199254740993", "9007199254740992"], [9007199254740992, 9007199254740993]),
        (["-9223372036854775808", "18446744073709551615"], [-(2**63), 2**64 - 1]),
        (["18446744073709551616", "-1"], ["-1", "18446744073709551616"]),
        (["123456789012345678901", "123456789012345678902"], ["123456789012345678901", "123456789012345678902"]),
        (["True", "False"], ["False", "True"]),
        (["True", "true", "false"], ["false", "true"]),
        (["no", "yes"], ["no", "yes"]),
    ],
)
def test_labels_of_csv_keep_their_type_and_spelling(read: Parse, values: list[str], labels: list[Any]) -> None:
    table = read(("a,b\n" + "".join(f"1,{value}\n" for value in values)).encode())

    found, y = table.column("b").labels()

    assert labels == found
    assert [type(label) for label in labels] == [type(label) for label in found]
    assert len(labels) == describe(table.column("b"))["unique"]
    assert {label.lower() if isinstance(label, str) else label for label in found} == {
        label.lower() if isinstance(label := found[i], str) else label for i in y.tolist()
    }


@pytest.mark.parametrize(
    "labels",
    [[1, 2], ["1", "2"], ["01", "1"], [1.0, 2.5], [False, True], ["no", "yes"], [2**53, 2**53 + 1], [0, 2**64 - 1]],
)
@pytest.mark.parametrize("form", ["records", "columns", "x and y"])
def test_labels_of_json_keep_their_type(read: Parse, form: str, labels: list[Any]) -> None:
    records = {"records": [{"x0": 1, "y": label} for label in labels]}
    columns = {"columns": {"x0": [1] * len(labels), "y": labels}}
    body = {"records": records, "columns": columns, "x and y": {"x": [[1]] * len(labels), "y": labels}}[form]

    table = read(body, "json")

    found, y = table.column("y").labels()
    assert "y" == table.default_target
    assert labels == found == [found[i] for i in y.tolist()] == table.column("y").cells(9)
    assert [type(label) for label in labels] == [type(label) for label in found]


@pytest.mark.parametrize(
    ("y", "labels"),
    [
        (np.array([3, 5]), [3, 5]),
        (np.array([3, 5], np.uint8), [3, 5]),
        (np.array([2**63, 2**63 + 1], np.uint64), [2**63, 2**63 + 1]),
        (np.array([0.5, 2]), [0.5, 2.0]),
        (np.array([False, True]), [False, True]),
        (np.array(["1", "b"]), ["1", "b"]),
        (np.array([[1, 0, 0], [0, 0, 1]]), [0, 2]),
        (np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), [0, 1]),
    ],
)
def test_labels_of_npz_keep_their_type(read: Parse, y: Any, labels: list[Any]) -> None:
    found, _ = read(npz(x=np.zeros((2, 1)), y=y), "npz").column("y").labels()

    assert labels == found
    assert [type(label) for label in labels] == [type(label) for label in found]


def test_one_hot_labels_of_json_become_integers(read: Parse) -> None:
    table = read({"x": [[1], [2], [3]], "y": [[0, 1], [1, 0], [0, 1.0]]}, "json")

    assert [1, 0, 1] == table.column("y").cells(3)


def test_nan_is_missing_in_npz(read: Parse) -> None:
    table = read(npz(x=np.array([[1, np.nan], [2, 3]], np.float32), y=np.array([0, 1])), "npz")

    assert [None, 3.0] == table.column("x1").cells(2)
    assert np.float32 == table.column("x1").values.dtype


@pytest.mark.parametrize(
    ("form", "body", "kind", "expected"),
    [
        ("csv", b"a,b\n1,x\n02,y\n", "categorical", ["1", "02"]),
        ("csv", b"a,b\n1,x\n0,y\n", "boolean", [1, 0]),
        ("csv", b"a,b\n2020-01-01,x\nz,y\n", "text", ["2020-01-01", "z"]),
        ("json", {"columns": {"a": [0, None, 1], "b": [1, 2, 3]}}, "boolean", [0, None, 1]),
        ("json", {"columns": {"a": [1, 2.5], "b": [1, 2]}}, "categorical", [1.0, 2.5]),
        ("json", {"columns": {"a": ["1", "2"], "b": [1, 2]}}, "categorical", ["1", "2"]),
        ("json", {"columns": {"a": [True, None], "b": [1, 2]}}, "categorical", [True, None]),
    ],
)
def test_a_kind_can_be_corrected(read: Parse, form: str, body: Any, kind: ColumnKind, expected: list[Any]) -> None:
    table = read(body, form, {"a": kind})

    assert kind == table.column("a").kind
    assert expected == table.column("a").cells(9)
    assert [type(cell) for cell in expected] == [type(cell) for cell in table.column("a").cells(9)]


@pytest.mark.parametrize("kind", ["numeric", "categorical", "text", "datetime", "boolean"])
@pytest.mark.parametrize("dtype", ["i8", "f4", "f8", "?"])
def test_a_kind_corrected_in_npz_is_that_of_the_same_values_in_json(read: Parse, kind: ColumnKind, dtype: str) -> None:
    x = np.array([[0], [1], [1]], dtype)
    as_json = {"x": x.tolist(), "y": [1, 2, 2]}

    def outcome(body: Any, form: str) -> Any:
        try:
            return describe(read(body, form, {"x0": kind}).column("x0"))
        except Invalid as error:
            return error.message

    assert outcome(as_json, "json") == outcome(npz(x=x, y=np.array([1, 2, 2])), "npz")


BAD: dict[str, tuple[str, Any, type[FitserveError], str]] = {
    "empty file": ("csv", b"", Invalid, "an empty file"),
    "only a byte order mark": ("csv", b"\xef\xbb\xbf", Invalid, "an empty file"),
    "blank first line": ("csv", b"\na,b\n1,2\n", Invalid, "a header row, got a blank line"),
    "header only": ("csv", b"a,b\n", Invalid, "at least one row of data, got none"),
    "header and blank lines": ("csv", b"a,b\n\n\n", Invalid, "at least one row of data, got none"),
    "long row": ("csv", b"a,b\n1,2\n\n3,4,5\n", Invalid, "Expected 2 cells as in the header, got 3 in row 1 (line 4)"),
    "long last row": ("csv", b"a,b\n1,2,", Invalid, "got 3 in row 0 (line 2)"),
    "short row": ("csv", b"a,b,c\n1,2,3\n1\n4,5,6\n", Invalid, "got 1 in row 1 (line 3)"),
    "short row of text": ("csv", b"a,b\nx,y\nz\n", Invalid, "got 1 in row 1 (line 3)"),
    "open quote": ("csv", b'a,b\n1,2\n3,"4\n', Malformed, "quotes are balanced"),
    "stray quote": ("csv", b'a,b\n5" pipe,2\n6" pipe,3\n', Malformed, "quotes are balanced and enclose whole cells"),
    "broken UTF-8": ("csv", b"a,b\n1,2\n3,\xff\n", Malformed, "got byte 0xff in line 3"),
    "cut UTF-8": ("csv", b"a,b\n1,\xe2\x82", Malformed, "ends inside a character in line 2"),
    "duplicate name": ("csv", b"a,b, a\n1,2,3\n", Invalid, "different column names, got 'a' twice"),
    "control character in a name": ("csv", b"a\x1b[31m,b\n1,2\n", Invalid, "printable characters; column 0"),
    "name too long": ("csv", b"a," + b"b" * 201 + b"\n1,2\n", Invalid, "at most 200 printable characters; column 1"),
    "infinite number": ("csv", b"a,b\n1,2\n-inf,3\n", Invalid, "finite numbers in column 'a', got an infinite one in row 1"),
    "number beyond float64": ("csv", b"a,b\n1e999,2\n", Invalid, "in column 'a', got an infinite one in row 0"),
    "too many columns": ("csv", b",".join(b"%d" % i for i in range(51)) + b"\n", TooLarge, "at most 50 columns, got 51"),
    "too many rows": ("csv", b"a,b\n" + b"1,2\n" * 1001, TooLarge, "at most 1000 rows, got 1001"),
    "no JSON": ("json", b"a,b\n1,2\n", Malformed, "Expected JSON"),
    "cut JSON": ("json", b'{"x": [[1', Malformed, "Expected JSON"),
    "NaN in JSON": ("json", b'{"x": [[NaN]], "y": [1]}', Malformed, "Expected JSON"),
    "JSON beyond float64": ("json", b'{"x": [[1e999]], "y": [1]}', Invalid, "finite numbers"),
    "400 digits": ("json", b'{"x": [[' + b"9" * 400 + b']], "y": [1]}', Invalid, "finite numbers"),
    "lone surrogate": ("json", b'{"columns": {"a": ["\\ud800"]}}', Malformed, "Expected JSON"),
    "broken UTF-8 in JSON": ("json", b'{"columns": {"a": ["\xff"]}}', Malformed, "Expected JSON"),
    "depth": ("json", b"[" * 100_000, Malformed, "Expected JSON"),
    "depth in a cell": ("json", {"columns": {"a": [[[[[1]]]]]}}, Invalid, "in column 'a', got a list in row 0"),
    "a list": ("json", [1, 2], Invalid, "with x and y, records, or columns; got a list"),
    "another member": ("json", {"rows": []}, Invalid, "got 'rows'"),
    "x without y": ("json", {"x": [[1]]}, Invalid, "got 'x'"),
    "x is no list": ("json", {"x": 1, "y": [1]}, Invalid, "Expected x to be a list, got a number"),
    "a row is no list": ("json", {"x": [[1], {}], "y": [1, 2]}, Invalid, "Expected row 1 of x to be a list, got an object"),
    "ragged x": ("json", {"x": [[1, 2], [1]], "y": [1, 2]}, Invalid, "Expected 2 values as in row 0, got 1 in row 1"),
    "rows of nothing": ("json", {"x": [[]], "y": [1]}, Invalid, "at least one value in a row"),
    "y too short": ("json", {"x": [[1], [2]], "y": [1]}, Invalid, "got 2 rows and 1 labels"),
    "no rows": ("json", {"x": [], "y": []}, Invalid, "got none"),
    "no one-hot": ("json", {"x": [[1], [2]], "y": [[0, 1], [1, 1]]}, Invalid, "one 1 and 1 zeros, in row 1 of y"),
    "half one-hot": ("json", {"x": [[1], [2]], "y": [[0, 1], 1]}, Invalid, "in row 1 of y"),
    "no records": ("json", {"records": []}, Invalid, "got none"),
    "empty records": ("json", {"records": [{}]}, Invalid, "at least one column, got none"),
    "records are no list": ("json", {"records": {}}, Invalid, "Expected records to be a list, got an object"),
    "a record is no object": ("json", {"records": [{"a": 1}, 2]}, Invalid, "Expected record 1 to be an object, got a number"),
    "too many names": ("json", {"records": [{str(i): 1} for i in range(60)]}, TooLarge, "at most 50 columns, got more by record 50"),
    "columns are no object": ("json", {"columns": [1]}, Invalid, "Expected columns to be an object of lists, got a list"),
    "a column is no list": ("json", {"columns": {"a": None}}, Invalid, "Expected column 'a' to be a list, got null"),
    "uneven columns": ("json", {"columns": {"a": [1], "b": [1, 2]}}, Invalid, "Expected 2 values as in the longest column, got 1 in 'a'"),
    "names alike": ("json", {"columns": {"a": [1], " a": [1]}}, Invalid, "different column names, got 'a' twice"),
    "an object in a cell": ("json", {"records": [{"a": 1}, {"a": {}}]}, Invalid, "null in column 'a', got an object in row 1"),
    "booleans among numbers": ("json", {"columns": {"a": [1, True]}}, Invalid, "one type in column 'a', got booleans among"),
    "no archive": ("npz", b"PK\x03\x04", Malformed, "NPZ"),
    "truncated NPZ": ("npz", npz(x=np.zeros((99, 9)), y=np.zeros(99))[:-300], Malformed, "read to its end"),
    "pickled NPZ": ("npz", npz(x=np.zeros((1, 1)), y=np.array([{}], object)), Malformed, "no pickled objects"),
    "one array": ("npz", npz(x=np.zeros((1, 1))), Invalid, "Expected the arrays x and y, got 'x'"),
    "x of texts": ("npz", npz(x=np.array([["a"]]), y=np.zeros(1)), Invalid, "numbers, got (1, 1) of <U1"),
    "x of one dimension": ("npz", npz(x=np.zeros(2), y=np.zeros(2)), Invalid, "(rows, columns) of numbers, got (2,)"),
    "y too long": ("npz", npz(x=np.zeros((2, 1)), y=np.zeros(3)), Invalid, "got 2 rows and y of shape (3,)"),
    "y of three dimensions": ("npz", npz(x=np.zeros((2, 1)), y=np.zeros((2, 2, 2))), Invalid, "got (2, 2, 2)"),
    "y of bytes": ("npz", npz(x=np.zeros((1, 1)), y=np.array([b"a"])), Invalid, "numbers, booleans or texts, got |S1"),
    "y of no one-hot": ("npz", npz(x=np.zeros((2, 1)), y=np.array([[1, 0], [1, 1]])), Invalid, "in row 1 of y"),
    "infinite number in NPZ": ("npz", npz(x=np.array([[1], [-np.inf]]), y=np.zeros(2)), Invalid, "in column 'x0', got an infinite one in row 1"),
    "no rows in NPZ": ("npz", npz(x=np.zeros((0, 1)), y=np.zeros(0)), Invalid, "got none"),
    "too many columns in NPZ": ("npz", npz(x=np.zeros((1, 50)), y=np.zeros(1)), TooLarge, "at most 50 columns, got 51"),
}  # fmt: skip


@pytest.mark.parametrize("is_tiny", [False, True], ids=["whole", "in portions"])
@pytest.mark.parametrize(("form", "body", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_with_what_came(
    read: Parse, form: str, body: Any, kind: type[FitserveError], message: str, is_tiny: bool
) -> None:
    with pytest.raises(FitserveError) as caught:
        read(body, form, portions=TINY if is_tiny else None)

    assert kind is type(caught.value)
    assert message in caught.value.message
    assert len(caught.value.message) < 400


def test_a_ragged_row_is_a_fault_at_its_row(read: Parse) -> None:
    with pytest.raises(Invalid) as caught:
        read(b"a,b\n1,2\n3\n")

    assert (("rows", 1), "ragged_row") == (caught.value.faults[0].loc, caught.value.faults[0].code)


def test_a_corrected_kind_that_does_not_fit_is_refused_without_an_echo(read: Parse) -> None:
    body = b"a,b\n1,2\nsecret,3\n"

    with pytest.raises(Invalid, match="Expected a number in column 'a', got another text in row 1") as caught:
        read(body, "csv", {"a": "numeric"})
    with pytest.raises(Invalid, match="Expected true or false in column 'b', got another text in row 0"):
        read(body, "csv", {"b": "boolean"})
    with pytest.raises(Invalid, match="There is no column 'c'"):
        read(body, "csv", {"c": "numeric"})

    assert "secret" not in caught.value.message
    assert ("rows", 1, "a") == caught.value.faults[0].loc


def test_an_npz_is_judged_by_what_it_declares_before_anything_is_unpacked(read: Parse) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x.npy", "y.npy"):
            archive.writestr(name, bytes(2_000_000))

    assert len(bomb.getvalue()) < 10_000
    with pytest.raises(TooLarge, match="at most 8000 bytes, got 4000000"):
        read(bomb.getvalue(), "npz", bounds=TableLimits(rows=10, columns=10, cells=1000))


@pytest.mark.parametrize(
    "header", ["(" * 9000, "{'descr': '<f8', 'shape': (10000000000000,), 'fortran_order': False}", "{'descr': '|O'"]
)
def test_an_array_whose_header_lies_is_refused(read: Parse, header: str) -> None:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name in ("x.npy", "y.npy"):
            archive.writestr(
                name, b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(8)
            )

    with pytest.raises(Malformed, match="NPZ"):
        read(body.getvalue(), "npz")


finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"]), min_size=1, max_size=5)
kinds = {
    "number": st.one_of(finite, st.integers(-(2**70), 2**70).map(float), st.none()),
    "integer": st.one_of(st.integers(-(2**53), 2**53), st.none()),
    "word": st.one_of(words.map(lambda word: f"w{word}"), st.none()),
}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_table_is_the_same_in_every_form(read: Parse, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 12))
    chosen = data.draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=4))
    columns = {f"{kind}{i}": [data.draw(kinds[kind]) for _ in range(rows)] for i, kind in enumerate(chosen)}
    columns = {name: column for name, column in columns.items() if any(cell is not None for cell in column)}
    columns["last"] = list(range(rows))
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    file = io.StringIO()
    writer = csv.writer(file, data.draw(st.sampled_from(["excel", "excel-tab", "unix"])))
    writer.writerows([list(columns), *([("" if cell is None else cell) for cell in row.values()] for row in records)])

    tables = [
        read(file.getvalue().encode()),
        read({"records": records}, "json"),
        read({"columns": columns}, "json"),
    ]

    def shown(table: Table) -> list[ColumnDescription]:
        return [describe(column) for column in table.columns]

    assert columns == cells(tables[0]) == cells(tables[1]) == cells(tables[2])
    assert shown(tables[0]) == shown(tables[1]) == shown(tables[2])


@settings(max_examples=30, deadline=None)
@given(x=st.lists(st.lists(finite, min_size=2, max_size=2), min_size=1, max_size=9))
def test_a_matrix_is_the_same_in_json_and_npz(read: Parse, x: list[list[float]]) -> None:
    y = list(range(len(x)))

    tables = [read({"x": x, "y": y}, "json"), read(npz(x=np.array(x), y=np.array(y)), "npz")]

    assert cells(tables[0]) == cells(tables[1])
    assert [describe(c) for c in tables[0].columns] == [describe(c) for c in tables[1].columns]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_table_is_the_same_however_small_the_portions(read: Parse, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 4))
    cell = st.sampled_from(["", "1", "-2.5", "07", "true", "NA", " x ", "é", 'say "no"', "two\nlines", "a\r\nb", "a,b"])
    rows = data.draw(st.lists(st.lists(cell, min_size=width, max_size=width), min_size=1, max_size=9))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator=data.draw(st.sampled_from(["\n", "\r\n"])), quoting=csv.QUOTE_ALL)
    for row in [[f"c{i}" for i in range(width)], *rows]:
        writer.writerow(row)
        file.write("\n" * data.draw(st.integers(0, 2)) if row[0] != "c0" else "")
    body = data.draw(st.sampled_from([b"", codecs.BOM_UTF8])) + file.getvalue().encode()
    body = body.rstrip(b"\r\n") if data.draw(st.booleans()) else body
    portions = MemoryBudget(data.draw(st.integers(1, 400)), data.draw(st.integers(1, 60)))

    assert whole_of(read(body)) == whole_of(read(body, portions=portions)) == whole_of(read(body, portions=TINY))


@settings(max_examples=40, deadline=None)
@given(x=st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=9), order=st.sampled_from("CF"))
def test_a_matrix_is_the_same_however_small_the_portions(read: Parse, x: list[list[float]], order: Any) -> None:
    body = npz(x=np.array(x, order=order), y=np.arange(len(x)))
    lists: list[list[float]] = [[1.0, 1.0, 1.0], *x]
    lines = b"\n".join(json.dumps({f"x{i}": cell for i, cell in enumerate(row) if cell > 0}).encode() for row in lists)

    for form, given_ in (("npz", body), ("ndjson", lines)):
        assert whole_of(read(given_, form)) == whole_of(read(given_, form, portions=TINY))


SEEDS = {
    "csv": b'a,b;c|d,"e"\n1,true,"x ""y""",2020-01-01\n,NA,z,?\n-1e5,false,"x\ny",2020-01-02\n',
    "tsv": b"a\tb\n1\t2\n3\tx\n",
    "json": b'{"records": [{"a": 1, "b": "x", "c": true}, {"a": null, "b": "y"}, {"a": -2.5e3}]}',
    "ndjson": b'{"a": 1, "b": "x", "c": true}\n{"a": null, "b": "y"}\n\n{"a": -2.5e3}\n',
    "npz": npz(x=np.arange(6.0).reshape(3, 2), y=np.array(["a", "b", "a"])),
}


@settings(max_examples=400, deadline=None)
@given(form=st.sampled_from(sorted(SEEDS)), seed=st.integers(0, 2**32))
@example(form="tsv", seed=175239)
def test_nothing_but_a_fact_is_raised_whatever_the_bytes(read: Parse, form: str, seed: int) -> None:
    rng = random.Random(seed)
    body = bytearray(SEEDS[form])
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(body) + 1)
        change = rng.choice(["set", "insert", "cut", "repeat"])
        if change == "set" and at < len(body):
            body[at] = rng.choice([rng.randrange(256), *b'",;\t\n\r{}[]0'])
        elif change == "insert":
            body[at:at] = rng.choice([rng.randbytes(3), b'"', b"\n", b",", b"\r", b"\0", b"[[", b"1e999", b"\xff"])
        elif change == "cut":
            del body[at : at + rng.randint(1, 9)]
        else:
            body[at:at] = body[at : at + rng.randint(1, 30)]

    with suppress(FitserveError):
        table = read(bytes(body), form, portions=TINY if seed % 2 else None)
        assert {table.rows} == {len(column.values) for column in table.columns}
        assert table.names == [describe(column)["name"] for column in table.columns]


@settings(max_examples=100, deadline=None)
@given(form=st.sampled_from(sorted(SEEDS)), body=st.binary(max_size=60))
def test_garbage_is_refused_or_read(read: Parse, form: str, body: bytes) -> None:
    with suppress(FitserveError):
        assert read(body, form).rows
