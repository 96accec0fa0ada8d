"""The training child: one job from table files to a version's files. Knows neither the database nor the store.

It imports Keras, says `ready`, reads one request as a line of JSON, writes events as lines of JSON, and exits. At
SIGTERM it writes a checkpoint and says `interrupted`.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# one job for one core: more threads gain nothing at these sizes, and other bits would come of them
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
# those of PyTorch, and of JAX
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")

import numpy as np
from numpy.typing import NDArray

from app.errors import FitserveError, Invalid, StorageFull, is_disk_full
from app.learning import artifact, evaluation
from app.learning.network import keras_network
from app.learning.network.architecture import Architecture, OnnxRuntime
from app.learning.spec import TrainSpec, count_parameters
from app.learning.training import checkpoint, fit
from app.learning.training.batches import Examples, sample
from app.learning.training.prepare import Prepared, prepare
from app.learning.training.task import Diverged, Emit, Interrupted, OutOfTime, Task

PARITY_ROWS = 1000
#: what `OnnxRuntime` and Keras may differ by
PARITY = 1e-5
NICENESS = 10


def train(request: dict[str, Any], emit: Emit, is_stopping: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Carry out one job.

    Args:
        request: `spec` (resolved) and `auto`, the names of its values that were chosen for the caller; `columns`,
            `table`, `validation_table` or None, `folder` (empty), `memory_bytes`, `checkpoint_seconds`,
            `compiled`, the folder of XLA's cache, `gpu`, the worker's choice of one or None, `checkpoint`, the file of
            one or None, and `start`, the `folder` and `sha256` of a version to start from, or None.
        emit: gets `device`, `loop`, `warning`, `progress`, `epoch`, `settled` and `checkpoint` events.
        is_stopping: whether to write a checkpoint and stop.

    Returns:
        `sha256` of the version written into the folder's `version`, its `document`, and the job's last `metrics`.

    Raises:
        Invalid: the data cannot train.
        Diverged, OutOfTime, Interrupted: the run did not end well, or not yet.
    """
    spec = TrainSpec.model_validate(request["spec"])
    folder = Path(request["folder"])
    device = _device(spec.device, request["gpu"])
    emit({"type": "device", "device": device})
    start = _start(request)
    data = prepare(
        _tables(request),
        request["columns"],
        spec,
        start,
        memory_bytes=int(request["memory_bytes"]),
        folder=folder,
        emit=emit,
    )
    architecture = Architecture.from_spec(spec, data.encoder.width, len(data.classes))
    task = Task(
        architecture,
        spec,
        data.train,
        data.validation,
        emit,
        start=None if start is None else start.weights,
        is_rate_auto="optimizer.learning_rate" in request["auto"],
        keep=_keep_in(folder, _plan(request), emit),
        is_stopping=is_stopping,
        checkpoint_seconds=float(request["checkpoint_seconds"]),
        forget_compiled=lambda: _forget_compiled(Path(request["compiled"])),
    )
    with keras_network.on(device):
        fitted = fit.fit(task, _saved(request, emit))
    return _write(spec, data, architecture, fitted, device, folder / "version")


def _write(
    spec: TrainSpec, data: Prepared, architecture: Architecture, fitted: fit.Fitted, device: str, folder: Path
) -> dict[str, Any]:
    """Measure what was fitted, and write it as a version's files; gives what `train` does."""
    runtime = OnnxRuntime(architecture, fitted.weights)
    ours, theirs = (
        # of two samples one at a time is in memory
        None if each is None else _figures(runtime, sample(each, len(data.classes)), architecture, fitted, spec)
        for each in (data.train, data.validation)
    )
    assert ours is not None
    optimizer = spec.optimizer.model_copy(update={"learning_rate": fitted.learning_rate})
    records, x = data.golden
    made = artifact.Artifact(
        architecture=architecture,
        encoder=data.encoder,
        classes=tuple(data.classes),
        weights=fitted.weights,
        training={
            "spec": spec.model_copy(update={"optimizer": optimizer}).model_dump(mode="json"),
            "metrics": {"train": ours, "validation": theirs},
            "history": fitted.history,
        },
        golden={"records": records, "probabilities": runtime.probabilities(x).tolist()},
    )
    folder.mkdir()
    sha256 = artifact.write(made, folder)
    document = {
        **_document(made, fitted),
        "rows": {"train": data.train.rows, "validation": 0 if data.validation is None else data.validation.rows},
        "size_bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "environment": {**keras_network.environment(), "device": device, "loop": fitted.loop},
    }
    shown = {"loss": ours["loss"], "accuracy": ours["accuracy"]}
    shown |= {f"val_{name}": theirs[name] if theirs else None for name in ("loss", "accuracy")}
    return {"sha256": sha256, "document": document, "metrics": shown}


