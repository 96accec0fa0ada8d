"""A file that one process at a time holds."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path


def hold(path: Path, who: str) -> int:
    """Hold a file for this process's life; whoever held it may take a moment to end.

    Raises:
        SystemExit: another live process has it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(50):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        else:
            return descriptor
    raise SystemExit(f"fitserve: {who} runs on the data directory {path.parent} already")
