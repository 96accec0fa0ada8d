"""A memory limit of the kernel's on processes of a test, where this machine lets us set one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.system.machine import memory_limits


@contextmanager
def memory_limit(size: int) -> Iterator[Path]:
    """Make a group of so many bytes, below this process's own; a process joins by its id written into the file given.

    Raises:
        OSError: this machine does not let us.
    """
    above = next(iter(memory_limits()), None)
    if above is None:
        raise OSError("this process is in no group with a memory limit")
    group = above.parent / f"fitserve-test-{os.getpid()}"
    group.mkdir()
    try:
        # opened, not made: there is none where groups below this process's own have no limits
        descriptor = os.open(group / above.name, os.O_WRONLY)
        try:
            os.write(descriptor, str(size).encode())
        finally:
            os.close(descriptor)
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def can_limit_memory() -> bool:
    """Tell whether `memory_limit` works here: a container, or an account, may have no part in the kernel's groups."""
    try:
        with memory_limit(2**30):
            return True
    except OSError:
        return False
