"""A child process that dies with its parent: its command line, and what it does before it runs its module."""

from __future__ import annotations

import ctypes
import os
import resource
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that spawned it ends.

    Args:
        parent: the parent's process id; where that process has ended already, this one exits.

    Source: prctl(2); the signal follows the spawning *thread*, so parents spawn from their main one.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def limit_child() -> None:
    """Have this process write no core files, and ignore the terminal's Ctrl-C: the parent acts on it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line of a child of this process that runs a module.

    The child is tied to this process's life before it imports the module.
    """
    return [sys.executable, "-m", "app.system.child_process", str(os.getpid()), module, *arguments]


def main() -> None:
    """Be a child: `python -m app.system.child_process PARENT_PID MODULE ARGUMENT…`."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    die_with_parent(parent)
    limit_child()
    del sys.argv[1:3]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
