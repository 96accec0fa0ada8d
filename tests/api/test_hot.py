"""The short way of a prediction: the very answers of the route, whatever is sent, and who of the two gave them."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message

from app.api.app import create_app
from app.api.edge import Edge
from app.api.hot import Hot
from app.api.served import LOOP_BYTES, LOOP_ROWS_BYTES
from app.config import Settings
from app.learning.encoder import Encoder, Input
from app.training import Rooms
from app.wiring import open_services
from tests.records import artifact_of, train

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
            Input("b", "numeric", "error", marks_missing=False, scale=1e-300, low=0.0, high=1.0),
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


@dataclass(frozen=True)
class Answer:
    """What an application sent."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass
class Both:
    """The application by its short way, and by its routes alone, in one event loop."""

    hot: Hot
    run: Callable[..., Any]

    def ask(self, model: str, body: bytes, content_type: str = "application/json", cut: int | None = None) -> Answer:
        """Send a body both ways, whole or in two parts; gives the one answer, having seen that they are equal."""
        answers = [
            self.run(post(app, f"/api/v1/models/{model}/predict", body, content_type, cut))
            for app in (self.hot, self.hot.app)
        ]
        assert answers[1] == answers[0], body[:500]
        assert isinstance(answers[0], Answer)
        return answers[0]

    def answered(self) -> int:
        """Give how many requests took the short way."""
        return sum(self.hot._tally.series("http", "1.1").counts)


async def post(app: ASGIApp, path: str, body: bytes, content_type: str, cut: int | None) -> Answer:
    """Send a request to an application, and take its answer."""
    parts = [body] if cut is None else [body[:cut], body[cut:]]
    sent: list[Message] = []
    place = count()

    async def receive() -> Message:
        i = next(place)
        assert i < len(parts), "expected nobody to wait for more"
        return {"type": "http.request", "body": parts[i], "more_body": i + 1 < len(parts)}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", content_type.encode())]
    head = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    await app({**head, "headers": headers, "http_version": "1.1", "scheme": "http", "request_id": "id"}, receive, send)
    return Answer(sent[0]["status"], sent[0]["headers"], b"".join(each["body"] for each in sent[1:]))


@pytest.fixture
def both(rooms: Rooms, tmp_path: Path, database_url: str) -> Iterator[Both]:
    """Both ways, on a version of each model."""
    for seed, (name, (inputs, rows)) in enumerate(MODELS.items()):
        records = [dict(zip([each.name for each in inputs], row, strict=True)) for row in rows]
        train(rooms, name, artifact_of(Encoder(inputs), records, seed))
    services = open_services(
        Settings(
            data_dir=tmp_path / "data", database_url=database_url, max_predict_bytes=200_000, max_predict_cells=900
        )
    )
    edge = create_app(services)
    assert isinstance(edge, Edge)
    assert isinstance(edge.app, Hot)
    with asyncio.Runner() as runner:
        yield Both(edge.app, runner.run)
    services.close()


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
odd_numbers = st.sampled_from(
    ["-0", "-0.0", "0e5", "1E3", "1e-400", "5e-324", "1e308", "-1.7976931348623157e308", "3.5e38", "1e16777216"]
    + ["0.1234567890123456789012345678901234567890", "9007199254740993", "18446744073709551615", "9223372036854775808"]
    + ["18446744073709551616", "-9223372036854775809", "1" * 400, "123456789012345678901234567890", "1e999", "-1e999"]
)
no_numbers = st.sampled_from(
    ["null", "true", "false", '""', '"NA"', '"x"', '"5"', '" 1.5 "', '"["', '"\\u0078"', '"\\ud800"', '"é"', "[]", "{}"]
    + ["[1]", "[1,2]", '{"x":1}', "[[1,2]]", '{"a":[1,2]}', '[["x"]]', "NaN", "Infinity", "-", "01", "1.", ".5", "+1"]
    + ["1e", "0x1", "nul", '"', "\x00", "1 2", "[", "]", "\x0c1", "\xa01", "", "// 1", "'x'"]
)
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
    """Draw such a body, and damage it in one of many ways."""
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


