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
from app.training import Rooms
from app.wiring import open_services
from tests.api.hostile import MODELS, hostile_bodies, json_bodies, publish_models, rows_of


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
    publish_models(rooms)
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


@pytest.mark.parametrize("model", MODELS)
def test_any_body_has_the_same_answer_by_both_ways(both: Both, model: str) -> None:
    statuses: dict[int, int] = {}

    @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.one_of(json_bodies(model), hostile_bodies(model)), st.none() | st.integers(0, 40))
    def check(body: bytes, cut: int | None) -> None:
        answer = both.ask(model, body, cut=cut)
        statuses[answer.status] = statuses.get(answer.status, 0) + 1

    check()

    # the bodies tell something only where many of them can be read, by the short way, and many cannot
    assert {200, 400, 422} == set(statuses)
    assert statuses[200] / 2 < both.answered() <= statuses[200]
    assert min(statuses.values()) > 10


@pytest.mark.parametrize("model", ["numbers", "strict", "mixed", "one"])
def test_binary_bodies_have_the_same_answer_by_both_ways(both: Both, model: str) -> None:
    rng, inputs = np.random.default_rng(0), len(MODELS[model][0])
    odd = np.array([np.nan, np.inf, -np.inf, 1e38, 3.4e38, 0.0, -0.0, 1e300, 5.0, -5.0])

    for i in range(300):
        x = rng.normal(0, 3, (rng.integers(0, 5), inputs + rng.choice([0, 0, 0, 0, 1, -1])))
        if i % 2 and x.size:
            x.flat[rng.integers(0, x.size)] = rng.choice(odd)
        with np.errstate(all="ignore"):
            x = x.astype(rng.choice(["<f4", "<f4", "<f8", "<f8", ">f8", "<f2", "<i8", "?"]))
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
