"""Accepts connections for one of several serving processes: one connection for each turn of its event loop.

libuv accepts every connection that waits, so that the process that wakes first would have all of a burst and the others none.
A busy process comes to its next turn later, and leaves the next connection to another process. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

logger = logging.getLogger(__name__)

#: pause after a connection could not be accepted, as without free file descriptors
PAUSE_SECONDS = 1.0


class FairAcceptor:
    """Accepts connections on a listening socket that other processes accept on, too.

    Args:
        make_protocol: called for each connection.
    """

    def __init__(self, listener: socket.socket, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._loop = asyncio.get_running_loop()
        #: connections that were accepted and have no protocol yet
        self._connecting = set[asyncio.Task[object]]()
        self._pause: asyncio.TimerHandle | None = None
        self._open()

    def close(self) -> None:
        """Accept no more connections; the accepted ones go on."""
        self._loop.remove_reader(self._listener)
        if self._pause is not None:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """Wait until each accepted connection has its protocol."""
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _open(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            # another process was faster, or the client has gone
            return
        except OSError:
            logger.exception("no connection can be accepted")
            self._loop.remove_reader(self._listener)
            self._pause = self._loop.call_later(PAUSE_SECONDS, self._open)
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._make_protocol, connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
