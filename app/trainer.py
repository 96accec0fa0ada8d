"""The training child: one job from table files to a version's files. Knows neither the database nor the store.

It imports Keras, says `ready`, reads one request as a line of JSON, writes events as lines of JSON, and exits. At
SIGTERM it writes a checkpoint and says `interrupted`.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
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
from app.learning import artifact, checkpoint, fit, keras_network, metrics
from app.learning.batches import Examples, Source, sample
from app.learning.encoder import Encoder, fit_encoder, table_cells
from app.learning.examples import Part, encode_parts
from app.learning.network import Architecture, OnnxRuntime
from app.learning.spec import TrainSpec, count_parameters
from app.learning.table import Column, Label, TableFile, label_key, match_labels

GOLDEN_ROWS = 8
PARITY_ROWS = 1000
#: what `OnnxRuntime` and Keras may differ by
PARITY = 1e-5
NICENESS = 10
Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Prepared:
    """A request's data, ready to be fitted: class labels, how rows are encoded, and the encoded rows."""

    classes: list[Label]
    encoder: Encoder
    train: Source
    validation: Source | None
    #: some rows of the table as they were posted, and encoded: what a version is checked on when it is loaded
    golden: tuple[list[dict[str, Any]], NDArray[np.float32]]


def train(request: dict[str, Any], emit: Emit, is_stopping: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Carry out one job.

    Args:
        request: `spec` (resolved) and `auto`, the names of its values that were chosen for the caller; `columns`,
            `table`, `validation_table` or None, `folder` (empty), `memory_bytes`, `checkpoint_seconds`,
            `compiled`, the folder of XLA's cache, `gpu`, the worker's choice of one or None, `checkpoint`, the file of one or None, and `start`, the `folder` and `sha256` of a version to start
            from, or None.
        emit: gets `device`, `loop`, `warning`, `progress`, `epoch`, `settled` and `checkpoint` events.
        is_stopping: whether to write a checkpoint and stop.

    Returns:
        `sha256` of the version written into the folder's `version`, its `document`, and the job's last `metrics`.

    Raises:
        Invalid: the data cannot train.
        fit.Diverged, fit.OutOfTime, fit.Interrupted: the run did not end well, or not yet.
    """
    spec = TrainSpec.model_validate(request["spec"])
    folder = Path(request["folder"])
    device = _device(spec.device, request["gpu"])
    emit({"type": "device", "device": device})
    start = _start(request)
    data = prepare(request, spec, start, folder, emit)
    architecture = Architecture.from_spec(spec, data.encoder.width, len(data.classes))
    task = fit.Task(
        architecture,
        spec,
        data.train,
        data.validation,
        emit,
        start=None if start is None else start.weights,
        is_rate_auto="optimizer.learning_rate" in request["auto"],
        keep=_Keeper(folder, _plan(request), emit).keep,
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
    train_set, validation = (
        None if each is None else sample(each, len(data.classes)) for each in (data.train, data.validation)
    )
    assert train_set is not None
    _check_parity(architecture, fitted, runtime, train_set.x[:PARITY_ROWS])
    ours = _figures(runtime, train_set, architecture, fitted.weights, spec)
    theirs = None if validation is None else _figures(runtime, validation, architecture, fitted.weights, spec)
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


def prepare(
    request: dict[str, Any], spec: TrainSpec, start: artifact.Artifact | None, folder: Path, emit: Emit
) -> Prepared:
    """Read and encode what a request is to be trained and validated on.

    Raises:
        Invalid: the data cannot train.
    """
    table = TableFile(Path(request["table"]))
    classes, y = _labels(table.column(str(spec.target)), start)
    rows, held_out = split(y, spec)
    if spec.validation is not None and spec.validation.fraction is not None and not len(held_out):
        emit({"type": "warning", "message": "no class has enough rows to hold one out; nothing is validated"})
    if start is None:
        scaling, encoding = str(spec.features.scaling), str(spec.features.encoding)
        encoder = fit_encoder(table, request["columns"], rows, scaling=scaling, encoding=encoding)
    else:
        encoder = start.encoder
    if not encoder.width:
        raise Invalid.at(("features",), "Expected a value in at least one feature of the training rows, got none.")
    parts = [Part(rows, y[rows], class_weights(spec, classes, y[rows])), Part(held_out, y[held_out])]
    memory_bytes = int(request["memory_bytes"])
    train, validation = encode_parts(table, encoder, parts, memory_bytes=memory_bytes, folder=folder)
    golden = _golden(table, (held_out if len(held_out) else rows)[:GOLDEN_ROWS], encoder)
    other: Source | None = validation if len(held_out) else None
    if request["validation_table"] is not None:
        strangers = folder / "validation"
        strangers.mkdir()
        path = Path(request["validation_table"])
        other = _other(path, encoder, str(spec.target), classes, memory_bytes=memory_bytes, folder=strangers)
    return Prepared(classes, encoder, train, other, golden)


def _plan(request: dict[str, Any]) -> str:
    """Give a digest of all that a run's outcome depends on: a checkpoint of another plan is of no use."""
    names = ("spec", "columns", "start", "auto")
    tables = [Path(request[name]).name for name in ("table", "validation_table") if request[name] is not None]
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


class _Keeper:
    """Writes a run's state as files, one after another, and tells of each."""

    def __init__(self, folder: Path, plan: str, emit: Emit) -> None:
        self._folder, self._plan, self._emit = folder, plan, emit
        self._count = 0

    def keep(self, state: checkpoint.State) -> None:
        """Write a state and tell of it; where the disk is full, warn, for the run can do without."""
        self._count += 1
        path = self._folder / f"checkpoint-{self._count}"
        try:
            checkpoint.write(checkpoint.State({**state.facts, "plan": self._plan}, state.arrays), path)
        except OSError as error:
            self._emit({"type": "warning", "message": f"a checkpoint could not be written, training goes on: {error}"})
            return
        self._emit({"type": "checkpoint", "file": str(path), "epoch": state.facts["epoch"]})


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


def _labels(target: Column, start: artifact.Artifact | None) -> tuple[list[Label], NDArray[np.int32]]:
    """Give the classes and y; those of the version that is started from, where one is."""
    if start is None:
        return target.labels()
    y, strange = match_labels(target, start.classes)
    if strange:
        raise Invalid.at(("target",), f"Expected labels that the version to start from knows, got {strange[:5]}.")
    return list(start.classes), y


def split(y: NDArray[np.int32], spec: TrainSpec) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Divide the labelled rows into training and held-out ones, stratified and seeded.

    Args:
        y: class indices (n,), -1 where the label is missing; those rows are in neither part.

    Returns:
        Two ascending arrays of row indices; each class keeps at least one training row.
    """
    labelled = np.flatnonzero(y >= 0)
    fraction = spec.validation.fraction if spec.validation is not None else None
    if fraction is None:
        return labelled, labelled[:0]
    rng = np.random.default_rng(spec.fit.seed)
    held = []
    for label in np.unique(y[labelled]):
        members = rng.permutation(np.flatnonzero(y == label))
        held.append(members[: min(round(fraction * len(members)), len(members) - 1)])
    held_out = np.sort(np.concatenate(held))
    return np.setdiff1d(labelled, held_out), held_out


def class_weights(spec: TrainSpec, classes: list[Label], y: NDArray[np.int32]) -> NDArray[np.float32] | None:
    """Give each row its class's weight, float32 (n,); "balanced" is n / (k * count), as in scikit-learn.

    Raises:
        Invalid: a weight for a label that is no class.
    """
    asked = spec.fit.class_weight
    if asked is None:
        return None
    if asked == "balanced":
        counts = np.bincount(y, minlength=len(classes))
        return (len(y) / (len(classes) * np.maximum(counts, 1))).astype(np.float32)[y]
    index = {label_key(label): i for i, label in enumerate(classes)}
    unknown = [label for label in asked if label_key(label) not in index]
    if unknown:
        raise Invalid.at(("fit", "class_weight"), f"There is no class {unknown[0][:80]!r}.")
    weights = np.ones(len(classes), np.float32)
    for label, weight in asked.items():
        weights[index[label_key(label)]] = weight
    return weights[y]


def _other(
    path: Path, encoder: Encoder, target: str, classes: list[Label], *, memory_bytes: int, folder: Path
) -> Source:
    table = TableFile(path)
    if target not in table.names:
        raise Invalid.at(("validation", "dataset"), f"The validation data set has no target column {target!r}.")
    y, strange = match_labels(table.column(target), classes)
    if strange:
        names = ", ".join(repr(label)[:40] for label in strange[:5])
        raise Invalid.at(("validation", "dataset"), f"Expected labels that the training data has, got {names}.")
    rows = np.flatnonzero(y >= 0)
    if not len(rows):
        raise Invalid.at(("validation", "dataset"), "The validation data set has no labelled row.")
    (made,) = encode_parts(table, encoder, [Part(rows, y[rows])], memory_bytes=memory_bytes, folder=folder)
    return made


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
    runtime: OnnxRuntime, examples: Examples, architecture: Architecture, weights: Any, spec: TrainSpec
) -> dict[str, Any]:
    smoothing = spec.fit.label_smoothing
    found = metrics.evaluate(
        runtime.logits(examples.x), examples.y, label_smoothing=smoothing, penalty=architecture.penalty(weights)
    )
    names = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "roc_auc_ovr")
    return {name: getattr(found, name) for name in names}


def _golden(
    table: TableFile, rows: NDArray[np.intp], encoder: Encoder
) -> tuple[list[dict[str, Any]], NDArray[np.float32]]:
    few = table.take(rows, [each.name for each in encoder.inputs])
    columns = {each.name: few.column(each.name).cells(few.rows) for each in encoder.inputs}
    records = [{name: cells[row] for name, cells in columns.items()} for row in range(few.rows)]
    return records, encoder.encode(table_cells(encoder, few))


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
    fitted = fit.fit(fit.Task(architecture, spec, examples, examples, emit=lambda _event: None))
    _check_parity(architecture, fitted, OnnxRuntime(architecture, fitted.weights), examples.x)


def main() -> None:
    """Be the child, by way of `app.lifeline`."""
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
    except fit.Interrupted:
        emit({"type": "interrupted"})
    except fit.Diverged as error:
        emit({"type": "failed", "code": "loss_not_finite", "message": str(error)})
    except fit.OutOfTime as error:
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
