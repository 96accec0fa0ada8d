"""Runs that are interrupted and taken up again, that diverge, and that are out of time: one outcome, whatever happens."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import tensorflow as tf

from app.learning.artifact.artifact import weights_sha256
from app.learning.network.architecture import Architecture, Dense
from app.learning.spec import TrainSpec
from app.learning.training import fit
from app.learning.training.checkpoint import Checkpoint, Position, load_checkpoint, write_checkpoint
from app.learning.training.events import (
    Epoch,
    Event,
    LearningRateSettled,
    LoopChosen,
    LoopMode,
    Progress,
    TrainingWarning,
)
from app.learning.training.examples import Examples, ExampleSource
from app.learning.training.stored_examples import StoredExamples
from app.learning.training.task import Diverged, Interrupted, OutOfTime, Task
from tests.service import ROOT

D, K = 5, 3
Where = tuple[int, int]
E = TypeVar("E", bound=Event)


def blobs(n: int, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, K, n).astype(np.int32)
    return Examples((rng.normal(0, 1, (n, D)) + np.eye(K, D)[y]).astype(np.float32), y)


#: twelve full batches and a smaller one
TRAIN, HELD_OUT = blobs(200), blobs(64, seed=1)
WEIGHTED = replace(TRAIN, weight=np.array([1, 3, 0.5], np.float32)[TRAIN.y])


def resolved(epochs: int, **changes: Any) -> TrainSpec:
    document: dict[str, Any] = {
        "network": {"layers": [{"units": 8, "dropout": 0.2}]},
        "optimizer": {"learning_rate": 0.3, "momentum": 0.9, "schedule": "cosine", "warmup": 0.02},
        "fit": {"epochs": epochs, "batch_size": 16, "early_stopping": {"patience": 3}, "seed": 7, "max_seconds": 1000},
    }
    for name, value in changes.items():
        document[name] = document[name] | value if isinstance(document.get(name), dict) else value
    return TrainSpec.model_validate(document)


#: by its number of steps a run is one of XLA's; early stopping ends each long before
SPECS: dict[LoopMode, TrainSpec] = {"graph": resolved(40), "xla": resolved(200)}


class Run:
    """A run, and what it told; to be interrupted in an epoch after so many chunks, or later where that has fewer."""

    def __init__(
        self,
        spec: TrainSpec,
        train: ExampleSource = TRAIN,
        validation: ExampleSource | None = HELD_OUT,
        architecture: Architecture | None = None,
        **more: Any,
    ) -> None:
        self.events: list[Event] = []
        self.states: list[Checkpoint] = []
        self._stop: Where | None = None
        self._epoch = self._chunks = 0
        self._task = Task(
            architecture or Architecture.from_spec(spec, D, K),
            spec,
            train,
            validation,
            self._hear,
            keep=self.states.append,
            is_stopping=self._is_stopping,
            **more,
        )

    def fitted(self, saved: Checkpoint | None = None) -> fit.Fitted:
        return fit.fit(self._task, saved)

    def interrupted(self, stop: Where, folder: Path, saved: Checkpoint | None = None) -> Checkpoint:
        """Run until then; gives the state as it comes back from a file."""
        self._stop, self._epoch, self._chunks = stop, 0 if saved is None else saved.position.epoch, 0
        with pytest.raises(Interrupted):
            self.fitted(saved)
        self._stop = None
        write_checkpoint(self.states[-1], folder / "checkpoint")
        return load_checkpoint(folder / "checkpoint")

    def told(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Epoch):
            self._epoch, self._chunks = event.epoch, 0

    def _is_stopping(self) -> bool:
        self._chunks += 1
        return self._stop is not None and (self._epoch, self._chunks) >= self._stop


def outcome(found: fit.Fitted) -> tuple[str, str | None, list[dict[str, Any]]]:
    """The weights' digest, why the run ended, and its history but for how long that took."""
    clock = ("elapsed_seconds", "rows_per_second")
    history = [{name: v for name, v in entry.items() if name not in clock} for entry in found.history]
    return weights_sha256(found.weights), found.stopped, history


