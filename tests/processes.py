"""Live processes: waiting for something that they do, whether they run, and the memory that they hold."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.service import ROOT, Service

T = TypeVar("T")


def until(ask: Callable[[], T | None], seconds: float = 60) -> T:
    """Call a function again and again until its result is true, and return that result."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"nothing came within {seconds} seconds"
        time.sleep(0.02)
    return answer


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def trainers(service: Service) -> list[int]:
    """Return the ids of a service's training processes: those that train, and the warm one."""
    return service.find("app.jobs.training_child")


def megabytes(pid: int, field: str) -> float:
    """Return the `Rss` or `Pss` of a process in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024


def spawn(data_dir: Path, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    """Start a command of `fitserve` on a data directory, with its output and errors piped."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FITSERVE_")}
    environment |= {"FITSERVE_DATA_DIR": str(data_dir), "FITSERVE_PORT": "0"}
    environment |= {f"FITSERVE_{name.upper()}": value for name, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
