"""What this machine has, compared with what the kernel says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from app.system.machine import gpus, machine_bytes, out_of_memory_kills, processor
from tests.cgroup import memory_limit
from tests.service import ROOT

MIB = 1024**2


def ask(expression: str, prepare: str = "") -> str:
    """Evaluate an expression in a process of its own, after some lines that prepare for it; return its text or exit code."""
    code = f"""
import os, sys
from pathlib import Path
from app.system.machine import *
{prepare}
print({expression})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else str(done.returncode)


def test_the_memory_is_at_most_that_of_the_whole_machine() -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    assert 64 * MIB < machine_bytes() <= whole


@pytest.mark.memory_group
def test_the_memory_limit_of_a_control_group_counts() -> None:
    with memory_limit(512 * MIB) as members:
        join = f"Path({str(members)!r}).write_text(str(os.getpid()))"

        assert str(512 * MIB) == ask("machine_bytes()", join)


@pytest.mark.memory_group
def test_a_kill_for_want_of_memory_is_counted() -> None:
    before = out_of_memory_kills()
    with memory_limit(64 * MIB) as members:
        join = f"Path({str(members)!r}).write_text(str(os.getpid()))"

        assert "-9" == ask("len(bytearray(os.urandom(1)) * 256 * 1024**2)", join)

    assert before < out_of_memory_kills()


def test_another_kill_is_not_counted() -> None:
    before = out_of_memory_kills()

    assert "-9" == ask("os.kill(os.getpid(), 9)")

    assert before == out_of_memory_kills()


def test_a_processor_has_the_same_digest_in_every_process() -> None:
    assert processor() == ask("processor()")
    assert processor().isalnum()


def test_without_a_driver_there_is_no_gpu() -> None:
    assert "[]" == ask("gpus()", "os.environ['PATH'] = ''")
    assert all({"id", "name", "memory_bytes"} == set(gpu) for gpu in gpus())
