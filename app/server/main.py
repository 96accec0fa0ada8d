"""The serving processes: socket, schema, key, and a uvicorn that stops in time; one process, or several on one socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn

from app.api.app import create_app
from app.api.operations import own_page
from app.errors import Unavailable
from app.fast_path.handler import FastPath
from app.logs import configure
from app.metrics.request_durations import Tally
from app.metrics.several_processes import Totals
from app.server.background import BackgroundWork, environment
from app.server.fair_accept import FairAcceptor
from app.server.http_protocol import HttpProtocol
from app.settings import Settings
from app.system.child_process import command
from app.system.file_lock import hold
from app.system.machine import keep_freed_memory
from app.system.supervisor import SupervisedProcess
from app.wiring import Services, make_data_dir, open_services

#: a child runs this module by another name
logger = logging.getLogger("app.server.main")

KEEP_ALIVE_SECONDS = 30
#: what a serving process may take to stop beyond the time that its requests have
STOP_SECONDS = 5.0
#: how long a thread that computes may keep the event loop's thread waiting, each time that the latter has read something
SWITCH_SECONDS = 0.0002
#: how often one of several processes looks for keys that another made or revoked
KEY_SECONDS = 0.5


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        OSError: the address cannot be bound, or the data directory not be written.
    """
    make_data_dir(settings.data_dir)
    listener = _listen(settings.host, settings.port)
    hold(settings.data_dir / "serving", "another service")
    _migrate(settings.resolved_database_url)
    services = open_services(settings)
    services.sweep()
    _give_key(services)
    keep_freed_memory()
    if settings.processes == 1:
        _Server(services, listener, BackgroundWork(services)).run(sockets=[listener])
    else:
        with TemporaryDirectory(prefix="fitserve-") as folder:
            asyncio.run(_lead(services, listener, Path(folder)))
    services.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def _migrate(url: str) -> None:
    # in a fork: what Alembic needs in memory goes with it, and nothing runs in this process yet
    child = multiprocessing.get_context("fork").Process(target=_migrate_in_fork, args=(url,))
    child.start()
    child.join()
    if child.exitcode != 0:
        raise SystemExit(1)


def _migrate_in_fork(url: str) -> None:
    from app.storage.migrate import migrate

    try:
        migrate(url)
    except Unavailable as error:
        raise SystemExit(f"fitserve: {error}") from None


def _give_key(services: Services) -> None:
    has_key = services.keys.load()
    if services.settings.needs_key and not has_key:
        _, key = services.keys.add("made at the first start", ["admin"])
        print(f"fitserve: no key was configured; this one was made and is shown once: {key}", flush=True)


async def _lead(services: Services, listener: socket.socket, folder: Path) -> None:
    """Keep several serving processes alive on one socket until a signal comes, and do what there is one of."""
    settings, upkeep, stop = services.settings, BackgroundWork(services), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    line, descriptor = command("app.server.main", str(listener.fileno()), str(folder)), [listener.fileno()]
    children = [
        SupervisedProcess("serving process", line, environment(settings), descriptors=descriptor, says_ready=True)
        for _ in range(settings.processes)
    ]
    tasks = [asyncio.create_task(child.run()) for child in children]
    tasks.append(asyncio.create_task(_announce_all(children, listener)))
    _spare_what_stays()
    async with upkeep.running():
        await stop.wait()
        logger.info("draining")
        services.drain()
        upkeep.drain()
        await asyncio.gather(*(child.stop(settings.drain_seconds + STOP_SECONDS) for child in children))
    for task in tasks:
        task.cancel()


def _spare_what_stays() -> None:
    """Look for garbage from now on, but not among what there is now: each look at it kept all requests waiting for 150 ms."""
    gc.freeze()
    gc.enable()


async def _announce_all(children: list[SupervisedProcess], listener: socket.socket) -> None:
    for child in children:
        await child.is_ready.wait()
    _announce(listener)


def _announce(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    print(f"fitserve: serving on http://{f'[{host}]' if ':' in host else host}:{port}  docs at /docs", flush=True)


class _Server(uvicorn.Server):
    """uvicorn with drains that end.

    Args:
        upkeep: what runs beside it where it is the only serving process.
    """

    def __init__(self, services: Services, listener: socket.socket, upkeep: BackgroundWork | None) -> None:
        self._services, self._listener, self._upkeep = services, listener, upkeep
        self._door: FairAcceptor | None = None
        settings = services.settings
        tally = Tally()
        edge = create_app(services, self._lifespan, tally)
        own = {
            "head_seconds": settings.header_seconds,
            "predictions": services.lanes.predictions,
            "hot": FastPath(services, tally, edge),
        }
        self._protocol = type("HttpProtocol", (HttpProtocol,), own)
        config = uvicorn.Config(
            edge,
            http=self._protocol,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(settings.drain_seconds),
        )
        super().__init__(config)
        sys.setswitchinterval(SWITCH_SECONDS)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept: in its own way where other processes do, too."""
        if self._upkeep is not None:
            await super().startup(sockets)
            return
        await super().startup([])
        about = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        self._door = FairAcceptor(self._listener, partial(self._protocol, **about))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door first: who has come through it has to be told."""
        if self._door is not None:
            self._door.close()
            await self._door.wait_closed()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on the first signal; unlike uvicorn's own, do not raise it again: a drained stop is exit 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain)
        yield

    def _drain(self) -> None:
        logger.info("draining")
        self.should_exit = True
        self._services.drain()
        if self._upkeep is not None:
            self._upkeep.drain()

    @asynccontextmanager
    async def _lifespan(self, _app: Any) -> AsyncIterator[None]:
        services = self._services
        work = [services.job_waiter.run(), services.parser.start()]
        if services.totals is not None:
            work += [services.totals.serve(), self._know_keys()]
        tasks = [asyncio.create_task(each) for each in work]
        _spare_what_stays()
        async with self._upkeep.running() if self._upkeep is not None else contextlib.nullcontext():
            if self._upkeep is not None:
                _announce(self._listener)
            else:
                # the process that started this one waits for it
                print("ready", flush=True)
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                for child in (services.parser, services.prediction_parser, services.large_file_parser):
                    await child.close()

    async def _know_keys(self) -> None:
        while True:
            await asyncio.sleep(KEY_SECONDS)
            with contextlib.suppress(Unavailable):
                await asyncio.to_thread(self._services.keys.load)


def main() -> None:
    """Be one of several serving processes: arguments DESCRIPTOR of the socket, and FOLDER of the metrics."""
    settings = Settings()
    configure(settings.log_level)
    keep_freed_memory()
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.setblocking(False)
    services = open_services(settings)
    services.totals = Totals(Path(sys.argv[2]), own_page)
    services.keys.load()
    _Server(services, listener, None).run(sockets=[listener])
    services.close()


if __name__ == "__main__":
    main()
