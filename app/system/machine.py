"""This machine, or the container that this process runs in: its memory, its processor and its GPUs."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

#: where control groups are mounted, and the name of a group's memory limit, in their second version and in the first
_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
)

#: freed memory that a process keeps for its next allocations
KEPT_BYTES = 16 * 1024**2
# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Gpu(TypedDict):
    """A GPU, by an id such as "gpu:0"."""

    id: str
    name: str
    memory_bytes: int


def machine_bytes() -> int:
    """Return the memory of this machine, or what its container, unit or control group leaves this process of it."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in memory_limits():
        # a group without a limit says "max"
        with suppress(OSError, ValueError):
            sizes.append(int(limit.read_text()))
    return min(sizes)


def memory_limits() -> list[Path]:
    """Return the kernel's files of the memory limits on this process, the one of its own control group first."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    # id:controllers:path, where the second version has no controllers: cgroups(7)
    paths = [path for _, names, path in (line.split(":", 2) for line in lines) if names in ("", "memory")]
    limits = []
    for mount, name in _GROUPS:
        for path in paths:
            own = mount / path.lstrip("/")
            # in a container the path may be the host's, and not be there; the mount's root is then the own group
            limits += [folder / name for folder in (own, *own.parents) if folder.is_relative_to(mount)]
    return [limit for limit in dict.fromkeys(limits) if limit.exists()]


def keep_freed_memory() -> None:
    """Have this process keep up to `KEPT_BYTES` of the memory that it frees, where the C library is glibc.

    By default glibc returns all but 128 KB to the system, and a body of 200 KB then gets new pages each time: a third
    of the time that reading such a body takes.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def processor() -> str:
    """Return a short digest of what this processor can do: code that is compiled for one may not run on another."""
    with suppress(OSError):
        features = re.findall(r"^(?:flags|Features|model name)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return hashlib.sha256("\n".join(sorted(set(features))).encode()).hexdigest()[:12]
    return os.uname().machine


def out_of_memory_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since it started."""
    with suppress(OSError):
        kills = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
        return int(kills[1]) if kills else 0
    return 0


def gpus() -> list[Gpu]:
    """Return the GPUs that the driver knows; none where there is no driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (subprocess.SubprocessError, OSError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in lines]
    return [{"id": f"gpu:{index}", "name": name, "memory_bytes": int(size) * 1024**2} for index, name, size in rows]
