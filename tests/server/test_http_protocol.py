"""Connections with hostile clients: counted, ended in time, and answered in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import uvicorn
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.server.http_protocol import MAX_HEAD_BYTES, HttpProtocol
from app.server.uvicorn_server import FastLimitedProtocol
from app.serving.admission import Lane

KEEP_ALIVE_SECONDS = 1
HEAD = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
PREDICT = b"POST /api/v1/models/a/predict HTTP/1.1\r\nHost: a\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
LONG = b"X-Long: " + b"v" * (MAX_HEAD_BYTES + 1) + b"\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the length of the body; on /deaf without reading the body."""
    size, more = 0, scope["path"] != "/deaf"
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
        if scope["path"] == "/slow":
            await asyncio.sleep(0.1)
    body = b"%d" % size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class NothingPlain:
    """A fast path that leaves every request to its route."""

    most_bytes = 0

    def read_head(self, _path: bytes, _headers: Any, _on_response: Any) -> None:
        return None

    def recall(self, _data: bytes, _on_response: Any) -> None:
        return None


class Wire:
    """A listening application, and its connections."""

    def __init__(self, *, has_fast_path: bool) -> None:
        self.has_fast_path = has_fast_path
        self.lane = Lane("tests", 1, 1, 60)
        self.head_seconds = 5.0
        self.state = ServerState()
        self.made: list[HttpProtocol] = []
        self.servers: list[asyncio.Server] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        config = uvicorn.Config(
            app, lifespan="off", access_log=False, log_config=None, timeout_keep_alive=KEEP_ALIVE_SECONDS
        )
        limits: dict[str, Any] = {"head_seconds": self.head_seconds, "predictions": self.lane}

        def make() -> asyncio.Protocol:
            about: tuple[Any, ...] = (config, self.state, {})
            if self.has_fast_path:
                self.made.append(FastLimitedProtocol(*about, fast_path=NothingPlain(), **limits))
            else:
                self.made.append(HttpProtocol(*about, **limits))
            return self.made[-1]

        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        self.servers.append(server)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        self.writers.append(writer)
        return reader, writer

    def fill(self) -> None:
        """Fill the lane of predictions."""
        while self.lane.enter() is not None:
            pass


async def through(test: Callable[[Wire], Coroutine[Any, Any, None]], *, has_fast_path: bool) -> None:
    wire = Wire(has_fast_path=has_fast_path)
    try:
        await test(wire)
    finally:
        for server in wire.servers:
            server.close()
        for each in (
            *(connection.transport for connection in wire.made),
            *(writer.transport for writer in wire.writers),
        ):
            each.abort()
        await asyncio.sleep(0.05)
        wire.lane.close()


