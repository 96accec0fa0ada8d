"""A file is held by one live process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.system.file_lock import hold
from tests.service import ROOT

#: a process that holds a file, says so, and lives until its standard input ends
HOLDER = """
import sys
from pathlib import Path
from app.system.file_lock import hold

hold(Path(sys.argv[1]), "a test")
print("held", flush=True)
sys.stdin.read()
"""


def spawn(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_file_that_a_live_process_holds_is_refused(tmp_path: Path) -> None:
    holder = spawn(tmp_path / "lock")
    assert holder.stdout is not None
    assert "held\n" == holder.stdout.readline()

    with pytest.raises(SystemExit, match=f"fitserve: a service runs on the data directory {tmp_path} already"):
        hold(tmp_path / "lock", "a service")

    holder.communicate()


def test_a_file_whose_holder_was_killed_is_free(tmp_path: Path) -> None:
    holder = spawn(tmp_path / "lock")
    assert holder.stdout is not None
    assert "held\n" == holder.stdout.readline()

    holder.kill()
    descriptor = hold(tmp_path / "lock", "a service")

    holder.communicate()
    assert 0o600 == os.fstat(descriptor).st_mode & 0o777
    os.close(descriptor)
