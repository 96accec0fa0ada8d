"""The door of one of several processes: one connection a turn, and none lost."""

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
        door = FairAcceptor(listener, make)
        while len(made) < 8:
            turn += 1
            await asyncio.sleep(0)
        door.close()
        await door.wait_closed()
        return [await hear(each) for each in waiting]

    with asyncio.Runner(loop_factory=factory) as runner:
        assert [b"hello"] * 8 == runner.run(run())

    assert sorted(set(made)) == made


def test_what_comes_when_a_door_is_closed_waits_for_another(listener: socket.socket) -> None:
    async def run() -> None:
        door = FairAcceptor(listener, Greeter)
        first = callers(listener, 4)
        assert [b"hello"] * 4 == [await hear(each) for each in first]
        door.close()
        (late,) = callers(listener, 1)
        await asyncio.sleep(0.05)
        other = FairAcceptor(listener, Greeter)
        assert b"hello" == await hear(late)
        other.close()

    asyncio.run(run())


def test_where_no_descriptor_is_free_it_waits_and_says_so(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def run() -> None:
        (caller,) = callers(listener, 1)
        door = FairAcceptor(listener, Greeter)
        # those that are open stay so
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            await asyncio.sleep(0.1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert "no connection can be accepted" in caplog.text
        assert b"hello" == await hear(caller)
        door.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