@pytest.fixture(params=[False, True], ids=["limits", "limits and fast path"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[Wire], Coroutine[Any, Any, None]]], None]:
    """Run a test's coroutine in a loop of its own, without the fast path and with it."""

    def go(test: Callable[[Wire], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(through(test, has_fast_path=request.param))

    return go


Run = Callable[[Callable[[Wire], Coroutine[Any, Any, None]]], None]


async def read(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Read one answer: status, head, body."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(head.split()[1]), head.lower(), await reader.readexactly(size)


async def ends(reader: asyncio.StreamReader) -> float:
    """Wait for the end of a connection; return how long that took, in seconds."""
    began = time.monotonic()
    with suppress(ConnectionResetError):
        assert b"" == await asyncio.wait_for(reader.read(), 10)
    return time.monotonic() - began


def test_a_refused_request_changes_nothing_of_the_one_before(run: Run) -> None:
    async def test(wire: Wire) -> None:
        reader, writer = await wire.open()
        slow = b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        writer.write(slow + HEAD + b"Content-Length: 5\r\n" + LONG + b"\r\nEVIL!")

        assert (200, b"3") == (await read(reader))[::2]
        assert 431 == (await read(reader))[0]
        await ends(reader)

    run(test)


def test_a_large_body_does_not_count_in_the_head_behind_it(run: Run) -> None:
    async def test(wire: Wire) -> None:
        reader, writer = await wire.open()
        size = MAX_HEAD_BYTES + 4000
        second = HEAD + b"Content-Length: 2\r\n\r\nok"
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % size + b"x" * size + second[:40])
        await asyncio.sleep(0.2)
        writer.write(second[40:])

        assert (200, b"%d" % size) == (await read(reader))[::2]
        assert (200, b"2") == (await read(reader))[::2]
        writer.close()

    run(test)


@pytest.mark.parametrize("piece", [1000, 200_000])
@pytest.mark.parametrize("lines", [b"", UPGRADE])
def test_a_head_that_is_too_large_is_431_in_pieces_of_any_size(run: Run, lines: bytes, piece: int) -> None:
    async def test(wire: Wire) -> None:
        reader, writer = await wire.open()
        head = HEAD + lines + 2 * LONG + b"\r\n"
        for at in range(0, len(head), piece):
            if wire.made and wire.made[0].transport.is_closing():
                break
            writer.write(head[at : at + piece])
            await asyncio.sleep(0.002)
        assert 431 == (await read(reader))[0]
        await ends(reader)

    run(test)


@pytest.mark.parametrize("line", [b"t: " + b"v" * 500 + b"\r\n", b"v" * 500])
def test_trailers_without_end_are_not_kept(run: Run, line: bytes) -> None:
    async def test(wire: Wire) -> None:
        _reader, writer = await wire.open()
        writer.write(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n" + (b"" if line.endswith(b"\n") else b"t: ")
        )
        for _ in range(2 * MAX_HEAD_BYTES // 500):
            writer.write(line)
            await asyncio.sleep(0.001)
        (connection,) = wire.made
        await asyncio.sleep(0.1)

        # the application waits for the end of a body that nobody reads any more
        assert connection.final_error is not None
        assert not connection.transport.is_reading()
        writer.close()

    run(test)


@pytest.mark.parametrize(
    "after",
    [
        b"\r\n",
        b"POST /deaf HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx",
        b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_a_connection_without_another_request_ends(run: Run, after: bytes) -> None:
    async def test(wire: Wire) -> None:
        reader, writer = await wire.open()
        writer.write(HEAD + b"Content-Length: 2\r\n\r\nok")
        await read(reader)
        writer.write(after)
        began = time.monotonic()
        await asyncio.wait_for(reader.read(), 10)
        assert time.monotonic() - began < KEEP_ALIVE_SECONDS + 2

    run(test)


def test_a_body_that_nobody_reads_has_one_time_for_all_of_it(run: Run) -> None:
    async def test(wire: Wire) -> None:
        reader, writer = await wire.open()
        writer.write(b"POST /deaf HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        await read(reader)
        began = time.monotonic()
        while not reader.at_eof() and time.monotonic() < began + 10:
            writer.write(b"x")
            await asyncio.sleep(0.1)
            if wire.made[0].transport.is_closing():
                break
        assert time.monotonic() - began < KEEP_ALIVE_SECONDS + 2
        writer.close()

    run(test)


def test_unread_bodies_do_not_end_a_connection_with_more_requests(run: Run) -> None:
    async def test(wire: Wire) -> None:
        reader, writer = await wire.open()
        for _ in range(8):
            writer.write(b"POST /deaf HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx")
            assert (200, b"0") == (await read(reader))[::2]
            await asyncio.sleep(KEEP_ALIVE_SECONDS / 4)
            writer.write(b"y")
        writer.write(HEAD + b"Content-Length: 2\r\n\r\nok")
        assert (200, b"2") == (await read(reader))[::2]
        writer.close()

    run(test)


def test_refusals_that_are_never_read_do_not_pile_up(run: Run) -> None:
    async def test(wire: Wire) -> None:
        _, writer = await wire.open()
        wire.fill()
        for _ in range(200):
            writer.write((PREDICT + b"\r\n") * 500)
            await asyncio.sleep(0.002)
        (connection,) = wire.made

        assert connection.transport.get_write_buffer_size() < 1_000_000
        assert len(connection.pipeline) < 20_000
        writer.transport.abort()

    run(test)


@pytest.mark.parametrize(
    ("request_", "closes"),
    [
        (PREDICT + b"\r\n", False),
        (PREDICT + b"Connection: close\r\n\r\n", True),
        (PREDICT.replace(b"1.1", b"1.0") + b"\r\n", True),
        (PREDICT + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n", True),
        (PREDICT + UPGRADE + b"\r\n", False),
        (PREDICT + UPGRADE + b"Connection: close\r\n\r\n", True),
        (PREDICT + UPGRADE + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n", True),
    ],
)
def test_a_refusal_ends_the_connection_where_the_client_wants_it(run: Run, request_: bytes, closes: bool) -> None:
    async def test(wire: Wire) -> None:
        reader, writer = await wire.open()
        wire.fill()
        writer.write(request_)
        status, head, _ = await read(reader)
        assert 503 == status
        assert closes == (b"connection: close" in head)
        if closes:
            assert await ends(reader) < KEEP_ALIVE_SECONDS / 2
        writer.close()

    run(test)


@pytest.mark.parametrize(
    "target", [b"GET /api/v1/models/predict", b"POST /api/v1/models?after=/predict", b"GET /v1/models/a:predict"]
)
def test_other_requests_are_answered_while_predictions_are_full(run: Run, target: bytes) -> None:
    async def test(wire: Wire) -> None:
        reader, writer = await wire.open()
        wire.fill()
        writer.write(target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert 200 == (await read(reader))[0]
        writer.close()

    run(test)


def test_a_client_that_goes_away_with_more_requests_is_no_error(run: Run) -> None:
    async def test(wire: Wire) -> None:
        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        for _ in range(20):
            _, writer = await wire.open()
            writer.write((b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok") * 2)
            await asyncio.sleep(0.01)
            writer.transport.abort()
        await asyncio.sleep(0.4)
        assert [] == failures

    run(test)


def test_only_the_last_connections_are_too_many(run: Run) -> None:
    async def test(wire: Wire) -> None:
        reader, writer = await wire.open()
        wire.state.connections |= {object() for _ in range(1000)}  # type: ignore[misc]
        late, late_writer = await wire.open()
        late_writer.write(HEAD + b"\r\n")
        status, head, _ = await read(late)
        assert (503, True) == (status, b"connection: close" in head)
        writer.write(HEAD + b"Content-Length: 2\r\n\r\nok")
        assert 200 == (await read(reader))[0]
        writer.close()
        late_writer.close()

    run(test)


def written(lines: bytes, body: bytes, is_chunked: bool) -> bytes:
    """Write a request with these lines in its head."""
    if not is_chunked:
        return HEAD + lines + b"Content-Length: %d\r\n\r\n" % len(body) + body
    parts = [part for part in (body[:7], body[7:]) if part]
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
    return HEAD + lines + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks) + b"0\r\n\r\n"


def test_upgrades_are_ignored_in_pieces_of_any_size(run: Run) -> None:
    bodies = st.one_of(st.just(HEAD + b"\r\n"), st.binary(max_size=40))
    requests = st.lists(st.tuples(st.sampled_from([b"", UPGRADE]), bodies, st.booleans()), min_size=1, max_size=4)

    @settings(max_examples=60, deadline=None, database=None)
    @given(requests, st.lists(st.integers(0, 600), max_size=8))
    def check(requests: list[tuple[bytes, bytes, bool]], cuts: list[int]) -> None:
        async def test(wire: Wire) -> None:
            reader, writer = await wire.open()
            whole = b"".join(written(*request) for request in [*requests, (b"Connection: close\r\n", b"", False)])
            places = [0, *sorted(cuts), len(whole)]
            for start, end in pairwise(places):
                writer.write(whole[start:end])
                await asyncio.sleep(0.001)

            assert [b"%d" % len(body) for _, body, _ in requests] == [(await read(reader))[2] for _ in requests]
            assert (200, b"0") == (await read(reader))[::2]
            await ends(reader)

        run(test)

    check()


def test_a_head_with_an_upgrade_is_counted_once(run: Run) -> None:
    async def test(wire: Wire) -> None:
        reader, writer = await wire.open()
        writer.write(HEAD + UPGRADE + LONG[: MAX_HEAD_BYTES - 100] + b"\r\nContent-Length: 2\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.write(b"ok")
        assert (200, b"2") == (await read(reader))[::2]
        writer.close()

    run(test)


def test_the_time_of_a_head_with_an_upgrade_ends_with_it(run: Run) -> None:
    async def test(wire: Wire) -> None:
        wire.head_seconds = 0.3
        reader, writer = await wire.open()
        request = written(UPGRADE, b"ok", False)
        for piece in (request[:40], request[40:-2], request[-2:]):
            await asyncio.sleep(0.2)
            writer.write(piece)
        assert (200, b"2") == (await read(reader))[::2]
        writer.write(request[:-4])
        assert await ends(reader) < KEEP_ALIVE_SECONDS

    run(test)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_the_request_behind_a_refused_upgrade_is_answered(run: Run, is_chunked: bool) -> None:
    async def test(wire: Wire) -> None:
        reader, writer = await wire.open()
        wire.fill()
        refused = written(UPGRADE, HEAD + b"\r\n", is_chunked).replace(HEAD, PREDICT, 1)
        for _ in range(2):
            writer.write(refused + written(UPGRADE, b"ok", is_chunked)[:-9])
            assert 503 == (await read(reader))[0]
            writer.write(written(UPGRADE, b"ok", is_chunked)[-9:])
            assert (200, b"2") == (await read(reader))[::2]
            writer.write(refused[:-9])
            assert 503 == (await read(reader))[0]
            writer.write(refused[-9:])
        writer.close()

    run(test)


@pytest.mark.parametrize(
    "last", [b"GARBAGE\r\n\r\n", b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", HEAD + LONG + b"\r\n"]
)
def test_a_final_error_waits_for_a_slow_answer_before_it(run: Run, last: bytes) -> None:
    async def test(wire: Wire) -> None:
        wire.head_seconds = 0.05
        reader, writer = await wire.open()
        writer.write(b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + last)

        assert (200, b"3") == (await read(reader))[::2]
        assert (await read(reader))[0] in (400, 431)
        await ends(reader)

    run(test)
