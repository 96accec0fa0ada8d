"""A file that one process at a time holds."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

#: how often a lock that another process holds is tried, and how long between two tries: that process may be ending
TRIES, RETRY_SECONDS = 50, 0.1


def hold(path: Path, who: str) -> int:
    """Lock a file until this process ends, and return its descriptor; the file is made where there is none.

    Args:
        who: the name of this process in the message of the error.

    Raises:
        SystemExit: another live process holds the file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(RETRY_SECONDS)
        else:
            return descriptor
    raise SystemExit(f"fitserve: {who} runs on the data directory {path.parent} already")