@pytest.mark.parametrize("model", MODELS)
def test_any_body_has_the_same_answer_by_both_ways(both: Both, model: str) -> None:
    statuses: dict[int, int] = {}

    @settings(max_examples=900, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.one_of(json_bodies(model), hostile_bodies(model)), st.none() | st.integers(0, 40))
    def check(body: bytes, cut: int | None) -> None:
        answer = both.ask(model, body, cut=cut)
        statuses[answer.status] = statuses.get(answer.status, 0) + 1

    check()

    # the bodies tell something only where many of them can be read, by the short way, and many cannot
    assert {200, 400, 422} == set(statuses)
    assert statuses[200] / 2 < both.answered() <= statuses[200]
    assert min(statuses.values()) > 30


@pytest.mark.parametrize("model", ["numbers", "strict", "mixed", "one"])
def test_binary_bodies_have_the_same_answer_by_both_ways(both: Both, model: str) -> None:
    rng, inputs = np.random.default_rng(0), len(MODELS[model][0])
    odd = np.array([np.nan, np.inf, -np.inf, 1e38, 3.4e38, 0.0, -0.0, 1e300, 5.0, -5.0])

    for i in range(300):
        x = rng.normal(0, 3, (rng.integers(0, 5), inputs + rng.choice([0, 0, 0, 0, 1, -1])))
        if i % 2 and x.size:
            x.flat[rng.integers(0, x.size)] = rng.choice(odd)
        with np.errstate(all="ignore"):
            x = x.astype(rng.choice(["<f4", "<f4", "<f8", "<f8", ">f8", "<f2", "<i8", "?"]))  # type: ignore[call-overload]
        file = io.BytesIO()
        np.save(file, np.asfortranarray(x) if i % 7 == 0 else x)
        npy = bytearray(file.getvalue())
        if i % 5 == 0:
            npy[rng.integers(0, min(len(npy), 100))] ^= 1 << rng.integers(0, 8)
        if i % 11 == 0:
            npy = npy[: rng.integers(0, len(npy))]
        both.ask(model, bytes(npy), "application/x-npy")
        both.ask(model, x.tobytes()[i % 3 // 2 :], "application/octet-stream")

    assert both.answered() > 0 or model == "mixed"


def test_bodies_of_every_size_have_the_same_answer_by_both_ways(both: Both) -> None:
    # around where a body is read beside the loop, where it goes to the route, and where it is refused
    for rows in (1, 10, 299, 300, 301, 450, 451):
        for cell_ in ("1", "1.25" + "0" * 30, "1.25" + "0" * 150, "7"):
            both.ask("numbers", rows_of("x", [[cell_, cell_]] * rows, []))
            both.ask("mixed", rows_of("records", [[cell_, '"x"', "1", '"z"']] * rows, ['"a"', '"b"', '"c"', '"d"']))
    for size in (LOOP_BYTES, LOOP_ROWS_BYTES, 200_000):
        for more in (-1, 0, 1):
            both.ask("numbers", b'{"x":[[1,2]]' + b" " * (size + more - 13) + b"}")
            both.ask("mixed", b'{"records":[{"d":"z"}]' + b" " * (size + more - 23) + b"}")


def test_references_that_mean_nothing_have_the_answers_of_the_route(both: Both) -> None:
    for ref in ("numbers", "numbers@1", "numbers@default", "numbers@2", "numbers@best", "nobody", "a b", "", "-", "@"):
        answer = both.ask(ref, b'{"x":[[1,2]]}')

        assert (200 == answer.status) == (ref in ("numbers", "numbers@1", "numbers@default")), ref


def test_the_documents_of_both_ways_are_json(both: Both) -> None:
    answer = both.ask("mixed", b'{"records":[{"d":"new","\\"q\\u00e9":1},{"d":"x","a":99}]}')

    assert 200 == answer.status
    assert [each["column"] for each in json.loads(answer.body)["warnings"]][:1] == ["a"]
