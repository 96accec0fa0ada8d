"""Scoring a version on a stored table: the same figures as in one piece, in memory that does not grow with the columns."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import Invalid
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.inputs import Input
from app.learning.encoding.read_cells import table_cells
from app.learning.evaluation.evaluate import evaluate
from app.learning.tables.column import Column, match_labels
from app.learning.tables.table import Table
from app.learning.tables.table_file import TableFile, write_table
from app.records.ref import Ref
from app.records.rooms import Rooms
from app.serving.evaluator import BATCH_ROWS, READ_BYTES, score
from app.serving.predictor import LoadedVersion
from app.serving.version_cache import VersionCache
from tests.stored_rows import artifact_of, train

CATEGORIES = ("x", "z")


def load(rooms: Rooms, numbers: int) -> LoadedVersion:
    """Publish a version of one category and so many numbers, and load it."""
    inputs = [Input(f"n{i}", "numeric", "impute", marks_missing=False, low=-5.0, high=5.0) for i in range(numbers)]
    encoder = Encoder((Input("b", "categorical", "impute", marks_missing=False, categories=CATEGORIES), *inputs))
    train(rooms, artifact=artifact_of(encoder, [{"b": "x"} | {f"n{i}": 0.5 for i in range(numbers)}]))
    return VersionCache(rooms.registry, "cpu", 1024**3).get(Ref.parse("m"))


def table(path: Path, numbers: int, rows: int, y: NDArray[np.int32]) -> TableFile:
    """Store a table of such rows; b and y have missing cells where their codes are -1."""
    rng = np.random.default_rng(3)
    b = rng.integers(-1, 2, rows, np.int32)
    columns = [Column(f"n{i}", "numeric", rng.normal(size=rows).astype(np.float32)) for i in range(numbers)]
    labels = Column("y", "categorical", y, ("no", "yes"), "str")
    write_table(path, Table((Column("b", "categorical", b, CATEGORIES, "str"), *columns, labels), "y"))
    return TableFile(path)


@pytest.mark.parametrize("share", [0.0, 0.3], ids=["every row labelled", "some rows without a label"])
def test_the_figures_are_those_of_the_table_in_one_piece(rooms: Rooms, tmp_path: Path, share: float) -> None:
    loaded = load(rooms, numbers=30)
    rows = 2 * READ_BYTES // (8 * 32) + BATCH_ROWS // 2
    rng = np.random.default_rng(4)
    y = np.where(rng.random(rows) < share, -1, rng.integers(0, 2, rows)).astype(np.int32)
    stored = table(tmp_path / "table", 30, rows, y)

    scores = score(loaded, stored, by="b")

    whole = stored.slice(0, rows, stored.names)
    truth, _ = match_labels(whole.column("y"), loaded.artifact.classes)
    chosen = np.flatnonzero(truth >= 0)
    cells = {name: values[chosen] for name, values in table_cells(loaded.artifact.encoder, whole).items()}
    x = loaded.artifact.encoder.encode(cells)
    logits = np.concatenate([loaded.runtime.logits(x[at : at + BATCH_ROWS]) for at in range(0, len(x), BATCH_ROWS)])
    classes = loaded.artifact.classes
    assert evaluate(logits, truth[chosen]).document(classes) == scores.overall.document(classes)
    assert [None, *CATEGORIES] == [value for value, _ in scores.slices]
    for code, (_, figures) in enumerate(scores.slices, -1):
        is_in = whole.column("b").values[chosen] == code
        assert evaluate(logits[is_in], truth[chosen][is_in]).document(classes) == figures.document(classes)


def test_memory_does_not_grow_with_the_columns(rooms: Rooms, tmp_path: Path) -> None:
    loaded = load(rooms, numbers=200)
    rows = 75_000
    stored = table(tmp_path / "table", 200, rows, np.arange(rows, dtype=np.int32) % 2)
    table_bytes = (tmp_path / "table").stat().st_size

    tracemalloc.start()
    score(loaded, stored)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 5 * READ_BYTES < table_bytes


def test_a_wrong_value_is_refused_with_its_row_in_the_table(rooms: Rooms, tmp_path: Path) -> None:
    loaded = load(rooms, numbers=1)
    rows = READ_BYTES // (8 * 3) + 10
    texts = np.zeros(rows, np.int32)
    texts[-1] = 1
    number = Column("n0", "categorical", texts, ("1.5", "many"), "str")
    labels = Column("y", "categorical", np.zeros(rows, np.int32), ("no", "yes"), "str")
    write_table(tmp_path / "table", Table((number, labels), "y"))

    with pytest.raises(Invalid, match=f"Expected a finite number in column 'n0', got a text in row {rows - 1}"):
        score(loaded, TableFile(tmp_path / "table"))