@pytest.fixture(scope="module")
def left_alone() -> dict[LoopMode, tuple[str, str | None, list[dict[str, Any]]]]:
    outcomes = {mode: Run(spec).fitted() for mode, spec in SPECS.items()}
    assert list(outcomes) == [found.loop for found in outcomes.values()]
    return {mode: outcome(found) for mode, found in outcomes.items()}


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_run_that_is_interrupted_again_and_again_ends_as_if_left_alone(
    left_alone: dict[LoopMode, tuple[str, str | None, list[dict[str, Any]]]], mode: LoopMode, tmp_path: Path
) -> None:
    """After the first step, within an epoch, at the last step of one, and in the one after which early stopping ends it."""
    expected = left_alone[mode]
    last = len(expected[2]) - 1
    assert "early_stopping" == expected[1]
    run, saved = Run(SPECS[mode]), None
    reached: list[Where] = []

    for stop in [(0, 1), (0, 2), (1, 9), (last - 1, 3), (last, 1)]:
        saved = run.interrupted(stop, tmp_path, saved)
        reached.append((saved.position.epoch, saved.position.step))

    assert expected == outcome(run.fitted(saved))
    # by each part its own epochs, none twice
    assert list(range(1, last + 2)) == [event.epoch for event in run.told(Epoch)]
    assert sorted(set(reached)) == reached
    assert (0, 1) == reached[0]
    assert last == reached[-1][0]


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_run_that_is_interrupted_at_an_epochs_last_step_ends_as_if_left_alone(
    left_alone: dict[LoopMode, tuple[str, str | None, list[dict[str, Any]]]], mode: LoopMode, tmp_path: Path
) -> None:
    run = Run(SPECS[mode])
    last = len(left_alone[mode][2]) - 1
    # a later epoch has one chunk, and under XLA another one: its smaller batch
    saved = run.interrupted((last, 2 if mode == "xla" else 1), tmp_path)

    assert (last, 13) == (saved.position.epoch, saved.position.step)
    assert left_alone[mode] == outcome(run.fitted(saved))


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_run_on_a_file_with_weights_ends_as_if_left_alone(mode: LoopMode, tmp_path: Path) -> None:
    """The file is read in windows of four batches."""
    (tmp_path / "rows").write_bytes(WEIGHTED.x.tobytes())
    stored = StoredExamples(tmp_path / "rows", D, WEIGHTED.y, 64 * D * 4, WEIGHTED.weight, block_rows=3)
    expected = outcome(Run(SPECS[mode], stored).fitted())
    run, saved = Run(SPECS[mode], stored), None

    for stop in [(0, 2), (2, 3)]:
        saved = run.interrupted(stop, tmp_path, saved)
        assert 0 < saved.position.step < 13

    assert expected == outcome(run.fitted(saved))


def test_a_run_with_weights_in_memory_ends_as_if_left_alone(tmp_path: Path) -> None:
    """Without a score that Keras computes, so that early stopping's best one is ours."""
    spec = resolved(12, optimize="roc_auc", fit={"early_stopping": {"patience": 12}})
    expected = outcome(Run(spec, WEIGHTED).fitted())
    run = Run(spec, WEIGHTED)

    saved = run.interrupted((7, 1), tmp_path)

    assert expected == outcome(run.fitted(saved))


def test_a_run_without_a_seed_for_its_order_and_without_validation_ends_as_if_left_alone(tmp_path: Path) -> None:
    spec = resolved(3, fit={"shuffle": False})
    expected = outcome(Run(spec, validation=None).fitted())
    run = Run(spec, validation=None)

    saved = run.interrupted((1, 1), tmp_path)

    assert expected == outcome(run.fitted(saved))


def test_a_run_whose_last_epoch_is_done_only_ends(tmp_path: Path) -> None:
    spec = resolved(2)
    run = Run(spec)
    saved = run.interrupted((1, 1), tmp_path)
    expected = outcome(run.fitted(saved))

    # as it is interrupted again, before the end of the epoch was told
    saved = run.interrupted((1, 1), tmp_path)

    assert Position(1, 13) == saved.position
    assert expected == outcome(run.fitted(saved))


def test_ten_of_ten_runs_give_the_same_bits_in_two_processes(
    left_alone: dict[LoopMode, tuple[str, str | None, list[dict[str, Any]]]],
) -> None:
    """Five in each mode: the one that was left alone, two more, and two in another process."""
    code = """
import json
from tests.learning.training.test_resume import SPECS, Run, outcome
print(json.dumps({mode: [outcome(Run(spec).fitted())[0] for _ in range(2)] for mode, spec in SPECS.items()}))
"""
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True)

    found = {mode: {outcome(Run(spec).fitted())[0] for _ in range(2)} for mode, spec in SPECS.items()}
    answer, _ = other.communicate(timeout=120)

    for mode, digests in json.loads(answer.splitlines()[-1]).items():
        assert {left_alone[mode][0]} == {*found[mode], *digests}


LINEAR: dict[str, Any] = {"layers": [{"units": 8, "activation": "linear"}] * 3}
#: its loss is NaN at this rate, and falls at a tenth of it
STEEP: dict[str, Any] = {
    "network": LINEAR,
    "optimizer": {"learning_rate": 3.0, "momentum": 0.0, "schedule": "constant", "warmup": 0.0},
}


