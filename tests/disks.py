"""Small disks in memory, to be filled or made unwritable; root alone can mount one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk of a size, such as "24m", on a folder that is made; where that is not allowed the test is skipped."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if made.returncode != 0:
        pytest.skip("mounting a disk in memory needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes free on a disk."""
    space = os.statvfs(disk)
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        file.write(bytes(max(space.f_bavail * space.f_frsize - left, 0)))
    return ballast


def set_writable(disk: Path, *, is_writable: bool) -> None:
    """Let a disk take writes, or refuse every one."""
    subprocess.run(["mount", "-o", f"remount,{'rw' if is_writable else 'ro'}", disk], check=True, capture_output=True)
