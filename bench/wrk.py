"""Load a server from another process: with wrk where it is installed, else with `bench.load`, which is slower itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.about import ROOT

#: no server is loaded for much longer than this: the slowest one there is answers 6 requests a second
LONGEST_SECONDS = 10.0
SCRIPT = Path(__file__).with_suffix(".lua")


@dataclass(frozen=True)
class Ask:
    """A request, to be sent again and again.

    Args:
        body: a file.
    """

    url: str
    body: Path
    media_type: str = "application/json"
    key: str = ""


@dataclass(frozen=True)
class Figures:
    """Answers a second, and the 99th percentile of their times."""

    per_second: float
    p99_ms: float


def tool() -> str:
    """Say what loads the servers."""
    return "wrk" if shutil.which("wrk") else "bench.load"


def load(ask: Ask, connections: int, seconds: float) -> Figures:
    """Send a request on each connection when the answer to the last one is there; longer where so few answers came.

    Raises:
        SystemExit: an answer was not 200, or none came.
    """
    while True:
        answers, elapsed, p99 = _once(ask, connections, seconds)
        if answers >= connections or seconds > LONGEST_SECONDS:
            break
        seconds *= 4
    if not answers:
        raise SystemExit(f"bench: {ask.url} gave no answer within {seconds:g} seconds")
    return Figures(answers / elapsed, p99)


def crowd(ask: Ask, connections: int, seconds: float, pause_ms: float) -> tuple[float, float]:
    """Give the answers a second with status 200, and those with another, where a connection pauses after each.

    Raises:
        SystemExit: wrk is absent, or a request got no answer.
    """
    if tool() != "wrk":
        raise SystemExit("bench: expected wrk on the path: another caller takes too much of the processor")
    answers, elapsed, _, others, failures = _wrk(ask, connections, seconds, pause_ms)
    if failures:
        raise SystemExit(f"bench: {ask.url} gave {failures:.0f} requests no answer")
    return (answers - others) / elapsed, others / elapsed


def _once(ask: Ask, connections: int, seconds: float) -> tuple[float, float, float]:
    if tool() == "wrk":
        answers, elapsed, p99, others, failures = _wrk(ask, connections, seconds, 0)
        if others or failures:
            raise SystemExit(
                f"bench: {ask.url} gave {others + failures:.0f} answers that were not 200, or none in time"
            )
        return answers, elapsed, p99
    own = [str(ask.body), str(connections), str(seconds), ask.media_type, *([ask.key] if ask.key else [])]
    rate, answers, p99 = map(float, _said([sys.executable, "-m", "bench.load", ask.url, *own]).split())
    return answers, answers / rate, p99


def _wrk(ask: Ask, connections: int, seconds: float, pause_ms: float) -> list[float]:
    # wrk knows whole seconds
    options = ["-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "--timeout", "60s", "-s", str(SCRIPT)]
    own = [str(ask.body), ask.media_type, ask.key, str(pause_ms)]
    return [float(word) for word in _said(["wrk", *options, ask.url, "--", *own]).split()[-5:]]


def _said(command: list[str]) -> str:
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"bench: {command[0]} ended with exit code {ended.returncode}:\n{ended.stderr[-2000:]}")
    return ended.stdout
