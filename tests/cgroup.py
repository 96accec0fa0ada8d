"""Memory limits on the processes of a test, where this machine lets the test set one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.system.machine import memory_limits


@contextmanager
def memory_limit(size: int) -> Iterator[Path]:
    """Make a control group with a memory limit in bytes, below this process's own.

    Returns:
        A file: a process whose id is written into it joins the group.

    Raises:
        OSError: this machine does not allow it.
    """
    above = next(iter(memory_limits()), None)
    if above is None:
        raise OSError("this process is in no group with a memory limit")
    group = above.parent / f"fitserve-test-{os.getpid()}"
    group.mkdir()
    try:
        # without O_CREAT: the file is absent where groups below this process's own have no limits
        descriptor = os.open(group / above.name, os.O_WRONLY)
        try:
            os.write(descriptor, str(size).encode())
        finally:
            os.close(descriptor)
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def can_limit_memory() -> bool:
    """Return whether `memory_limit` works here: a container, or an account, may not be allowed to make groups."""
    try:
        with memory_limit(2**30):
            return True
    except OSError:
        return False
