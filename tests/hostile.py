"""Bodies of predictions, intact and damaged, as strategies of Hypothesis; and models to send them to."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from app.learning.encoding.encoder import Encoder
from app.learning.encoding.inputs import Input
from app.records.rooms import Rooms
from tests.stored_rows import artifact_of, train

#: by model: inputs of every kind, and rows that they can read
MODELS: dict[str, tuple[tuple[Input, ...], list[list[Any]]]] = {
    "numbers": (
        (
            Input("a", "numeric", "impute", marks_missing=False, mean=0.1, scale=3.0, low=-5.0, high=5.0),
            Input("b", "numeric", "impute", marks_missing=True, impute=2.5, mean=-1.0, scale=0.7, low=0.0, high=9.0),
        ),
        [[1.0, 2.0], [-2.5, None]],
    ),
    "strict": (
        (
            Input("a", "numeric", "error", marks_missing=False, low=-1.0, high=1e200),
            Input("b", "numeric", "error", marks_missing=False, scale=1e-37, low=0.0, high=1.0),
        ),
        [[1.0, 0.0]],
    ),
    "mixed": (
        (
            Input("a", "numeric", "impute", marks_missing=True, impute=1.5, mean=0.3, scale=0.1, low=-5.0, high=5.0),
            Input("b", "categorical", "impute", marks_missing=True, categories=("1", "no", "true", "x")),
            Input("c", "boolean", "impute", marks_missing=False, impute=1.0, high=1.0),
            Input("d", "categorical", "error", marks_missing=False, categories=("x", "z")),
        ),
        [[1.0, "x", True, "z"], [None, None, None, "unseen"]],
    ),
    "one": ((Input("a", "numeric", "impute", marks_missing=False, low=-1.0, high=1.0),), [[0.5]]),
}


def publish_models(rooms: Rooms) -> None:
    """Publish a version of each model."""
    for seed, (model, (inputs, rows)) in enumerate(MODELS.items()):
        records = [dict(zip([each.name for each in inputs], row, strict=True)) for row in rows]
        train(rooms, model, artifact_of(Encoder(inputs), records, seed))


def rows_of(form: str, rows: list[list[str]], names: list[str]) -> bytes:
    """Write rows of JSON texts as one of the forms."""
    if form == "x":
        return b'{"x":[%b]}' % ",".join("[" + ",".join(row) + "]" for row in rows).encode()
    if form == "records":
        records = [",".join(f"{name}:{cell}" for name, cell in zip(names, row, strict=False)) for row in rows]
        return b'{"records":[%b]}' % ",".join("{" + record + "}" for record in records).encode()
    columns = [f"{name}:[{','.join(row[j] for row in rows if j < len(row))}]" for j, name in enumerate(names)]
    return b'{"columns":{%b}}' % ",".join(columns).encode()


finite = st.floats(allow_nan=False, allow_infinity=False).map(repr)
near = st.floats(-6, 10).map(lambda value: f"{value:.4g}")
ODD_NUMBERS = """
    -0 -0.0 0e5 1E3 1e-400 5e-324 1e308 -1.7976931348623157e308 3.5e38 1e16777216 1e999 -1e999 9007199254740993
    0.1234567890123456789012345678901234567890 9223372036854775808 -9223372036854775809 18446744073709551615
    18446744073709551616 123456789012345678901234567890
"""
odd_numbers = st.sampled_from([*ODD_NUMBERS.split(), "1" * 400])
NO_NUMBERS = r"""
    null true false "" "NA" "x" "5" "[" "\u0078" "\ud800" "é" [] {} [1] [1,2] {"x":1} [[1,2]] {"a":[1,2]} [["x"]]
    NaN Infinity - 01 1. .5 +1 1e 0x1 nul " [ ] // 'x'
"""
no_numbers = st.sampled_from([*NO_NUMBERS.split(), '" 1.5 "', "1 2", "", "\x00", "\x0c1", "\xa01"])
cell = st.one_of(near, near, near, finite, st.integers(-(2**70), 2**70).map(str), odd_numbers, no_numbers)
fitting = {
    "numeric": st.one_of(near, near, finite, st.sampled_from(["null", "-0", '" 1.5 "', '"NA"'])),
    "boolean": st.sampled_from(["true", "false", "1", "0", "0.0", '" True"', "null"]),
    "categorical": st.sampled_from(['"x"', '"z"', '" x "', '"\\u0078"', '"1.0"', "1", "true", "2.5", '"new"', '"z"']),
}
name = st.sampled_from(['"a"', '"b"', '"c"', '"d"', '"y"', '" a "', '"\\u0061"', '"e"', '"\\n"', '""', "a"])


@st.composite
def json_bodies(draw: st.DrawFn, model: str) -> bytes:
    """Draw a body that is nearly one that this model reads."""
    inputs = MODELS[model][0]
    if draw(st.booleans()):
        rows = draw(st.lists(st.tuples(*(fitting[each.kind] for each in inputs)).map(list), min_size=1, max_size=4))
    else:
        width = draw(st.sampled_from([len(inputs)] * 8 + [0, 1, len(inputs) + 1]))
        rows = draw(st.lists(st.lists(draw(st.sampled_from([near, cell])), min_size=width, max_size=width), max_size=4))
    if draw(st.integers(0, 9)) == 0 and rows:
        rows[-1] = rows[-1][1:]
    known = [f'"{each.name}"' for each in inputs]
    names = draw(
        st.one_of(st.just(known), st.just(known), st.just([*known, '"e"']), st.lists(name, min_size=1, max_size=5))
    )
    return rows_of(draw(st.sampled_from(["x", "x", "records", "columns"])), rows, names)


@st.composite
def hostile_bodies(draw: st.DrawFn, model: str) -> bytes:
    """Draw a body as `json_bodies` does, and damage it in one of many ways."""
    body = draw(json_bodies(model))
    at = draw(st.integers(0, len(body)))
    piece = draw(
        st.sampled_from(
            [b"[", b"]", b"{", b"}", b",", b":", b'"', b" ", b"\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b"0"]
        )
    )
    return draw(
        st.sampled_from(
            [
                *[body] * 9,
                body[:at],
                body[at:],
                body[:at] + piece + body[at:],
                body[:at] + piece + body[at + 1 :],
                b"\xef\xbb\xbf" + body,
                b" \t\r\n" + body.replace(b",", b" ,\n ") + b" ",
                body + piece,
                body[:-1] + b"," + body[1:],
                body[:-1] + b',"x":[[1,2]]}',
                body[:-1] + b',"\\u0078":[[1,2]]}',
                body[:-1] + b',"e":1}',
                b"[" + body + b"]",
                body.replace(b"x", b"\\u0078", 1),
                body.replace(b"[[", b"[" * 1100, 1),
                body.decode("latin-1").encode("utf-16"),
            ]
        )
    )
