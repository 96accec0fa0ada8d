"""uvicorn's server for one serving process: its protocol, its life beside the requests, and a stop that ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import uvicorn

from app.api.app import create_app
from app.errors import Unavailable
from app.fast_path.handler import FastPath
from app.fast_path.http_protocol import FastHttpProtocol
from app.http.gate import RequestGate
from app.metrics.request_durations import Tally
from app.server.background import BackgroundWork
from app.server.fair_accept import FairAcceptor
from app.server.http_protocol import HttpProtocol
from app.server.listener import announce
from app.wiring import Services

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 30
#: how long a thread that computes may keep the event loop's thread waiting, each time that the latter has read something
SWITCH_SECONDS = 0.0002
#: how often one of several processes looks for keys that another one made or revoked
KEY_SECONDS = 0.5


class FastLimitedProtocol(HttpProtocol, FastHttpProtocol):
    """uvicorn's protocol with the limits of every connection, and behind them the fast path."""


def protocol_factory(services: Services, gate: RequestGate, tally: Tally) -> Callable[..., asyncio.Protocol]:
    """Return what makes the protocol of a connection; the setting `fast_path` says whether the fast path is in it."""
    settings, predictions = services.settings, services.lanes.predictions
    if not settings.fast_path:
        return partial(HttpProtocol, head_seconds=settings.header_seconds, predictions=predictions)
    return partial(
        FastLimitedProtocol,
        head_seconds=settings.header_seconds,
        predictions=predictions,
        fast_path=FastPath(services, tally, gate),
    )


def freeze_garbage() -> None:
    """Search for garbage from now on, but not among the objects of the start: each search kept all requests waiting for 150 ms."""
    gc.freeze()
    gc.enable()


class Server(uvicorn.Server):
    """uvicorn's server, whose drain ends in time.

    Args:
        background: runs beside the server where this is the only serving process; None for one of several processes.
    """

    def __init__(self, services: Services, listener: socket.socket, background: BackgroundWork | None) -> None:
        self._services, self._listener, self._background = services, listener, background
        self._acceptor: FairAcceptor | None = None
        tally = Tally()
        gate = create_app(services, self._lifespan, tally)
        self._make_protocol = protocol_factory(services, gate, tally)
        config = uvicorn.Config(
            gate,
            # uvicorn only calls it
            http=cast("type[asyncio.Protocol]", self._make_protocol),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(services.settings.drain_seconds),
        )
        super().__init__(config)
        sys.setswitchinterval(SWITCH_SECONDS)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections: with a `FairAcceptor` where other processes accept, too."""
        if self._background is not None:
            await super().startup(sockets)
            return
        await super().startup([])
        about = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        self._acceptor = FairAcceptor(self._listener, partial(self._make_protocol, **about))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting first: a connection that was accepted must learn of the shutdown."""
        if self._acceptor is not None:
            self._acceptor.close()
            await self._acceptor.wait_closed()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on the first signal. Unlike uvicorn, do not raise the signal again: the exit code of a drained stop is 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain)
        yield

    def _drain(self) -> None:
        logger.info("draining")
        self.should_exit = True
        self._services.drain()
        if self._background is not None:
            self._background.drain()

    @asynccontextmanager
    async def _lifespan(self, _app: Any) -> AsyncIterator[None]:
        services = self._services
        work = [services.job_waiter.run(), services.parser.start()]
        if services.totals is not None:
            work += [services.totals.serve(), self._reload_keys()]
        tasks = [asyncio.create_task(each) for each in work]
        freeze_garbage()
        async with self._background.running() if self._background is not None else contextlib.nullcontext():
            if self._background is not None:
                announce(self._listener)
            else:
                # the process that started this one waits for the word
                print("ready", flush=True)
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                for parser in (services.parser, services.prediction_parser, services.large_file_parser):
                    await parser.close()

    async def _reload_keys(self) -> None:
        while True:
            await asyncio.sleep(KEY_SECONDS)
            with contextlib.suppress(Unavailable):
                await asyncio.to_thread(self._services.keys.load)
