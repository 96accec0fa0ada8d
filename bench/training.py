"""`python -m bench.training`: what training costs on this machine, beside other ways to train the same network.

Each contestant is a process of its own that stays alive, and each workload is run by one after another, round by round:
what else the machine does falls on all of them. What carries over are the ratios of one round's times.
Writes `bench/results/training.json`, and the tables in the README.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from app.system.child_process import command
from bench.about import RESULTS, ROOT, about
from bench.contestants import CONTESTANTS, FITSERVE, KERAS, SKLEARN, C, Workload, absent, request
from bench.rounds import Goal, Round, cell, embed, ratio, rounded, spread, verdicts, written

RESULT = RESULTS / "training.json"
LIBRARIES = ("keras", "tensorflow", "numpy", "scikit-learn")
ROUNDS = 5
#: no round begins after it but the first
ENOUGH_SECONDS = 350.0
#: what this process's own environment says of threads and compilers is nothing to its children
FOREIGN = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "TF_XLA_FLAGS",
)


@dataclass(frozen=True)
class Row:
    """A workload, and who takes part in it, each with its number of epochs: enough of them to be timed."""

    workload: Workload
    epochs: Mapping[str, int]

    def of(self, contestant: str) -> Workload:
        """Give a contestant's own workload."""
        return replace(self.workload, epochs=self.epochs[contestant])

    def quick(self) -> Row:
        """Give a row of the same kind that takes next to no time."""
        small = replace(self.workload, rows=max(self.workload.rows // 50, 120))
        return Row(small, {name: min(epochs, 3) for name, epochs in self.epochs.items()})

    @property
    def title(self) -> str:
        """Say what is timed."""
        work = self.workload
        timed = f"{self.epochs[FITSERVE]} epochs and compilation" if work.is_whole else "an epoch"
        return f"{work.rows:,} × {work.columns}, batch {work.batch}, {timed}"


def _row(rows: int, columns: int, classes: int, batch: int, *, is_whole: bool = False, **epochs: int) -> Row:
    names = {"ours": FITSERVE, "keras": KERAS, "sklearn": SKLEARN, "c": C}
    workload = Workload(rows, columns, classes, batch, epochs["ours"], is_whole)
    return Row(workload, {names[name]: count for name, count in epochs.items()})


#: ours has so many epochs that its loop is the one of long runs, from 2000 steps on
ROWS = {
    # beside the row with ten times as many rows, whose first contestant is ours
    "tenth_of_the_rows": _row(6000, 784, 10, 32, ours=21),
    "wide_batch_32": _row(60000, 784, 10, 32, ours=6, c=6, keras=3, sklearn=2),
    "wide_batch_256": _row(60000, 784, 10, 256, ours=11, c=11, keras=5, sklearn=3),
    "wide_batch_1024": _row(60000, 784, 10, 1024, ours=36, c=11, keras=6, sklearn=3),
    "narrow_batch_32": _row(10000, 20, 10, 32, ours=101, c=101, keras=5, sklearn=6),
    "small_whole_run": _row(150, 4, 3, 32, is_whole=True, ours=100, c=100, keras=100, sklearn=100),
    "wide_whole_run": _row(60000, 784, 10, 32, is_whole=True, ours=10, keras=10),
}


def _faster(name: str, times: float) -> Goal:
    return Goal(f"{ROWS[name].title}: Keras ≥ {times:g} × ours", (name, KERAS), (name, FITSERVE), least=times)


GOALS = (
    _faster("wide_batch_32", 10),
    _faster("wide_batch_256", 4),
    _faster("wide_batch_1024", 2),
    _faster("narrow_batch_32", 40),
    _faster("wide_whole_run", 8),
    replace(_faster("small_whole_run", 1), is_of_each_round=True),
    Goal(
        f"{ROWS['wide_batch_32'].title}: ours ≤ 1.3 × C",
        ("wide_batch_32", FITSERVE),
        ("wide_batch_32", C),
        most=1.3,
    ),
    Goal(
        "60,000 rows: 10 × the time of 6,000, ± 15 %",
        ("wide_batch_32", FITSERVE),
        ("tenth_of_the_rows", FITSERVE),
        least=0.85,
        most=1.15,
        scale=10,
    ),
)


def main() -> None:
    """Measure, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="python -m bench.training")
    parser.add_argument("--quick", action="store_true", help="one round of next to no rows, and nothing is written")
    parser.add_argument("--output", type=Path, help=f"write the results here, and no README; default {RESULT}")
    asked = parser.parse_args()
    rows = {name: row.quick() for name, row in ROWS.items()} if asked.quick else ROWS
    document = {**about(LIBRARIES), "command": f"python -m bench.training{' --quick' * asked.quick}"}
    rounds = measure(rows, 1 if asked.quick else ROUNDS)
    document |= summary(rows, rounds)
    text = tables(document)
    output = asked.output or (None if asked.quick else RESULT)
    if output is not None:
        written(output, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    if output == RESULT:
        embed(text, "training")
    print(text)


def measure(rows: Mapping[str, Row], most: int) -> list[Round]:
    """Run rounds, at most so many; None is the time of who is absent."""
    began = time.monotonic()
    missing = absent()
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="fitserve-bench-") as name, ExitStack() as stack:
        players = {each: stack.enter_context(_playing(each, Path(name))) for each in CONTESTANTS if each not in missing}
        while len(rounds) < most and (not rounds or time.monotonic() < began + ENOUGH_SECONDS):
            rounds.append(
                {
                    name: {who: players[who].seconds(row.of(who)) if who in players else None for who in row.epochs}
                    for name, row in rows.items()
                }
            )
    return rounds


class _Player:
    """A contestant's process."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self._name, self._process, self._log = name, process, log
        self._answer()

    def seconds(self, workload: Workload) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(request(workload))
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text(encoding="utf-8", errors="replace")[-4000:]
            raise SystemExit(f"bench: {self._name} ended with exit code {self._process.wait()}:\n{said}")
        return line


@contextmanager
def _playing(name: str, folder: Path) -> Iterator[_Player]:
    environment = {key: value for key, value in os.environ.items() if key not in FOREIGN}
    log = folder / f"{name}.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command("bench.contestants", name),
            cwd=ROOT,
            # all compute on the processor
            env=environment | {"CUDA_VISIBLE_DEVICES": "-1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        yield _Player(name, process, log)


def summary(rows: Mapping[str, Row], rounds: Sequence[Round]) -> dict[str, Any]:
    """Give each workload's seconds, and the others' times as multiples of ours, with ranges; and the goals."""
    results = {}
    for name, row in rows.items():
        seconds = {who: [each[name][who] for each in rounds] for who in row.epochs}
        others = [who for who in row.epochs if who != FITSERVE]
        results[name] = {
            "title": row.title,
            "workload": {key: value for key, value in asdict(row.workload).items() if key != "epochs"},
            "epochs": dict(row.epochs),
            "seconds": {who: spread([s for s in found if s is not None]) for who, found in seconds.items()},
            "times_ours": {who: ratio(rounds, (name, who), (name, FITSERVE)) for who in others},
        }
    return {
        "results": results,
        "goals": [goal.judge(rounds) for goal in GOALS],
        "absent": absent(),
        "rounds": rounded(rounds),
    }


def tables(document: Mapping[str, Any]) -> str:
    """Show results as Markdown."""
    machine, rounds = document["machine"], len(document["rounds"])
    lines = [
        f"{document['at'][:10]}, {machine['cpu']}, {machine['cores']} cores, TensorFlow"
        f" {document['versions']['tensorflow']}; {rounds} round{'s' * (rounds != 1)}, load average"
        f" {document['load_average_before']} before. Seconds are ours; the rest are multiples of them, medians and ranges"
        " of each round's ratio, so more than 1 is slower than ours.",
        "",
        f"| rows × columns | seconds | {KERAS} | {SKLEARN} | {C} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for found in document["results"].values():
        cells = [cell(found["times_ours"].get(who)) for who in (KERAS, SKLEARN, C)]
        lines.append(f"| {found['title']} | {found['seconds'][FITSERVE]['median']:g} | {' | '.join(cells)} |")
    lines += ["", *verdicts(document["goals"])]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
