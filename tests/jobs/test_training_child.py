"""The training process: as a real process, and what it refuses."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.errors import Invalid
from app.jobs import train_job
from app.jobs.messages import MESSAGES, REQUESTS, Done, Failed, Ready, TrainingMessage, TrainRequest
from app.jobs.worker_settings import WorkerSettings
from app.learning.artifact.artifact import weights_sha256
from app.learning.artifact.artifact_files import load_artifact
from app.learning.encoding.read_cells import records_cells, table_cells
from app.learning.evaluation.evaluate import evaluate
from app.learning.network.onnx_network import OnnxRuntime
from app.learning.spec import TrainSpec
from app.learning.tables.column import match_labels
from app.learning.tables.describe_column import describe
from app.learning.tables.incoming_table import TableLimits
from app.learning.tables.read_raw_file import read_raw_file
from app.learning.tables.table import Table
from app.learning.tables.table_file import load_table, write_table
from app.learning.training.events import Epoch, Event, TrainingWarning
from app.learning.training.resolve_spec import Limits, resolve
from app.learning.training.split_rows import split
from app.system.child_process import command
from tests.service import ROOT

# sets the number of threads that a training process has, in this process too
importlib.import_module("app.jobs.training_child")

LIMITS = Limits(classes=10, features=100, parameters=1_000_000, seconds=600)


def table(rows: int = 120, seed: int = 0) -> dict[str, list[Any]]:
    """A table of mixed columns; every tenth label is missing."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, rows)
    return {
        "size": [None if i % 11 == 3 else float(k + rng.normal(0, 0.3)) for i, k in enumerate(kind)],
        "place": [None if i % 13 == 5 else f"p{(k + rng.integers(0, 2)) % 3}" for i, k in enumerate(kind)],
        "is_big": [bool(k == 2) for k in kind],
        "rank": [None if i % 10 == 9 else int(10 * k) for i, k in enumerate(kind)],
    }


def save(folder: Path, columns: dict[str, list[Any]], name: str = "table") -> Table:
    (folder / "raw").write_text(json.dumps({"columns": columns}))
    made = read_raw_file(folder / "raw", "json", TableLimits(1000, 50), {})
    write_table(folder / name, made)
    return made


def prepare(folder: Path, spec: dict[str, Any], columns: dict[str, list[Any]] | None = None) -> TrainRequest:
    """Make a job's request, as the worker does."""
    made = save(folder, columns or table())
    asked = TrainSpec.model_validate({"fit": {"epochs": 8}, **spec})
    resolved = resolve(asked, [describe(c) for c in made.columns], made.rows, made.default_target, LIMITS)
    return TrainRequest(
        "job_1",
        resolved.spec,
        resolved.auto,
        resolved.columns,
        table=folder / "table",
        validation_table=None,
        folder=folder,
        memory_bytes=2**30,
        checkpoint_seconds=5.0,
        compiled=folder / "compiled",
    )


def train(request: TrainRequest, events: list[Event] | None = None) -> Done:
    """Carry out a job in this process."""
    return train_job.train(request, ([] if events is None else events).append)


