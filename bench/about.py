"""What every benchmark says beside its figures: the machine, the versions, when, and how busy it was."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
MIB = 1024**2


def about(libraries: Sequence[str]) -> dict[str, Any]:
    """Describe the moment and the machine, and give the versions of those libraries that are installed."""
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
    versions = {"python": platform.python_version()}
    for name in libraries:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu[1] if cpu else platform.machine(), "cores": os.cpu_count(), "memory_mib": memory},
        "kernel": platform.release(),
        "versions": versions,
        # what else ran: the minute's average before, of which nothing is ours
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def median(values: Sequence[float]) -> float:
    """Give the median to three digits: no more of it carries over to another run."""
    return digits(statistics.median(values))


def digits(value: float) -> float:
    """Round to three digits."""
    return float(f"{value:.3g}")
