"""A memory limit of the kernel's on processes of a test, where this machine lets us set one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.machine import memory_limits


@contextmanager
def memory_limit(size: int) -> Iterator[Path]:
    """Make a group of so many bytes, below this process's own; a process joins by its id written into the file given."""
    above = next(iter(memory_limits()), None)
    if above is None or not os.access(above.parent, os.W_OK):
        pytest.skip("the kernel's memory groups cannot be written here")
    group = above.parent / f"fitserve-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made: {error.strerror}")
    try:
        if not (group / above.name).exists():
            pytest.skip("groups below this process's own have no memory limit")
        (group / above.name).write_text(str(size))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()
