"""Children die with their parent, however it dies, and whatever they are doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.processes import is_alive, until
from tests.service import ROOT

#: a parent that spawns the module `task`, prints the child's id, and waits
PARENT = """
import subprocess
from app.system.child_process import command

child = subprocess.Popen(command("task", "an argument"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(child.pid, child.stdout.readline().decode().strip(), flush=True)
child.wait()
"""


def family(folder: Path, task: str) -> tuple[subprocess.Popen[str], int, str]:
    """Start a parent and its child; return the parent, the child's id, and the line that the child printed."""
    (folder / "task.py").write_text(textwrap.dedent(task))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    pid, _, line = parent.stdout.readline().partition(" ")
    return parent, int(pid), line.strip()


@pytest.mark.parametrize(
    "task",
    [
        "print('importing', flush=True)\nimport time; time.sleep(60)",
        "if __name__ == '__main__':\n    print('working', flush=True)\n    while True: pass",
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(60)",
    ],
    ids=["while-importing", "while-computing", "deaf-to-sigterm"],
)
def test_a_child_dies_when_its_parent_is_killed(tmp_path: Path, task: str) -> None:
    parent, child, line = family(tmp_path, task)
    assert line
    assert is_alive(child)

    parent.kill()
    parent.communicate()

    until(lambda: not is_alive(child), 5)


def test_a_child_runs_its_module_as_main_with_its_own_arguments(tmp_path: Path) -> None:
    parent, _, line = family(tmp_path, "import sys\nprint(__name__, sys.argv[1:], flush=True)")

    parent.communicate(timeout=20)

    assert "__main__ ['an argument']" == line


def test_a_child_leaves_ctrl_c_to_its_parent_and_writes_no_core_file(tmp_path: Path) -> None:
    task = """
        import os, resource, signal
        os.kill(os.getpid(), signal.SIGINT)
        print(resource.getrlimit(resource.RLIMIT_CORE), flush=True)
    """

    parent, _, line = family(tmp_path, task)
    parent.communicate(timeout=20)

    assert "(0, 0)" == line


def test_a_child_whose_parent_is_gone_already_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("print('worked')")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    another = os.getppid()

    ended = subprocess.run(
        [sys.executable, "-m", "app.system.child_process", str(another), "task"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
    )

    assert (1, "") == (ended.returncode, ended.stdout)


def test_a_kill_of_the_child_leaves_the_parent_alive(tmp_path: Path) -> None:
    parent, child, _ = family(tmp_path, "print('up', flush=True)\nimport time; time.sleep(60)")

    os.kill(child, signal.SIGKILL)

    assert 0 == parent.wait(20)
    parent.communicate()
