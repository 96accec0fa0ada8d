"""The short way of a prediction: the very answers of the route, whatever is sent, and who of the two gave them."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from app.api.app import create_app
from app.api.hot import ROUTE, Hot
from app.api.served import LOOP_BYTES, LOOP_ROWS_BYTES
from app.api.tally import Tally
from app.config import Settings
from app.connections import Protocol
from app.training import Rooms
from app.wiring import open_services
from tests.api.hostile import MODELS, hostile_bodies, json_bodies, publish_models, rows_of

#: by the route: a query that says what is meant anyway is nothing that the short way reads
BY_ROUTE = "?on_error=fail"
HEADERS = "Host: localhost\r\nX-From: a test\r\n"


@dataclass(frozen=True)
class Answer:
    """A status, the headers but for those of each answer alone, and the body."""

    status: int
    headers: list[str]
    body: bytes


class Both:
    """A connection to the application, both of whose ends are in one event loop."""

    def __init__(self, tally: Tally, runner: asyncio.Runner, port: int) -> None:
        self._tally, self._runner = tally, runner
        self._reader, self._writer = runner.run(asyncio.open_connection("127.0.0.1", port))

    def ask(self, model: str, body: bytes, content_type: str = "application/json", cut: int | None = None) -> Answer:
        """Send a body both ways, whole or in two parts; gives the one answer, having seen that they are equal.

        It goes the short way twice: the second time its head is known, where it came whole.
        """
        path = f"/api/v1/models/{quote(model, safe='@')}/predict"
        answers = [self._runner.run(self._post(path + by, body, content_type, cut)) for by in ("", "", BY_ROUTE)]
        for answer in answers[:2]:
            assert answers[2] == answer, body[:500]
        return answers[0]

    def answered(self) -> int:
        """Give how many requests took the short way."""
        return sum(self._tally.series("POST", ROUTE).counts)

    async def close(self) -> None:
        """Close it, at both ends."""
        self._writer.close()
        await self._writer.wait_closed()
        await asyncio.sleep(0.01)

    async def _post(self, path: str, body: bytes, content_type: str, cut: int | None) -> Answer:
        head = f"POST {path} HTTP/1.1\r\n{HEADERS}Content-Type: {content_type}\r\n"
        if cut is not None and cut % 2:
            # a chunk must not be empty
            parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:cut], body[cut:]) if part]
            self._writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b"".join(parts) + b"0\r\n\r\n")
        else:
            self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:cut])
            if cut is not None:
                await asyncio.sleep(0.001)
                self._writer.write(body[cut:])
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        size = next(int(line.partition(": ")[2]) for line in lines if line.startswith("content-length"))
        kept = [line for line in lines[1:] if not line.startswith("x-request-id")]
        answer = await self._reader.readexactly(size)
        return Answer(int(lines[0].split()[1]), kept, re.sub(rb'"request_id":"\w+"', b"", answer))


@pytest.fixture
def both(rooms: Rooms, tmp_path: Path, database_url: str) -> Iterator[Both]:
    """Both ways, on a version of each model."""
    publish_models(rooms)
    services = open_services(
        Settings(
            data_dir=tmp_path / "data", database_url=database_url, max_predict_bytes=200_000, max_predict_cells=900
        )
    )
    tally = Tally()
    edge = create_app(services, tally=tally)
    own = {"predictions": services.lanes.predictions, "hot": Hot(services, tally, edge)}
    protocol = type("Protocol", (Protocol,), own)
    config, state = uvicorn.Config(edge, lifespan="off", access_log=False, log_config=None), ServerState()
    with asyncio.Runner() as runner:
        listening = runner.run(_listen(lambda: protocol(config, state, {})))
        opened = Both(tally, runner, listening.sockets[0].getsockname()[1])
        yield opened
        runner.run(opened.close())
        listening.close()
        runner.run(listening.wait_closed())
    services.close()


async def _listen(protocol: Callable[[], asyncio.Protocol]) -> asyncio.Server:
    return await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)


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
    assert statuses[200] < both.answered() <= 2 * statuses[200]
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
