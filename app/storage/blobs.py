"""Blobs: immutable bytes under keys. Knows neither what they mean nor the database.

A key is visible only when all its bytes are durable: local writes go to `staging/`, are fsynced, and are
renamed into place; a folder's manifest is written last.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol

import obstore
from obstore.exceptions import NotFoundError
from obstore.store import LocalStore

from app.errors import NotFound, disk_full_is_a_fact

CHUNK_BYTES = 1024**2
#: blobs that are older than this and that nothing points at will not be pointed at any more
ORPHAN_SECONDS = 3600
#: staging's label of what nobody can reach any more
_DELETED = "deleted"


class Blobs(Protocol):
    """What the rooms ask of a store; one contract suite tests every implementation."""

    def put(self, key: str, source: Path) -> None:
        """Store a file, consuming it; a key that exists stays as it is. Durable on return."""

    def publish(self, prefix: str, folder: Path) -> None:
        """Store a folder of files under a new prefix, all or nothing, consuming it. Durable on return."""

    def get(self, key: str) -> bytes:
        """Give a blob's bytes, or raise `NotFound`."""

    def local(self, key: str) -> Path:
        """Give a readable local path of a blob or of a published folder, or raise `NotFound`."""

    def delete(self, prefix: str) -> None:
        """Remove a blob, or a folder with all in it; nothing happens where there is none."""

    def keys(self, prefix: str, older_than_seconds: float = 0) -> Iterator[str]:
        """List the keys under a prefix, or those of them that were written longer ago."""

    def staging(self, label: str) -> AbstractContextManager[Path]:
        """Give an empty local folder, removed at the end; `put` and `publish` take files out of it."""

    def sweep(self, label: str) -> None:
        """Remove the staging folders of a label; only their one owner may, at its start."""


class LocalBlobs:
    """Blobs in a local folder.

    Args:
        root: the folder; made with mode 0700 where absent.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._staging = self.root / "staging"
        make_folder(self._staging)
        self._store = LocalStore(self.root)

    def put(self, key: str, source: Path) -> None:
        """Store a file, consuming it; a key that exists stays as it is. Durable on return."""
        target = self.root / key
        with disk_full_is_a_fact():
            fsync(source)
            make_folder(target.parent)
            if target.exists():
                source.unlink()
            else:
                source.rename(target)
            fsync(target.parent)

    def publish(self, prefix: str, folder: Path) -> None:
        """Store a folder of files under a new prefix, all or nothing, consuming it. Durable on return."""
        target = self.root / prefix
        with disk_full_is_a_fact():
            for file in sorted(folder.iterdir()):
                fsync(file)
            fsync(folder)
            make_folder(target.parent)
            folder.rename(target)
            fsync(target.parent)

    def get(self, key: str) -> bytes:
        """Give a blob's bytes, or raise `NotFound`."""
        try:
            return bytes(obstore.get(self._store, key).bytes())
        except (NotFoundError, FileNotFoundError) as error:
            raise NotFound("blob", key) from error

    def local(self, key: str) -> Path:
        """Give a readable local path of a blob or of a published folder, or raise `NotFound`."""
        path = self.root / key
        if not path.exists():
            raise NotFound("blob", key)
        return path

    def delete(self, prefix: str) -> None:
        """Remove a blob, or a folder with all in it; nothing happens where there is none."""
        path = self.root / prefix
        if path.is_dir():
            # renamed first, so that a reader sees the folder whole or not at all
            doomed = self._staging / f"{_DELETED}-{uuid.uuid4().hex}"
            with suppress(FileNotFoundError):
                path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def keys(self, prefix: str, older_than_seconds: float = 0) -> Iterator[str]:
        """List the keys under a prefix, or those of them that were written longer ago."""
        latest = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        for batch in obstore.list(self._store, prefix=prefix):
            yield from (entry["path"] for entry in batch if entry["last_modified"] <= latest)

    @contextmanager
    def staging(self, label: str) -> Iterator[Path]:
        """Give an empty folder on the store's own disk, removed at the end; `put` and `publish` move out of it."""
        folder = self._staging / f"{label}-{uuid.uuid4().hex}"
        with disk_full_is_a_fact():
            folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, label: str) -> None:
        """Remove the staging folders of a label; only their one owner may, at its start."""
        for folder in self._staging.iterdir():
            # exactly: the worker "a" has nothing to do with the folders of the worker "a-b"
            if folder.name.rpartition("-")[0] in (label, _DELETED):
                shutil.rmtree(folder, ignore_errors=True)


def fsync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, with mode 0700 where absent; their names are durable on return."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
        fsync(each.parent)


def make_data_dir(folder: Path) -> None:
    """Make the data directory where absent, and check that it can be written.

    Raises:
        OSError: the directory cannot be made, or not be written.
    """
    try:
        make_folder(folder)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"the data directory {folder} cannot be written: {error.strerror}") from error


def sha256_of(path: Path) -> str:
    """Give the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
