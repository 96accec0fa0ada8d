"""The serving of a service: one process, or several on one socket. `start` comes before it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from app.api.operations import own_page
from app.logs import configure
from app.metrics.several_processes import Totals
from app.server.background import BackgroundWork, environment
from app.server.listener import announce
from app.server.uvicorn_server import Server, freeze_garbage
from app.settings import Settings
from app.system.child_process import command
from app.system.machine import keep_freed_memory
from app.system.supervisor import SupervisedProcess
from app.wiring import Services, open_services

#: a child process runs this module under another name
logger = logging.getLogger("app.server.main")

#: longest time that a serving process takes to stop, beyond the time that its requests have
STOP_SECONDS = 5.0


def run(settings: Settings, listener: socket.socket) -> None:
    """Serve on a socket until SIGTERM or SIGINT; the database has been migrated."""
    services = open_services(settings)
    services.sweep()
    make_first_key(services)
    keep_freed_memory()
    if settings.processes == 1:
        Server(services, listener, BackgroundWork(services)).run(sockets=[listener])
    else:
        with TemporaryDirectory(prefix="fitserve-") as folder:
            asyncio.run(_serve_with_several(services, listener, Path(folder)))
    services.close()


def make_first_key(services: Services) -> None:
    """Make an admin key and print it, where keys are needed and there is none."""
    has_key = services.keys.load()
    if services.settings.needs_key and not has_key:
        _, key = services.keys.add("made at the first start", ["admin"])
        print(f"fitserve: no key was configured; this one was made and is shown once: {key}", flush=True)


async def _serve_with_several(services: Services, listener: socket.socket, folder: Path) -> None:
    """Keep several serving processes alive on one socket until a signal comes, and do the background work here.

    Args:
        folder: where the processes exchange their metrics.
    """
    settings, background, stop = services.settings, BackgroundWork(services), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    line, descriptor = command("app.server.main", str(listener.fileno()), str(folder)), [listener.fileno()]
    children = [
        SupervisedProcess("serving process", line, environment(settings), descriptors=descriptor, says_ready=True)
        for _ in range(settings.processes)
    ]
    tasks = [asyncio.create_task(child.run()) for child in children]
    tasks.append(asyncio.create_task(_announce_when_ready(children, listener)))
    freeze_garbage()
    async with background.running():
        await stop.wait()
        logger.info("draining")
        services.drain()
        background.drain()
        await asyncio.gather(*(child.stop(settings.drain_seconds + STOP_SECONDS) for child in children))
    for task in tasks:
        task.cancel()


async def _announce_when_ready(children: list[SupervisedProcess], listener: socket.socket) -> None:
    for child in children:
        await child.is_ready.wait()
    announce(listener)


def main() -> None:
    """Run one of several serving processes: arguments DESCRIPTOR of the socket, and FOLDER of the metrics."""
    settings = Settings()
    configure(settings.log_level)
    keep_freed_memory()
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.setblocking(False)
    services = open_services(settings)
    services.totals = Totals(Path(sys.argv[2]), own_page)
    services.keys.load()
    Server(services, listener, None).run(sockets=[listener])
    services.close()


if __name__ == "__main__":
    main()