def converse(
    request: TrainRequest | None, environment: dict[str, str] | None = None
) -> tuple[int, list[TrainingMessage]]:
    """Start a training process, send it a request or the end of requests; return its exit code and its messages."""
    process = subprocess.Popen(
        command("app.jobs.training_child"),
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        out, _ = process.communicate(b"" if request is None else REQUESTS.encode(request), timeout=120)
    finally:
        process.kill()
    return process.wait(10), [MESSAGES.decode(line) for line in out.splitlines()]


def ended(messages: list[TrainingMessage]) -> Done:
    """Return the last message, of a job that went well."""
    assert isinstance(messages[-1], Done), messages[-1]
    return messages[-1]


def test_a_process_trains_one_job_and_writes_a_version_that_serves(tmp_path: Path) -> None:
    request = prepare(tmp_path, {"fit": {"epochs": 8, "class_weight": "balanced", "seed": 5}})

    code, messages = converse(request)

    assert (0, ["ready", "device", "loop"], "done") == (code, [m.type for m in messages[:3]], messages[-1].type)
    assert list(range(1, 9)) == [message.epoch for message in messages if isinstance(message, Epoch)]
    done = ended(messages)
    made = load_artifact(tmp_path / "version", done.sha256)
    assert ((0, 10, 20), [0, 10, 20]) == (made.classes, done.version.classes)
    assert weights_sha256(made.weights) == done.version.weights_sha256
    assert {"train": 86, "validation": 22} == done.version.rows
    assert made.encoder.width == done.version.features
    assert ["size", "place", "is_big"] == [each["name"] for each in done.version.inputs]
    assert request.spec.model_dump(mode="json") == done.version.spec == made.training.spec

    # the golden rows, posted, get their own bits again; and the scores are those of the held-out rows
    runtime = OnnxRuntime(made.architecture, made.weights)
    x = made.encoder.encode(records_cells(made.encoder, made.golden.columns, len(made.golden.records)))
    assert made.golden.probabilities == runtime.probabilities(x).tolist()
    rows = load_table(tmp_path / "table")
    y, _ = match_labels(rows.column("rank"), made.classes)
    _, held_out = split(y, request.spec)
    logits = runtime.logits(made.encoder.encode(table_cells(made.encoder, rows))[held_out])
    found = evaluate(logits, y[held_out])
    assert (found.loss, found.accuracy) == (done.metrics["val_loss"], done.metrics["val_accuracy"])

    # another process, this one, trains to the same bits
    (tmp_path / "again").mkdir()
    again = train(replace(request, folder=tmp_path / "again"))
    assert done.version.weights_sha256 == again.version.weights_sha256


def test_a_process_whose_job_diverges_says_so(tmp_path: Path) -> None:
    layers = [{"units": 8, "activation": "linear"}] * 3
    optimizer = {"learning_rate": 1e30}

    code, messages = converse(prepare(tmp_path, {"network": {"layers": layers}, "optimizer": optimizer}))

    message = "The loss was not a finite number in epoch 1; try a smaller learning rate."
    assert (0, Failed("loss_not_finite", message)) == (code, messages[-1])
    assert not (tmp_path / "version").exists()


def test_a_damaged_cache_of_xla_is_made_anew_and_a_whole_one_is_used(tmp_path: Path) -> None:
    settings = WorkerSettings(slots=1, memory_bytes=2**30, checkpoint_seconds=5, cache=tmp_path / "cache")
    spec = {"fit": {"epochs": 400, "early_stopping": None}}
    request = replace(prepare(tmp_path, spec), compiled=settings.compiled)
    done = []
    for damage in (0, 100):
        (tmp_path / f"{damage}").mkdir()
        for file in settings.compiled.glob("*"):
            os.truncate(file, damage)
        _, messages = converse(replace(request, folder=tmp_path / f"{damage}"), settings.environment())
        assert [] == [message for message in messages if isinstance(message, TrainingWarning)]
        version = ended(messages).version
        assert "xla" == version.environment["loop"]
        done.append(version.weights_sha256)

    assert done[0] == done[1]
    assert all(file.stat().st_size > 100 for file in settings.compiled.glob("*"))
    assert list(settings.compiled.glob("*"))


def test_a_process_without_a_request_ends(tmp_path: Path) -> None:
    assert (0, [Ready()]) == converse(None)


@pytest.mark.parametrize(
    ("change", "loc", "message"),
    [
        ({"fit": {"class_weight": {"7": 1.0}}}, ("fit", "class_weight"), "There is no class '7'"),
        ({"device": "gpu:9"}, ("device",), "Expected a GPU that tensorflow can use for device 'gpu:9', got none"),
    ],
)
def test_what_the_data_or_the_machine_refuses_is_refused_at_its_place(
    tmp_path: Path, change: dict[str, Any], loc: tuple[str, ...], message: str
) -> None:
    with pytest.raises(Invalid, match=message) as caught:
        train(prepare(tmp_path, change))

    assert loc == caught.value.faults[0].loc


def test_features_without_a_value_in_the_training_rows_are_refused(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"a": [None] * 9 + ["x"], "y": [1, 2] * 4 + [1, None]}
    request = prepare(tmp_path, {"features": {"encoding": "plain"}}, columns)

    with pytest.raises(Invalid, match="Expected a value in at least one feature of the training rows"):
        train(request)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": [0, 10, 55]}, "Expected labels that the training data has, got 55"),
        ({"rank": [None] * 3}, "no labelled row"),
        ({"size": ["big", "small", "1"]}, "Expected a finite number in column 'size', got a text in row 0"),
    ],
)
def test_a_validation_data_set_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, list[Any]], message: str
) -> None:
    request = prepare(tmp_path, {"validation": {"dataset": "ds_1"}})
    save(tmp_path, {name: cells[:3] for name, cells in table().items()} | change, "other")

    with pytest.raises(Invalid, match=message):
        train(replace(request, validation_table=tmp_path / "other"))


def test_another_data_set_validates(tmp_path: Path) -> None:
    request = prepare(tmp_path, {"validation": {"dataset": "ds_1"}, "fit": {"epochs": 2}})
    save(tmp_path, table(40, seed=1), "other")

    done = train(replace(request, validation_table=tmp_path / "other"))

    assert {"train": 108, "validation": 36} == done.version.rows


def test_a_table_with_one_row_for_each_class_trains(tmp_path: Path) -> None:
    events: list[Event] = []

    done = train(prepare(tmp_path, {}, {"a": [1, 2, 3], "y": ["x", "y", "z"]}), events)

    assert ["no class has enough rows to hold one out; nothing is validated"] == [
        event.message for event in events if isinstance(event, TrainingWarning)
    ]
    assert {"train": 3, "validation": 0} == done.version.rows
    assert done.metrics["val_loss"] is None
