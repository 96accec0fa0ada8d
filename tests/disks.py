"""Small disks: in memory, to be filled or made unwritable, and in a file, to lose their power; root alone can mount one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from app.storage.blobs import sha256_of


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


@dataclass(frozen=True)
class Disk:
    """An ext4 disk in a file, mounted on a folder.

    Args:
        image: holds what has reached the disk, and not what the kernel still has in its cache.
    """

    image: Path
    folder: Path

    def lose_power(self, copy: Path) -> None:
        """Copy what the disk would hold if the power went now; whoever writes to it must stand still."""
        for _ in range(10):
            subprocess.run(["cp", "--sparse=always", "--remove-destination", self.image, copy], check=True)
            # the kernel may have written meanwhile: only equal files are the disk of one moment
            if sha256_of(copy) == sha256_of(self.image):
                return
        raise AssertionError("the disk changed during each of ten copies")


@contextmanager
def new_disk(image: Path, megabytes: int) -> Iterator[Disk]:
    """Make an ext4 disk in a file and mount it."""
    with image.open("wb") as file:
        file.truncate(megabytes * 1024**2)
    # the tables are written now: otherwise the kernel writes them while the disk is copied
    tables = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", tables, image], check=True, capture_output=True)
    with mounted_image(image) as folder:
        yield Disk(image, folder)


@contextmanager
def mounted_image(image: Path) -> Iterator[Path]:
    """Mount a disk that is in a file, on a folder beside the file."""
    folder = image.with_suffix(".mounted")
    folder.mkdir()
    # commit: by default ext4 makes every change durable after 5 seconds, which would hide a sync that is missing
    subprocess.run(["mount", "-o", "loop,commit=3600", image, folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def can_mount_images() -> bool:
    """Return whether `new_disk` works here: it needs root, loop devices and e2fsprogs."""
    try:
        with TemporaryDirectory() as folder, new_disk(Path(folder) / "disk", megabytes=8):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
