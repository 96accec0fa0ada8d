"""Posted rows: the same values whichever form they come in, and a fact whatever else somebody sends."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import FitserveError, Invalid, Malformed, TooLarge
from app.learning.encoding.cell_warnings import CellFaults, CellWarning, CellWarnings
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.inputs import Input
from app.learning.encoding.read_cells import records_cells
from app.learning.requests.prediction_rows import Rows
from app.learning.requests.read_rows import read_rows as decode_within
from app.learning.tables.column import BLANKS, MISSING
from app.learning.tables.incoming_table import TableLimits
from app.learning.tables.transcode_arrow import to_frame
from tests.forms import ARRAYS, EVERY, FLOAT32, TYPED, by_columns, npy, npz

FORMS = {"records": "json", "columns": "json", "x": "json", "ndjson": "ndjson", "tsv": "tsv"}
FORMS |= dict.fromkeys(("comma", "semicolon", "tab", "pipe"), "csv")
FORMS |= {"npy": "npy", "big endian": "npy", "Fortran": "npy", "npz": "npz", "compressed": "npz"}
FORMS |= {"float32": "float32", "npy float32": "npy"}
CATEGORIES = ("1", "2.50", "007", "9007199254740993", "=A1", "True", "a,;|b", "new\nline", "é", "é", "शब्द", "👩‍🚀")
NUMBER = Input("number", "numeric", "impute", marks_missing=True, impute=2.5, mean=0.1, scale=3, low=-1e6, high=1e6)
BARE = Input("bare", "numeric", "impute", marks_missing=False, low=-1, high=1)
TRUTH = Input("truth", "boolean", "impute", marks_missing=True, impute=1, high=1)
WORD = Input("wörd", "categorical", "impute", marks_missing=True, categories=CATEGORIES)
MIXED = Encoder((NUMBER, TRUTH, WORD))
NUMERIC = Encoder((NUMBER, BARE))
LIMIT = 100_000
Answer = tuple[bytes, list[CellWarning], list[CellWarning]]

text_of_number = st.builds(
    lambda number, left, right: f"{left}{number}{right}",
    st.one_of(
        st.floats(allow_nan=False, allow_infinity=False),
        st.integers(-(2**80), 2**80),
        st.sampled_from(["1.", ".5", "+3", "5e2", "-0"]),
    ),
    st.sampled_from(["", " ", "\t", "\xa0"]),
    st.sampled_from(["", "  ", "\u3000"]),
)
absent = st.sampled_from([*sorted(MISSING), " ", " NA ", None])
numbers = {
    "float": st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([-0.0, 0.1, 5e-324, 1e300])),
    "int": st.integers(-(2**63), 2**63 - 1),
    "text": st.one_of(text_of_number, absent),
}
truths = {
    "bool": st.booleans(),
    "int": st.integers(0, 2),
    "text": st.one_of(st.sampled_from(["true", "False", " TRUE ", "1", " 0.0", "yes"]), absent),
}
words = {
    "text": st.one_of(
        st.sampled_from(CATEGORIES),
        st.sampled_from(["1.0", "true", " 1 ", "7", "unseen", "\x1cé", "é\x1f", "2.5"]),
        st.text(st.characters(codec="utf-8"), max_size=4),
        absent,
    ),
    "int": st.one_of(st.sampled_from([1, 7, 9007199254740993, 9007199254740992]), st.integers(-(2**63), 2**63 - 1)),
    "float": st.one_of(st.sampled_from([1.0, 2.5, -0.0]), st.floats(allow_nan=False, allow_infinity=False)),
    "bool": st.booleans(),
}


@st.composite
def columns_of(draw: st.DrawFn, /, **kinds: dict[str, st.SearchStrategy[Any]]) -> dict[str, list[Any]]:
    """Draw rows: each column of one type, with gaps."""
    rows = draw(st.integers(1, 5))
    cells = {name: draw(st.sampled_from(sorted(types))) for name, types in kinds.items()}
    return {
        name: draw(st.lists(st.one_of(kinds[name][kind], st.none()), min_size=rows, max_size=rows))
        for name, kind in cells.items()
    }


def decode(form: str, body: bytes, inputs: list[str]) -> Rows:
    return decode_within(form, body, inputs, LIMIT)


def answer(encoder: Encoder, rows: Rows) -> Answer:
    notes, faults = CellWarnings(), CellFaults()
    x = encoder.encode(records_cells(encoder, rows.columns, rows.count, faults), notes, faults)
    return x.tobytes(), list(notes), list(faults.warnings)


def read(folder: Path, name: str, body: bytes, encoder: Encoder) -> Answer:
    form = FORMS.get(name, name)
    if name in TYPED:
        (folder / "body").write_bytes(body)
        form, body = "frame", to_frame(folder / "body", name, TableLimits(100, 100))
    return answer(encoder, decode(form, body, [each.name for each in encoder.inputs]))


@settings(max_examples=60, deadline=None)
@given(columns=columns_of(number=numbers, truth=truths, wörd=words))
def test_a_row_is_the_same_in_every_form(
    tmp_path_factory: pytest.TempPathFactory, columns: dict[str, list[Any]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")

    expected = answer(MIXED, Rows(columns, len(columns["number"])))

    for name, (_, write) in EVERY.items():
        assert expected == read(folder, name, write(columns), MIXED), name


@settings(max_examples=60, deadline=None)
@given(
    columns=columns_of(
        number={"float": numbers["float"], "int": st.integers(-(2**53), 2**53)},
        bare={"float": st.floats(width=32, allow_nan=False, allow_infinity=False), "int": st.integers(-(2**24), 2**24)},
    ),
    is_narrow=st.booleans(),
)
def test_numbers_are_the_same_in_arrays_too(
    tmp_path_factory: pytest.TempPathFactory, columns: dict[str, list[Any]], is_narrow: bool
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    if is_narrow:
        columns["number"] = columns["bare"][::-1]

    expected = answer(NUMERIC, Rows(columns, len(columns["number"])))

    for name, (_, write) in {**EVERY, **ARRAYS, **(FLOAT32 if is_narrow else {})}.items():
        assert expected == read(folder, name, write(columns), NUMERIC), name


@pytest.mark.parametrize("dtype", ["<i8", ">i2", "<u1", "<f2", "<f4", "<f8", "?"])
def test_an_array_is_read_as_the_numbers_that_it_has(dtype: str) -> None:
    x = np.array([[1, 0, 1], [0, 1, 1]], dtype)
    names = ["number", "truth", "wörd"]

    found = answer(MIXED, decode("npy", npy(x), names))

    assert found == answer(MIXED, decode("json", json.dumps({"x": x.tolist()}).encode(), names))
    # a truth is no number, whatever carries it
    assert (dtype == "?") == bool(found[2])


def test_not_a_number_is_missing_in_an_array_and_an_infinite_one_is_refused_in_every_column() -> None:
    nan, inf = np.full((1, 3), np.nan), np.full((1, 3), np.inf)
    names = ["number", "truth", "wörd"]

    missing = answer(MIXED, decode("npy", npy(nan), names))
    refused = answer(MIXED, decode("npy", npy(inf), names))

    assert missing == answer(MIXED, Rows({name: [None] for name in names}, 1))
    assert [CellWarning(0, name, "invalid") for name in names] == refused[2]


def test_the_blanks_that_are_stripped_are_those_of_unicode() -> None:
    # white space by the Unicode standard: U+001C to U+001F, which Python strips, are none
    assert {chr(i) for i in range(0x110000) if chr(i).isspace()} - set("\x1c\x1d\x1e\x1f") == set(BLANKS)


def test_names_are_read_as_those_of_a_data_set_are() -> None:
    inputs = ["a", "unnamed_1"]
    expected = {"a": (1, 3), "unnamed_1": (2, 4)}

    for form, body in (
        ("csv", "\ufeff a ,\n1,2\n3,4\n"),
        ("json", '{"records": [{" a ": 1, "": 2}, {" a ": 3, "": 4}]}'),
        ("json", '{"columns": {" a": [1, 3], " ": [2, 4]}}'),
        ("ndjson", '\ufeff{" a ": 1, "": 2}\r\n\n{" a ": 3, "": 4}'),
    ):
        found = decode(form, body.encode(), inputs).columns
        assert expected == {name: tuple(int(cell) for cell in cells) for name, cells in found.items()}


@pytest.mark.parametrize("name", ["a ", "b\tc", "b\x00", "\x1b[31m", "b\x85c", "b" * 201])
def test_equal_and_unprintable_names_are_refused_in_every_form(name: str, tmp_path: Path) -> None:
    columns = {"a": [1], name: [2]}

    for form in ("columns", "records", "ndjson", "comma", "parquet", "arrow_file"):
        with pytest.raises(Invalid, match="column names"):
            read(tmp_path, form, EVERY[form][1](columns), NUMERIC)


def header(text: str, size: int = 16) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(size)


def described(descr: str = "'<f8'", shape: str = "(1, 2)") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n")


def zipped(body: bytes, method: int = zipfile.ZIP_DEFLATED, name: str = "x.npy") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(name, body)
    return out.getvalue()


LIES = {
    "more rows than there are": described(shape="(3, 2)"),
    "fewer rows than there are": described(shape="(0, 2)"),
    "all the memory": described(shape="(4611686018427387904, 2)"),
    "two unknown sizes": described(shape="(-1, -2)"),
    "negative sizes": described(shape="(-1, 2)"),
    "no size at all": described("'|V0'"),
    "empty texts": described("'<U0'"),
    "arrays in cells": described("('<f4', (2,))"),
    "fields": described("[('a', '<f4'), ('b', '<f4')]"),
    "objects": npy(np.array([[1, "x"]], object)),
    "texts": npy(np.array([["1", "2"]])),
    "complex numbers": npy(np.ones((1, 2), complex)),
    "dates": npy(np.ones((1, 2), "<M8[s]")),
    "no shape": described(shape="None"),
    "a shape that is none": described(shape="(1.5, 2)"),
    "open brackets": header("(" * 9000),
    "nested brackets": header("(" * 300 + ")" * 300),
    "many signs": header("-" * 9990 + "1"),
    "a call": header("__import__('os').abort()"),
    "a long header": header(" " * 60_000),
    "a later version": b"\x93NUMPY\x03\x00" + bytes(30),
    "no bytes": b"",
    "another file": b"PK\x03\x04",
}


@pytest.mark.parametrize("lie", LIES)
def test_an_array_that_is_not_what_it_says_is_malformed(lie: str) -> None:
    for form, body in (("npy", LIES[lie]), ("npz", zipped(LIES[lie]))):
        with pytest.raises(Malformed, match="NPY"):
            decode(form, body, ["a", "b"])


@pytest.mark.parametrize("shape", [(0, 2), (2, 3), (2,), (2, 2, 1), (2, 2, 2), ()])
def test_an_array_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    for form, body in (("npy", npy(np.zeros(shape))), ("npz", npz(x=np.zeros(shape)))):
        with pytest.raises(Invalid, match=r"Expected numbers of shape \(rows, 2\)"):
            decode(form, body, ["a", "b"])


@pytest.mark.parametrize(
    ("body", "fact"),
    [
        (npz(x=np.ones((1, 2)), y=np.ones(1)), Invalid),
        (npz(z=np.ones((1, 2))), Invalid),
        (zipped(b"", name="../x.npy"), Invalid),
        (zipped(npy(np.ones((1, 2))), zipfile.ZIP_LZMA), Malformed),
        (zipped(npy(np.ones((1, 2))), zipfile.ZIP_BZIP2), Malformed),
        (zipped(bytes(LIMIT + 1)), TooLarge),
        (zipped(npy(np.ones((1, 2))))[:-30], Malformed),
        (b"PK", Malformed),
    ],
    ids=["two arrays", "another name", "a path", "LZMA", "bzip2", "a bomb", "cut off", "no archive"],
)
def test_an_archive_of_something_else_is_refused(body: bytes, fact: type[FitserveError]) -> None:
    assert len(body) < 100_000
    with pytest.raises(fact):
        decode("npz", body, ["a", "b"])


@pytest.mark.parametrize("size", [0, 1, 7, 9, 12])
def test_float32_of_no_whole_rows_is_refused(size: int) -> None:
    with pytest.raises(Invalid, match=f"8 bytes each, got {size} bytes"):
        decode("float32", bytes(size), ["a", "b"])


@pytest.mark.parametrize(
    ("form", "body", "fact", "message"),
    [
        ("json", "[1]", Invalid, "Expected an object"),
        ("json", '{"x": [[1]], "records": []}', Invalid, 'one of "records", "columns" and "x"'),
        ("json", '{"x": [[1, 2], [1]]}', Invalid, "got 1 in row 1"),
        ("json", '{"x": [[1, 1e999]]}', Invalid, "finite"),
        ("ndjson", '{"a": 1, "b": 1}\n{"a": 1e999}', Invalid, "finite numbers, got another in a JSON object in line 2"),
        ("json", '{"x": [[1, NaN]]}', Malformed, "Expected JSON"),
        ("ndjson", '{"a": 1}\n\n{"a": \n', Malformed, "JSON object in line 3"),
        ("ndjson", '{"a": 1}\n[1]\n', Invalid, "record 1"),
        ("ndjson", "\n \n", Invalid, "at least one"),
        ("json", '{"columns": {"a": [1], "b": [1, 2]}}', Invalid, r"one length of at least 1, got \[1, 2\]"),
        ("json", '{"columns": {"a": 1}}', Invalid, "'a' to be a list"),
        ("csv", "a,b\n1,2\n1\n", Invalid, "got 1 in row 1"),
        ("csv", "a,b\n", Invalid, "at least one data row"),
        ("csv", "", Invalid, "header row"),
        ("csv", 'a,b\n1,"x\n', Malformed, "Expected CSV"),
        ("csv", b"a,b\n1,\xff\n", Malformed, "byte 0xff at offset 6"),
    ],
)
def test_bodies_that_are_no_rows_are_refused_with_the_place(
    form: str, body: str | bytes, fact: type[FitserveError], message: str
) -> None:
    with pytest.raises(fact, match=message):
        decode(form, body if isinstance(body, bytes) else body.encode(), ["a", "b"])


def test_millions_of_warnings_take_little_room() -> None:
    rows = 1_000_000
    notes, faults = CellWarnings(), CellFaults()

    NUMERIC.encode(records_cells(NUMERIC, {"number": [True] * rows}, rows, faults), notes, faults)

    assert (rows, rows) == (len(notes), len(faults.warnings))
    assert [CellWarning(0, "bare", "imputed"), CellWarning(1, "bare", "imputed")] == [*islice(notes, 2)]
    with pytest.raises(Invalid, match="got a boolean in row 0") as caught:
        faults.check()
    assert [(row, "number") for row in range(20)] == [fault.loc for fault in caught.value.faults]


COLUMNS: dict[str, list[Any]] = {"a": [1.5, None, -2e5], "b": [1.0, 2.0, 3.0]}
SEEDS: dict[str, Callable[[dict[str, list[Any]]], bytes]] = {
    name: write for name, (_, write) in {**EVERY, **ARRAYS, **FLOAT32}.items() if name not in TYPED
}


# numpy reads headers of Python 2 and says so
@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file:UserWarning")
@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(sorted(SEEDS)), seed=st.integers(0, 2**32))
def test_nothing_but_a_fact_is_raised_whatever_the_bytes(name: str, seed: int) -> None:
    body = mutated(SEEDS[name](COLUMNS), random.Random(seed))

    with suppress(FitserveError):
        rows = decode(FORMS[name], body, ["a", "b"])
        assert rows.count >= 1
        assert {rows.count} >= {len(rows.columns[each]) for each in ("a", "b") if each in rows.columns}


def mutated(body: bytes, rng: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(changed) + 1)
        if rng.random() < 0.6 and at < len(changed):
            changed[at] = rng.choice([rng.randrange(256), *b'",;\n\r{}[]0-'])
        elif rng.random() < 0.5:
            del changed[at : at + rng.randint(1, 9)]
        else:
            changed[at:at] = rng.choice([rng.randbytes(3), b'"', b"\n", b"\0", b"[[", b"1e999", b"\xff"])
    return bytes(changed[: rng.randrange(len(changed) + 1)] if rng.random() < 0.1 else changed)


def test_a_cell_may_be_as_long_as_the_body() -> None:
    text = "x" * 200_000

    assert answer(Encoder((WORD,)), decode("csv", f"wörd\n{text}\n".encode(), [])) == answer(
        Encoder((WORD,)), decode("json", by_columns({"wörd": [text]}), [])
    )
