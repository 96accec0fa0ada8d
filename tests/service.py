"""A real `fitserve serve` on a real socket, for tests to talk to, stop, kill and start again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

from app.client import Client

ROOT = Path(__file__).resolve().parents[1]
READY_SECONDS = 60.0
_ADDRESS = re.compile(r"serving on (http://\S+)")


@dataclass
class Service:
    """One service on one data directory; its processes are one session, whose id is the serving process's.

    Args:
        settings: `FITSERVE_*` settings, by name without the prefix.
        port: where the next start listens; 0 is a free one.
        environment: the variables of its processes beside the settings.
        tracer: a command that runs the service's own, in the same process.
    """

    data_dir: Path
    settings: dict[str, str] = field(default_factory=dict)
    url: str = ""
    port: int = 0
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    tracer: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the service was not started"
        return self._process

    @property
    def log(self) -> Path:
        """Everything that its processes printed, over all starts."""
        return self.data_dir.with_suffix(".log")

    def start(self) -> Self:
        """Start it on a free port and wait until it serves."""
        environment = {name: value for name, value in self.environment.items() if not name.startswith("FITSERVE_")}
        settings = {"fast_path": os.environ.get("TEST_FAST_PATH", "true"), **self.settings}
        environment |= {f"FITSERVE_{name.upper()}": value for name, value in settings.items()}
        environment |= {"FITSERVE_PORT": str(self.port), "FITSERVE_DATA_DIR": str(self.data_dir)}
        said = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.tracer, sys.executable, "-m", "app", "serve"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            found = _ADDRESS.search(self.log.read_bytes()[said:].decode(errors="replace"))
            if found and self.is_ready(found[1]):
                self.url = found[1]
                return self
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"the service did not start:\n{self.log.read_text(errors='replace')[-4000:]}")

    @staticmethod
    def is_ready(url: str) -> bool:
        try:
            return httpx.get(f"{url}/readyz", timeout=5).is_success
        except httpx.TransportError:
            return False

    def client(self, key: str = "") -> Client:
        """Give our own client, connected to it."""
        return Client(self.url, key)

    def processes(self) -> dict[int, str]:
        """Give the live processes of its session: id → command line."""
        found = {}
        for folder in Path("/proc").iterdir():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[3] == str(self.process.pid) and fields[0] != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
            except (OSError, IndexError):
                continue
        return found

    def find(self, words: str) -> list[int]:
        """Give the ids of its live processes whose command line has these words."""
        return [pid for pid, command in self.processes().items() if words in command]

    def stop(self, number: int = signal.SIGTERM, seconds: float = 30) -> int:
        """Send the serving process a signal; gives its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)

    def kill_all(self) -> None:
        """Kill every process at once; what the kernel holds for them still reaches the disk."""
        self._signal_all(signal.SIGKILL)
        self.process.wait(10)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Have every process stand still, and go on at the end."""
        deadline = time.monotonic() + 10
        try:
            while not all(_stands_still(pid) for pid in self.processes()):
                assert time.monotonic() < deadline, "a process did not stop within 10 seconds"
                # SIGSTOP is sent again each time: a process may have been born meanwhile
                self._signal_all(signal.SIGSTOP)
            yield
        finally:
            self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _stands_still(pid: int) -> bool:
    """Return whether each thread of a process is stopped; a thread that waits for the disk stops after that."""
    states = set()
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            states.add(thread.read_text().rpartition(")")[2].split()[0])
    return states <= {"T", "Z"}
