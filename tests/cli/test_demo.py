"""The demonstration as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.service import ROOT

SECONDS = 240


def run_demo(folder: Path, temporary: Path) -> subprocess.CompletedProcess[str]:
    """Run the demonstration in a folder, beside a setting that is meant for another service."""
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "FITSERVE_PORT": "1"}
    command = [sys.executable, "-m", "app.cli.demo"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def test_the_demo_shows_every_step_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run_demo(ROOT, tmp_path)

    assert 0 == done.returncode, done.stdout + done.stderr
    titles = [
        "Start the service",
        "Upload a table",
        "Train a model on it",
        "Evaluate it",
        "Predict",
        "Stop the service",
    ]
    assert titles == [line for line in done.stdout.splitlines() if line in titles]
    assert "Done in" in done.stdout
    assert [] == list(tmp_path.iterdir())


def test_the_demo_outside_of_a_clone_says_what_it_expected(tmp_path: Path) -> None:
    done = run_demo(tmp_path, tmp_path)

    assert (1, "") == (done.returncode, done.stderr)
    assert f"demo: expected the table examples/penguins.csv in {tmp_path}; " in done.stdout
