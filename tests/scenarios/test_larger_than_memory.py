"""A table of more than four times its memory budget, from its CSV to a version, and the memory that this took.

`make test-large BYTES=5368709120` does the same with a larger file; the curve of memory is printed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl

from tests.conftest import Start
from tests.processes import megabytes
from tests.service import Service

MIB = 1024**2
#: size of the CSV; a cell takes 6.5 bytes in it, and 4 encoded
BYTES = int(os.environ.get("LARGE_BYTES", 40 * MIB))
COLUMNS = 60
CLASSES = 4
#: memory that a process may hold beside its budget, for libraries
BESIDE_MIB = 1024


def write_csv(path: Path, size: int) -> int:
    """Write a table sorted by class, which training in that order would not learn; return its number of rows."""
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 0.35, (CLASSES, COLUMNS))
    block = 20_000
    # rows enough for a block of each class
    blocks = max(size * 2 // (block * 13 * COLUMNS), CLASSES)
    with path.open("wb") as file:
        file.write((",".join([*(f"c{i}" for i in range(COLUMNS)), "y"]) + "\n").encode())
        for i in range(blocks):
            label = i * CLASSES // blocks
            x = centres[label] + rng.normal(0, 1, (block, COLUMNS))
            rows = pl.DataFrame(x).with_columns(y=pl.lit(label))
            rows.write_csv(file, include_header=False, float_precision=3)
    return blocks * block


@contextmanager
def sampled(service: Service) -> Iterator[dict[str, list[float]]]:
    """Note the memory of the training and the parser processes, in MiB, ten times a second."""
    seen: dict[str, list[float]] = {"app.jobs.training_child": [], "app.ingest.parser_child": []}
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.1):
            for name, curve in seen.items():
                held = []
                for pid in service.find(name):
                    try:
                        held.append(megabytes(pid, "Rss"))
                    except (OSError, StopIteration):
                        continue
                curve.append(max(held, default=0.0))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def test_a_table_of_four_times_the_budget_is_learned_within_it(start: Start, tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "large.csv", BYTES)
    size = (tmp_path / "large.csv").stat().st_size
    budget = rows * COLUMNS * 4 // 5
    limits = {"max_upload_bytes": str(2 * size), "max_rows": str(rows), "max_ingest_seconds": "3600"}
    service = start(max_training_bytes=str(budget), **limits)
    epochs = 2 if "LARGE_BYTES" in os.environ else 4

    with sampled(service) as seen, service.client() as client:
        began = time.monotonic()
        dataset = client.upload(tmp_path / "large.csv")
        parsed = time.monotonic() - began
        job = client.wait(client.train("large", dataset=dataset, fit={"epochs": epochs}), timeout=3600)
        trained = time.monotonic() - began - parsed

    peaks = {name: max(curve) for name, curve in seen.items()}
    step = max(len(seen["app.jobs.training_child"]) // 40, 1)
    print(
        f"\n{size / MIB:.0f} MiB of CSV, {rows} rows, budget {budget / MIB:.0f} MiB: parsed {parsed:.1f} s, job {trained:.1f} s"
    )
    for name, curve in seen.items():
        print(f"{name}: peak {peaks[name]:.0f} MiB:", *(f"{held:.0f}" for held in curve[::step]))
    assert peaks["app.jobs.training_child"] < budget / MIB + BESIDE_MIB
    # unshuffled rows would end with the last class alone, and be learned badly
    with service.client() as client:
        assert client.version(job.ref)["metrics"]["validation"]["accuracy"] > 0.9
