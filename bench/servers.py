"""Servers to be measured, each a process of its own on a free port of loopback. Knows nothing of what they serve."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app.client import Client
from bench.about import ROOT

#: the floor of an answer over HTTP, as the arguments of `run`
BARE = ("uvicorn", "bench.bare:app", "--port", "0", "--no-access-log")
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
SETTLED_SECONDS = 10.0
_ADDRESS = re.compile(r" on (http://\S+)\s")


@contextmanager
def run(folder: Path, deadline: float, *command: str, **settings: str) -> Iterator[tuple[int, str]]:
    """Run a module as a server; gives its process id, and the address that it says it serves on."""
    log = folder / f"{command[0]}.log"
    with process(log, [sys.executable, "-m", *command], **settings) as server:

        def address() -> str | None:
            check(server, log)
            found = _ADDRESS.search(log.read_text(encoding="utf-8", errors="replace"))
            return found[1] if found else None

        yield server.pid, until(address, deadline)


@contextmanager
def serve(data: Path, deadline: float, **settings: str) -> Iterator[tuple[int, str]]:
    """Run the service on a data directory, and wait until it is ready."""
    data.mkdir()
    given = {f"FITSERVE_{name.upper()}": value for name, value in settings.items()}
    own = {"FITSERVE_PORT": "0", "FITSERVE_DATA_DIR": str(data), **given}
    with run(data, deadline, "app", "serve", **own) as (pid, url):
        with Client(url, settings.get("api_key", "")) as client:
            until(client.is_ready, deadline)
        yield pid, url


@contextmanager
def process(log: Path, command: list[str], **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in the repository for a while; what it says goes into a file."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FITSERVE_")}
    with log.open("wb") as out:
        running = subprocess.Popen(
            command, cwd=ROOT, env=environment | settings, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        # some servers leave their own children behind
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


def check(running: subprocess.Popen[bytes], log: Path) -> None:
    """See that a server has not ended."""
    if running.poll() is not None:
        said = log.read_text(encoding="utf-8", errors="replace")[-4000:]
        raise SystemExit(f"bench: {log.stem} ended with exit code {running.returncode}:\n{said}")


def until(look: Callable[[], Any], deadline: float, what: str = "all to be done") -> Any:
    """Look again and again; gives what was seen first that is true."""
    while not (found := look()):
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: expected {what} in time")
        time.sleep(0.005)
    return found


def settle() -> None:
    """Wait after a job: the process that trained is replaced by one that imports Keras for some seconds."""
    time.sleep(SETTLED_SECONDS)


def cpu_seconds(pid: int) -> float:
    """Give the processor's time that a process has had."""
    return sum(map(int, stat(pid)[11:13])) * TICK_SECONDS


def stat(pid: int | str) -> list[str]:
    """Give the fields of proc(5)'s stat from the third on; the fourth is the parent."""
    return Path("/proc", str(pid), "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
