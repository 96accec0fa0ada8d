"""The door of one of several serving processes: one connection for each turn of its event loop.

libuv accepts whatever waits, so that the process that wakes first has all of a burst of connections and the others have
none. One that is busy comes to its next turn later, and leaves the next connection to another. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

logger = logging.getLogger(__name__)

#: how long nothing is accepted where it cannot be, as without free file descriptors
PAUSE_SECONDS = 1.0


class FairAcceptor:
    """Accepts connections on a listening socket that other processes accept on, too.

    Args:
        make: makes a connection's protocol.
    """

    def __init__(self, listener: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
        self._listener = listener
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._coming = set[asyncio.Task[object]]()
        self._pause: asyncio.TimerHandle | None = None
        self._open()

    def close(self) -> None:
        """Accept no more; what was accepted lives on."""
        self._loop.remove_reader(self._listener)
        if self._pause is not None:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """Wait until what was accepted has its protocol."""
        if self._coming:
            await asyncio.wait(self._coming)

    def _open(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            # another process was quicker, or the caller has gone
            return
        except OSError:
            logger.exception("no connection can be accepted")
            self._loop.remove_reader(self._listener)
            self._pause = self._loop.call_later(PAUSE_SECONDS, self._open)
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._make, connection))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)