def test_a_run_that_diverges_at_a_rate_of_ours_starts_again_once_at_a_tenth() -> None:
    run = Run(resolved(3, **STEEP), is_rate_auto=True)

    found = run.fitted()

    (warning,), (settled,) = run.told(TrainingWarning), run.told(LearningRateSettled)
    assert "diverged in epoch 1; training starts again at a tenth of the learning rate" in warning.message
    assert 0.3 == round(settled.learning_rate, 9)
    assert settled.learning_rate == found.learning_rate
    assert [1, 2, 3] == [entry["epoch"] for entry in found.history]
    calm = Run(resolved(3, **(STEEP | {"optimizer": STEEP["optimizer"] | {"learning_rate": found.learning_rate}})))
    assert outcome(calm.fitted()) == outcome(found)


def test_a_run_that_was_interrupted_after_it_started_again_goes_on_at_that_rate(tmp_path: Path) -> None:
    spec = resolved(3, **STEEP)
    expected = outcome(Run(spec, is_rate_auto=True).fitted())
    run = Run(spec, is_rate_auto=True)

    saved = run.interrupted((1, 1), tmp_path)
    found = run.fitted(saved)

    assert expected == outcome(found)
    assert 0.3 == pytest.approx(found.learning_rate)
    assert 1 == len(run.told(LearningRateSettled))


@pytest.mark.parametrize(("is_rate_auto", "rate", "told"), [(False, 3.0, 0), (True, 1e6, 1)])
def test_a_run_that_diverges_at_the_callers_rate_or_twice_has_failed(
    is_rate_auto: bool, rate: float, told: int
) -> None:
    spec = resolved(3, **(STEEP | {"optimizer": STEEP["optimizer"] | {"learning_rate": rate}}))
    run = Run(spec, is_rate_auto=is_rate_auto)

    with pytest.raises(Diverged, match="in epoch 1") as caught:
        run.fitted()

    assert 1 == caught.value.epoch
    assert told == len(run.told(LearningRateSettled)) == len(run.told(TrainingWarning))


def test_a_loss_that_explodes_is_caught_while_it_is_finite() -> None:
    calm: dict[str, Any] = {"momentum": 0.0, "schedule": "constant", "warmup": 0.0, "learning_rate": 1e5}
    run = Run(resolved(3, network={"layers": []}, optimizer=calm))

    with pytest.raises(Diverged) as caught:
        run.fitted()

    assert 1 == caught.value.epoch
    assert not run.told(Epoch)


def test_the_time_before_a_run_was_taken_up_again_counts(tmp_path: Path) -> None:
    run = Run(resolved(40))
    saved = run.interrupted((1, 1), tmp_path)
    late = replace(saved, elapsed_seconds=1001.0)

    found = run.fitted(late)

    assert "max_seconds" == found.stopped
    # it ends with the epoch in which its first chunk of steps is, where a whole epoch may have been the last chunk before
    assert saved.position.epoch + 1 + (saved.position.step == 13) == len(found.history)
    assert 1001 < float(found.history[-1]["elapsed_seconds"] or 0) < 1100


def test_what_is_left_is_estimated_at_the_pace_of_the_run_that_goes_on(tmp_path: Path) -> None:
    run = Run(resolved(40))
    saved = run.interrupted((1, 1), tmp_path)
    late = replace(saved, elapsed_seconds=500.0)
    run.events.clear()

    run.fitted(late)

    told = run.told(Progress)
    assert told[-1].eta_seconds < 500


def test_the_time_before_a_run_started_again_counts(tmp_path: Path) -> None:
    """At its last chance it diverges, and has no time for another."""
    run = Run(resolved(3, **STEEP), is_rate_auto=True)
    saved = run.interrupted((0, 1), tmp_path)
    lost = {"model/0": np.full_like(saved.arrays["model/0"], np.nan)}
    late = replace(saved, elapsed_seconds=1001.0, arrays={**saved.arrays, **lost})

    with pytest.raises(OutOfTime):
        run.fitted(late)

    assert 1 == len(run.told(LearningRateSettled))


def test_what_xla_cannot_compile_is_computed_in_a_graph() -> None:
    """The steps of a network with an activation that runs in Python."""

    def doubled(x: Any) -> Any:
        return tf.ensure_shape(tf.py_function(lambda each: each * 2, [x], tf.float32), x.shape)

    spec = resolved(200, optimizer={"schedule": "constant"}, fit={"early_stopping": {"patience": 1}})
    # Keras takes a function wherever it takes a name
    parts = (Dense(4, doubled), Dense(K, "softmax"))  # type: ignore[arg-type]
    run = Run(spec, architecture=Architecture(D, parts))

    found = run.fitted()

    assert "graph" == found.loop
    assert ["xla", "graph"] == [event.loop for event in run.told(LoopChosen)]
    (warning,) = run.told(TrainingWarning)
    assert "could not be compiled in mode xla, and are computed in mode graph" in warning.message
    assert found.history
    assert math.isfinite(float(found.history[-1]["loss"] or math.nan))
