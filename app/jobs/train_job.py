"""One job, from its table files to a version's files. Knows neither the worker, the database nor the store."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from app.errors import Invalid
from app.jobs.messages import Done, TrainRequest
from app.jobs.write_version import write_version
from app.learning.artifact.artifact_files import load_artifact
from app.learning.network import keras_backend
from app.learning.network.architecture import Architecture
from app.learning.training import fit
from app.learning.training.checkpoint import Checkpoint, UnusableCheckpoint, load_checkpoint, write_checkpoint
from app.learning.training.events import CheckpointWritten, DeviceChosen, Emit, LogLine, TrainingWarning
from app.learning.training.prepare_data import prepare_data
from app.learning.training.task import Task


def train(request: TrainRequest, emit: Emit, is_stopping: Callable[[], bool] = lambda: False) -> Done:
    """Carry out one job: write a version's files into the folder `version` of the request's folder.

    Args:
        emit: gets the events of the run.
        is_stopping: whether to write a checkpoint and stop.

    Raises:
        Invalid: the data cannot train, or there is no such device.
        Diverged, OutOfTime, Interrupted: the run did not end well, or not yet.
    """
    spec, start = request.spec, request.start
    device = _device(spec.device, request.gpu)
    emit(DeviceChosen(device))
    start_version = None if start is None else load_artifact(start.folder, start.sha256)
    data = prepare_data(
        (request.table, request.validation_table),
        request.columns,
        spec,
        start_version,
        memory_bytes=request.memory_bytes,
        folder=request.folder,
        emit=emit,
    )
    architecture = Architecture.from_spec(spec, data.encoder.width, len(data.classes))
    task = Task(
        architecture,
        spec,
        data.train,
        data.validation,
        emit,
        start=None if start_version is None else start_version.weights,
        is_rate_auto="optimizer.learning_rate" in request.auto,
        keep=_checkpoint_writer(request, emit),
        is_stopping=is_stopping,
        checkpoint_seconds=request.checkpoint_seconds,
        forget_compiled=lambda: _forget_compiled(request.compiled),
    )
    with keras_backend.on(device):
        fitted = fit.fit(task, _read_checkpoint(request, emit))
    return write_version(spec, data, architecture, fitted, device, request.folder / "version")


def _device(asked: str, gpu: str | None) -> str:
    """Return the device to compute on.

    Args:
        asked: the `device` of the specification.
        gpu: the worker's choice where the choice is left to the service.
    """
    if asked == "cpu":
        return "cpu"
    if not keras_backend.has_gpu():
        if asked == "auto":
            return "cpu"
        backend = keras_backend.environment()["backend"]
        raise Invalid.at(("device",), f"Expected a GPU that {backend} can use for device {asked!r}, got none.")
    return asked if ":" in asked else gpu or "gpu:0"


def _plan(request: TrainRequest) -> str:
    """Return a digest of all that a run's outcome depends on: a checkpoint of another plan is of no use."""
    start = None if request.start is None else {"folder": str(request.start.folder), "sha256": request.start.sha256}
    asked = {
        "spec": request.spec.model_dump(mode="json"),
        "columns": request.columns,
        "start": start,
        "auto": request.auto,
    }
    tables = [path.name for path in (request.table, request.validation_table) if path is not None]
    plan = [asked, tables, keras_backend.environment()]
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _read_checkpoint(request: TrainRequest, emit: Emit) -> Checkpoint | None:
    """Return the checkpoint that a request names, or None where the run begins at its first epoch."""
    if request.checkpoint is None:
        return None
    try:
        checkpoint = load_checkpoint(request.checkpoint)
    except UnusableCheckpoint as error:
        emit(TrainingWarning(f"training begins at its first epoch: {error}"))
        return None
    if checkpoint.plan != _plan(request):
        emit(TrainingWarning("training begins at its first epoch: the checkpoint is of another release"))
        return None
    epoch, step = checkpoint.position.epoch, checkpoint.position.step
    emit(LogLine(f"training goes on from its checkpoint, after epoch {epoch} and {step} more steps"))
    return checkpoint


def _checkpoint_writer(request: TrainRequest, emit: Emit) -> Callable[[Checkpoint], None]:
    """Return a function that writes each checkpoint of a run to a file of its own; a full disk is a warning."""
    plan, count = _plan(request), itertools.count(1)

    def write(checkpoint: Checkpoint) -> None:
        path = request.folder / f"checkpoint-{next(count)}"
        try:
            write_checkpoint(replace(checkpoint, plan=plan), path)
        except OSError as error:
            emit(TrainingWarning(f"a checkpoint could not be written, training goes on: {error}"))
            return
        emit(CheckpointWritten(path, checkpoint.position.epoch))

    return write


def _forget_compiled(folder: Path) -> bool:
    """Empty XLA's cache, and return whether there was anything in it: a file that was cut off is an error each time."""
    files = list(folder.glob("*.pb")) if folder.is_dir() else []
    for file in files:
        file.unlink(missing_ok=True)
    return bool(files)
