"""This machine, or the container that this process is held to: its memory, its processor and its GPUs. Knows nothing of fitserve."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

#: where control groups are mounted, and what a group's file is called: in their second version, and in the first
_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
)

KEPT_BYTES = 16 * 1024**2
# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def machine_bytes() -> int:
    """Give the memory of this machine, or of the container, unit or group that this process is held to."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in memory_limits():
        # "max" where there is none
        with suppress(OSError, ValueError):
            found.append(int(limit.read_text()))
    return min(found)


def memory_limits() -> list[Path]:
    """Give the kernel's files of the memory limits that hold for this process, that of its own control group first."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    # id:controllers:path, where the second version has no controllers: cgroups(7)
    paths = [path for _, names, path in (line.split(":", 2) for line in lines) if names in ("", "memory")]
    found = []
    for mount, name in _GROUPS:
        for path in paths:
            own = mount / path.lstrip("/")
            # in a container the path may be the host's, which is not to be seen; the mount's root is its own group
            found += [folder / name for folder in (own, *own.parents) if folder.is_relative_to(mount)]
    return [limit for limit in dict.fromkeys(found) if limit.exists()]


def keep_freed_memory() -> None:
    """Let this process keep up to `KEPT_BYTES` that it freed, where the C library is glibc.

    By default glibc gives the system back what is freed at the end of its memory, 128 KB of it, and a body of 200 KB
    is then made of new pages each time: a third of what it costs to read one.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def processor() -> str:
    """Give a short digest of what this processor can do: code compiled for one is not for another."""
    with suppress(OSError):
        features = re.findall(r"^(?:flags|Features|model name)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return hashlib.sha256("\n".join(sorted(set(features))).encode()).hexdigest()[:12]
    return os.uname().machine


def out_of_memory_kills() -> int:
    """Count the processes that the kernel has killed because memory ran out, since it started."""
    with suppress(OSError):
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def gpus() -> list[dict[str, Any]]:
    """Ask the driver for its GPUs: name and memory in bytes; none where there is no driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (subprocess.SubprocessError, OSError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in lines]
    return [{"id": f"gpu:{row[0]}", "name": row[1], "memory_bytes": int(row[2]) * 1024**2} for row in rows]