def _tables(request: dict[str, Any]) -> tuple[Path, Path | None]:
    validation = request["validation_table"]
    return Path(request["table"]), None if validation is None else Path(validation)


def _plan(request: dict[str, Any]) -> str:
    """Give a digest of all that a run's outcome depends on: a checkpoint of another plan is of no use."""
    names = ("spec", "columns", "start", "auto")
    tables = [path.name for path in _tables(request) if path is not None]
    plan = [{name: request[name] for name in names}, tables, keras_network.environment()]
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _saved(request: dict[str, Any], emit: Emit) -> checkpoint.State | None:
    """Read the checkpoint that a request names, where it is of use."""
    if request["checkpoint"] is None:
        return None
    try:
        state = checkpoint.read(Path(request["checkpoint"]))
    except checkpoint.Unusable as error:
        emit({"type": "warning", "message": f"training begins at its first epoch: {error}"})
        return None
    if state.facts["plan"] != _plan(request):
        emit({"type": "warning", "message": "training begins at its first epoch: the checkpoint is of another release"})
        return None
    epoch, step = state.facts["epoch"], state.facts["step"]
    emit({"type": "log", "message": f"training goes on from its checkpoint, after epoch {epoch} and {step} more steps"})
    return state


def _forget_compiled(folder: Path) -> bool:
    """Empty XLA's cache, where a file that was cut off is an error each time; tells whether there was anything in it."""
    files = list(folder.glob("*.pb")) if folder.is_dir() else []
    for file in files:
        file.unlink(missing_ok=True)
    return bool(files)


def _keep_in(folder: Path, plan: str, emit: Emit) -> Callable[[checkpoint.State], None]:
    """Give what writes a run's states as files, one after another, and tells of each; a full disk is a warning."""
    count = itertools.count(1)

    def keep(state: checkpoint.State) -> None:
        path = folder / f"checkpoint-{next(count)}"
        try:
            checkpoint.write(checkpoint.State({**state.facts, "plan": plan}, state.arrays), path)
        except OSError as error:
            emit({"type": "warning", "message": f"a checkpoint could not be written, training goes on: {error}"})
            return
        emit({"type": "checkpoint", "file": str(path), "epoch": state.facts["epoch"]})

    return keep


def _document(made: artifact.Artifact, fitted: fit.Fitted) -> dict[str, Any]:
    """Say what a version is to those who ask for it, by what is in the version itself."""
    spec = made.training["spec"]
    return {
        "weights_sha256": artifact.weights_sha256(made.weights),
        "inputs": [_input(each) for each in made.encoder.document()],
        "classes": list(made.classes),
        "spec": spec,
        "metrics": made.training["metrics"],
        "history": fitted.history,
        "stopped": fitted.stopped,
        "parameters": count_parameters(made.encoder.width, TrainSpec.model_validate(spec), len(made.classes)),
        "features": made.encoder.width,
    }


def _start(request: dict[str, Any]) -> artifact.Artifact | None:
    start = request.get("start")
    return None if start is None else artifact.read(Path(start["folder"]), start["sha256"])


