"""The order in which rows are visited: whole, repeatable, and shuffled well enough where they lie in a file."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.learning.training.examples import Examples, ExampleSource, Window, sample
from app.learning.training.loop import build_variables, run_epochs
from app.learning.training.stored_examples import StoredExamples

SEED = 7
#: each example has its own file, which the next one writes anew
REPEATED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Shape:
    """How many rows there are, and how they are read and visited."""

    rows: int
    width: int
    batch: int
    window_rows: int
    block_rows: int
    seed: int | None
    epoch: int
    is_weighted: bool


SHAPES = st.builds(
    Shape,
    rows=st.integers(1, 150),
    width=st.integers(1, 4),
    batch=st.integers(1, 40),
    window_rows=st.integers(1, 60),
    block_rows=st.integers(1, 50),
    seed=st.none() | st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 1000),
    is_weighted=st.booleans(),
)


def in_memory(shape: Shape) -> Examples:
    """Rows whose every value tells which one it is."""
    numbers = np.arange(shape.rows)
    x = np.repeat(numbers[:, None], shape.width, 1).astype(np.float32)
    return Examples(x, numbers.astype(np.int32), numbers.astype(np.float32) if shape.is_weighted else None)


def in_file(shape: Shape, folder: Path) -> StoredExamples:
    examples = in_memory(shape)
    path = folder / "rows"
    path.write_bytes(examples.x.tobytes())
    return StoredExamples(
        path, shape.width, examples.y, 4 * shape.width * shape.window_rows, examples.weight, shape.block_rows
    )


def windows(source: ExampleSource, shape: Shape, start: int = 0) -> list[Window]:
    return list(source.windows(shape.seed, shape.epoch, shape.batch, start))


def batches(found: list[Window], batch: int, start: int = 0) -> list[list[int]]:
    """The rows of each batch from row `start` of the epoch on."""
    rows = [
        window.y[window.order[at : at + batch]].tolist()
        for window in found
        for at in range(0, len(window.order), batch)
        if window.start + at >= start
    ]
    assert all(len(each) == batch for each in rows[:-1])
    return rows


@given(shape=SHAPES)
@REPEATED
def test_an_epoch_visits_every_row_once_in_whole_batches(tmp_path: Path, shape: Shape) -> None:
    for source in (in_memory(shape), in_file(shape, tmp_path)):
        found = windows(source, shape)

        visited = [row for window in found for row in window.y[window.order].tolist()]
        sizes = [len(window.order) for window in found]
        assert list(range(shape.rows)) == sorted(visited)
        assert all(size and size % shape.batch == 0 for size in sizes[:-1])
        assert np.cumsum([0, *sizes[:-1]]).tolist() == [window.start for window in found]


@given(shape=SHAPES)
@REPEATED
def test_a_rows_values_label_and_weight_stay_together(tmp_path: Path, shape: Shape) -> None:
    for window in windows(in_file(shape, tmp_path), shape):
        rows = window.y[window.order]
        assert (window.x[window.order] == rows[:, None]).all()
        assert shape.is_weighted == (window.weight is not None)
        assert window.weight is None or (window.weight[window.order] == rows).all()
        assert ["float32", "int32", "int32"] == [str(a.dtype) for a in (window.x, window.y, window.order)]


@given(shape=SHAPES, share=st.floats(0, 1))
@REPEATED
def test_an_epoch_begun_within_it_is_the_tail_of_the_whole(tmp_path: Path, shape: Shape, share: float) -> None:
    steps = -(-shape.rows // shape.batch)
    step = round(share * steps)
    for source in (in_memory(shape), in_file(shape, tmp_path)):
        whole = batches(windows(source, shape), shape.batch)

        tail = windows(source, shape, step * shape.batch)

        assert whole[step:] == batches(tail, shape.batch, step * shape.batch)
        # and of a file no window is read for nothing; in memory there is but the one
        read = [window for window in tail if window.start + len(window.x) <= step * shape.batch]
        assert not read or isinstance(source, Examples)


@given(shape=SHAPES)
@REPEATED
def test_an_epoch_has_one_order(tmp_path: Path, shape: Shape) -> None:
    source = in_file(shape, tmp_path)

    first, again = (batches(windows(source, shape), shape.batch) for _ in range(2))

    assert first == again
    if shape.seed is None:
        assert list(range(shape.rows)) == [row for rows in first for row in rows]


@given(shape=SHAPES)
@REPEATED
def test_a_window_takes_the_memory_it_may_and_never_less_than_a_batch(tmp_path: Path, shape: Shape) -> None:
    row = 4 * shape.width
    for window in windows(in_file(shape, tmp_path), shape):
        assert window.x.nbytes <= max(shape.window_rows, shape.batch) * row
        # nor much more than there are rows to put into it
        assert window.x.nbytes < (shape.rows + shape.batch) * row


@pytest.mark.parametrize("is_stored", [False, True], ids=["memory", "file"])
def test_another_epoch_and_another_seed_have_another_order(tmp_path: Path, is_stored: bool) -> None:
    shape = Shape(120, 2, 8, 40, 4, SEED, 0, is_weighted=False)
    source: ExampleSource = in_file(shape, tmp_path) if is_stored else in_memory(shape)

    orders = {
        tuple(row for window in source.windows(seed, epoch, 8) for row in window.y[window.order].tolist())
        for seed in (SEED, SEED + 1)
        for epoch in range(3)
    }

    assert 6 == len(orders)


def test_rows_are_mixed_across_the_file_and_within_a_window(tmp_path: Path) -> None:
    shape = Shape(6000, 1, 10, 1000, 10, SEED, 0, is_weighted=False)

    for window in windows(in_file(shape, tmp_path), shape):
        rows = window.y[window.order]
        assert rows.min() < 600 < 5400 < rows.max()
        # neighbours in the file are no neighbours in the order
        assert (np.abs(np.diff(rows)) == 1).mean() < 0.02


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    shape = Shape(100, 3, 8, 32, 5, SEED, 0, is_weighted=False)
    source = in_file(shape, tmp_path)
    whole = source.path.read_bytes()
    source.path.write_bytes(whole[:-1])

    with pytest.raises(EOFError, match="ended early"):
        windows(source, shape)


def test_an_epoch_that_is_left_leaves_no_thread_behind(tmp_path: Path) -> None:
    shape = Shape(100, 3, 8, 16, 5, SEED, 0, is_weighted=False)
    before = threading.active_count()

    epoch = in_file(shape, tmp_path).windows(SEED, 0, 8)
    first = next(epoch)
    assert before + 1 == threading.active_count()
    epoch.close()  # type: ignore[attr-defined]

    assert 0 == first.start
    assert before == threading.active_count()


def test_a_sample_of_rows_in_memory_is_all_of_them() -> None:
    examples = in_memory(Shape(50, 2, 8, 16, 5, SEED, 0, is_weighted=False))

    assert examples is sample(examples, 3)


@pytest.mark.parametrize(("classes", "expected"), [(2, 16), (4, 16), (8, 8), (1000, 1)])
def test_a_sample_of_a_file_fits_a_window_and_so_do_its_logits(tmp_path: Path, classes: int, expected: int) -> None:
    source = in_file(Shape(100, 4, 8, 16, 2, SEED, 0, is_weighted=True), tmp_path)

    found = sample(source, classes)

    assert expected == found.rows == len(np.unique(found.y))
    assert (found.x == found.y[:, None]).all()


N, D, K = 20_000, 10, 5


def sorted_by_class() -> tuple[Examples, Examples]:
    """Rows whose classes overlap, one class after another, as an export often has them; and as many to be judged by."""
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1, (K, D))

    def drawn() -> Examples:
        y = np.sort(rng.integers(0, K, N)).astype(np.int32)
        return Examples((centres[y] + rng.normal(0, 1.5, (N, D))).astype(np.float32), y)

    return drawn(), drawn()


def accuracy(train: ExampleSource, held_out: Examples, seed: int) -> float:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((D,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(K, activation="softmax")]
    )
    # the rate falls to zero, for the last few batches would tell a good order from a bad one by their own noise
    rate = keras.optimizers.schedules.CosineDecay(0.1, 3 * N // 50)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), "categorical_crossentropy", metrics=["accuracy"])
    build_variables(model, D, K)
    heard: dict[str, Any] = {}
    told = keras.callbacks.LambdaCallback(on_epoch_end=lambda _epoch, logs: heard.update(logs))
    run_epochs(model, train, held_out, [told], mode="graph", classes=K, batch=50, epochs=3, seed=seed)
    return float(heard["val_accuracy"])


def test_two_levels_of_shuffling_teach_as_well_as_one(tmp_path: Path) -> None:
    """Rows sorted by class, which in their stored order teach little, in a file of five windows."""
    train, held_out = sorted_by_class()
    (tmp_path / "rows").write_bytes(train.x.tobytes())
    stored = StoredExamples(tmp_path / "rows", D, train.y, train.x.nbytes // 5, block_rows=40)
    assert 5 == sum(1 for _ in stored.windows(0, 0, 50))

    whole, levels = (np.mean([accuracy(source, held_out, seed) for seed in range(3)]) for source in (train, stored))

    assert 0.6 < whole < 0.95
    assert whole - 0.005 < levels
