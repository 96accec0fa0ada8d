"""The serving process: socket, schema, key, worker, and a uvicorn that stops in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import uvicorn

from app import retention
from app.api.app import create_app
from app.config import Settings
from app.errors import StorageFull, Unavailable
from app.lifeline import hold
from app.machine import keep_freed_memory
from app.protocol import Protocol
from app.wiring import Services, make_data_dir, open_services

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 30
MAX_CONNECTIONS = 1000
#: a worker that dies is started again after this, doubled each time up to the last
RESTART_SECONDS = (0.2, 10.0)
WORKER_STOP_SECONDS = 8.0


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
    server = _Server(services, listener)
    server.run(sockets=[listener])
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


class _Server(uvicorn.Server):
    """uvicorn with a worker beside it, and with drains that end."""

    def __init__(self, services: Services, listener: socket.socket) -> None:
        self._services = services
        self._worker: asyncio.subprocess.Process | None = None
        settings = services.settings
        protocol = type("Protocol", (Protocol,), {"head_seconds": settings.header_seconds})
        config = uvicorn.Config(
            create_app(services, self._lifespan),
            http=protocol,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
            ws="none",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(settings.drain_seconds),
        )
        super().__init__(config)
        self._address = listener.getsockname()

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
        if self._worker is not None and self._worker.returncode is None:
            self._worker.terminate()

    @asynccontextmanager
    async def _lifespan(self, _app: Any) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._services.watch.run())]
        if self._services.settings.workers:
            tasks.append(asyncio.create_task(self._supervise()))
        tasks.append(asyncio.create_task(self._services.ingest.start()))
        tasks.append(asyncio.create_task(self._services.intake.run()))
        tasks.append(asyncio.create_task(self._sweep()))
        host, port = self._address[:2]
        print(f"fitserve: serving on http://{f'[{host}]' if ':' in host else host}:{port}  docs at /docs", flush=True)
        try:
            yield
        finally:
            await self._stop_worker()
            for task in tasks:
                task.cancel()
            for child in (self._services.ingest, self._services.codec, self._services.intake):
                await child.close()

    async def _sweep(self) -> None:
        """Remove what is older than the settings keep it, now and then."""
        settings = self._services.settings
        policy = retention.Policy.of(settings)
        while True:
            try:
                await asyncio.to_thread(retention.sweep, self._services.rooms, policy, datetime.now(UTC))
            except (Unavailable, StorageFull) as error:
                logger.warning("sweep put off: %s", error)
            except Exception:
                # the next one may do better, and nothing else depends on it
                logger.exception("sweep failed")
            await asyncio.sleep(settings.sweep_seconds)

    async def _supervise(self) -> None:
        """Keep one worker process alive; it dies with this one."""
        delay, longest = RESTART_SECONDS
        while not self._services.is_draining:
            command = [sys.executable, "-m", "app", "work", "--parent", str(os.getpid())]
            started = asyncio.get_running_loop().time()
            try:
                self._worker = await asyncio.create_subprocess_exec(*command, env=environment(self._services.settings))
            except OSError:
                logger.exception("worker not started")
            else:
                code = await self._worker.wait()
                if self._services.is_draining:
                    return
                logger.error("worker ended", extra={"exit_code": code})
            lived = asyncio.get_running_loop().time() - started
            delay = RESTART_SECONDS[0] if lived > longest else min(delay * 2, longest)
            await asyncio.sleep(delay)

    async def _stop_worker(self) -> None:
        if self._worker is None or self._worker.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._worker.terminate()
        try:
            async with asyncio.timeout(WORKER_STOP_SECONDS):
                await self._worker.wait()
        except TimeoutError:
            self._worker.kill()


def environment(settings: Settings) -> dict[str, str]:
    """Give this process's environment with every setting in it, for a child process."""
    given = {f"FITSERVE_{name.upper()}": value for name, value in settings.model_dump().items()}
    return {**os.environ, **{name: str(value) for name, value in given.items() if value is not None}}
