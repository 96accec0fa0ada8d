"""The serving process: socket, schema, key, worker, and a uvicorn that stops in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app import retention
from app.api.app import create_app
from app.api.problems import problem
from app.config import Settings
from app.errors import StorageFull, Unavailable
from app.lifeline import hold
from app.wiring import Services, make_data_dir, open_services

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 * 1024
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
        protocol = type("Protocol", (_Protocol,), {"head_seconds": settings.header_seconds})
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


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol with a cap on the request's head, and a time by which it must be there."""

    head_seconds: float = 10.0
    _clock: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._start_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._clock.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head, and refuse a large one."""
        super().data_received(data)
        if self._in_head:
            self._received_bytes += len(data)
        if self._is_too_large and self.transport is not None and not self.transport.is_closing():
            self.send_400_response("too large")

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or too much of it; uvicorn's own answer is plain text."""
        if self._is_too_large:
            self._refuse(431, "too_large", f"Expected a request head of at most {MAX_HEAD_BYTES} bytes, got more.")
        else:
            self._refuse(400, "malformed", f"Expected HTTP/1.1: {msg}")

    def on_message_begin(self) -> None:
        """Start the clock for the next request's head."""
        super().on_message_begin()
        self._clock.cancel()
        self._start_head()

    def on_url(self, url: bytes) -> None:
        """Count the address's bytes."""
        self._parsed_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header's bytes."""
        self._parsed_bytes += len(name) + len(value)
        if not self._is_too_large:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the clock; a head that is too large meets no route."""
        self._clock.cancel()
        self._in_head = False
        if not self._is_too_large:
            super().on_headers_complete()

    @property
    def _is_too_large(self) -> bool:
        # a head is counted as it arrives, and as it is parsed: one in a single piece with its body shows in the second
        return max(self._received_bytes, self._parsed_bytes) > MAX_HEAD_BYTES

    def _start_head(self) -> None:
        self._received_bytes, self._parsed_bytes, self._in_head = 0, 0, True
        self._clock = self.loop.call_later(self.head_seconds, self._too_slow)

    def _refuse(self, status: int, code: str, detail: str) -> None:
        request_id = secrets.token_hex(8)
        headers = {"Connection": "close", "X-Request-ID": request_id}
        # empty where no address was read yet
        path = self.url.partition(b"?")[0].decode("latin-1")
        answer = problem(status, code, detail, request_id, headers=headers, path=path)
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        head += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join([*head, b"", bytes(answer.body)]))
        self.transport.close()

    def _too_slow(self) -> None:
        if self.transport is not None:
            self.transport.close()
