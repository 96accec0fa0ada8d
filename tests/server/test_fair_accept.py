"""Accepting for one of several processes: one connection for each turn of the event loop, and no connection lost."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Iterator

import pytest
import uvloop

from app.server.fair_accept import FairAcceptor


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


class Greeter(asyncio.Protocol):
    """Says hello."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        transport.write(b"hello")
        transport.close()


def callers(listener: socket.socket, count: int) -> list[socket.socket]:
    made = [socket.create_connection(listener.getsockname(), timeout=10) for _ in range(count)]
    for each in made:
        each.setblocking(False)
    return made


async def hear(caller: socket.socket) -> bytes:
    with caller:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(caller, 10), 10)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_each_turn_of_the_loop_accepts_one_connection(listener: socket.socket, factory: type) -> None:
    made: list[int] = []
    turn = 0

    def make() -> asyncio.Protocol:
        made.append(turn)
        return Greeter()

    async def run() -> list[bytes]:
        nonlocal turn
        waiting = callers(listener, 8)
        acceptor = FairAcceptor(listener, make)
        while len(made) < 8:
            turn += 1
            await asyncio.sleep(0)
        acceptor.close()
        await acceptor.wait_closed()
        return [await hear(each) for each in waiting]

    with asyncio.Runner(loop_factory=factory) as runner:
        assert [b"hello"] * 8 == runner.run(run())

    assert sorted(set(made)) == made


def test_connections_wait_for_another_acceptor_when_one_is_closed(listener: socket.socket) -> None:
    async def run() -> None:
        acceptor = FairAcceptor(listener, Greeter)
        first = callers(listener, 4)
        assert [b"hello"] * 4 == [await hear(each) for each in first]
        acceptor.close()
        (late,) = callers(listener, 1)
        await asyncio.sleep(0.05)
        other = FairAcceptor(listener, Greeter)
        assert b"hello" == await hear(late)
        other.close()

    asyncio.run(run())


def test_an_acceptor_waits_for_a_free_descriptor_and_logs_it(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def run() -> None:
        (caller,) = callers(listener, 1)
        acceptor = FairAcceptor(listener, Greeter)
        # open connections stay open
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            await asyncio.sleep(0.1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert "no connection can be accepted" in caplog.text
        assert b"hello" == await hear(caller)
        acceptor.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