def _device(asked: str, gpu: str | None) -> str:
    """Give the device to compute on; `gpu` is the worker's choice where it is left to the service."""
    if asked == "cpu":
        return "cpu"
    if not keras_network.has_gpu():
        if asked == "auto":
            return "cpu"
        backend = keras_network.environment()["backend"]
        raise Invalid.at(("device",), f"Expected a GPU that {backend} can use for device {asked!r}, got none.")
    return asked if ":" in asked else gpu or "gpu:0"


def _check_parity(architecture: Architecture, fitted: fit.Fitted, runtime: OnnxRuntime, x: NDArray[np.float32]) -> None:
    reference = keras_network.KerasRuntime(architecture, fitted.weights, "cpu").probabilities(x)
    difference = float(np.abs(reference - runtime.probabilities(x)).max())
    if not difference <= PARITY:
        raise RuntimeError(f"the served network differs from Keras by {difference:g}, more than {PARITY:g}")


def _figures(
    runtime: OnnxRuntime, examples: Examples, architecture: Architecture, fitted: fit.Fitted, spec: TrainSpec
) -> dict[str, Any]:
    _check_parity(architecture, fitted, runtime, examples.x[:PARITY_ROWS])
    smoothing = spec.fit.label_smoothing
    found = evaluation.evaluate(
        runtime.logits(examples.x), examples.y, label_smoothing=smoothing, penalty=architecture.penalty(fitted.weights)
    )
    names = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "roc_auc_ovr")
    return {name: getattr(found, name) for name in names}


def _input(state: dict[str, Any]) -> dict[str, Any]:
    shown = {"name": state["name"], "kind": state["kind"], "missing": state["missing"]}
    if state["kind"] == "categorical":
        return {**shown, "categories": list(state["categories"])}
    return {**shown, "min": state["low"], "max": state["high"]} if state["kind"] == "numeric" else shown


def _rehearse() -> None:
    """Fit a small network, so that the first job finds everything imported and set up: half a second of its time."""
    spec = TrainSpec.model_validate(
        {
            "network": {"layers": [{"units": 1}]},
            "optimizer": {"learning_rate": 0.1, "momentum": 0.9, "schedule": "cosine", "warmup": 0.1},
            "fit": {"epochs": 2, "batch_size": 2, "early_stopping": {}},
        }
    )
    examples = Examples(np.zeros((3, 1), np.float32), np.array([0, 1, 0], np.int32))
    architecture = Architecture.from_spec(spec, 1, 2)
    fitted = fit.fit(Task(architecture, spec, examples, examples, emit=lambda _event: None))
    _check_parity(architecture, fitted, OnnxRuntime(architecture, fitted.weights), examples.x)


def main() -> None:
    """Be the child, by way of `app.system.child_process`."""
    os.nice(NICENESS)
    # whatever a library prints must not end up among the events
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stops.append(number))
    emit({"type": "ready"})
    # who has a job already is not kept waiting
    if not select.select([sys.stdin], [], [], 0)[0]:
        _rehearse()
        # what is there now stays to the end, and each search of it for garbage takes 0.1 s of the job's time
        gc.collect()
        gc.freeze()
    line = sys.stdin.readline()
    if not line:
        return
    request = json.loads(line)
    try:
        emit({"type": "done", **train(request, emit, lambda: bool(stops))})
    except Interrupted:
        emit({"type": "interrupted"})
    except Diverged as error:
        emit({"type": "failed", "code": "loss_not_finite", "message": str(error)})
    except OutOfTime as error:
        emit({"type": "failed", "code": "timeout", "message": str(error)})
    except FitserveError as error:
        param = ".".join(str(part) for part in error.faults[0].loc) if error.faults else None
        emit({"type": "failed", "code": "invalid_data", "message": error.message, "param": param})
    except Exception as error:
        if keras_network.is_out_of_memory(error):
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            message = f"The job ran out of memory, of the machine or of its device; it had {used} MB of the machine's."
            emit({"type": "failed", "code": "out_of_memory", "message": message})
        elif is_disk_full(error):
            message = "The store's disk is full; nothing was stored."
            emit({"type": "failed", "code": StorageFull.code, "message": message})
        else:
            raise


if __name__ == "__main__":
    main()
