"""The training child: one job from table files to a version's files. Knows neither the database nor the store.

It imports Keras, says `ready`, reads one request as a line of JSON, writes events as lines of JSON, and exits.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from app.errors import FitserveError, Invalid, StorageFull, is_disk_full
from app.learning import artifact, fit, metrics
from app.learning.encoder import Encoder, fit_encoder, table_cells
from app.learning.network import Architecture, OnnxRuntime
from app.learning.spec import TrainSpec, count_parameters
from app.learning.table import Column, Label, Table, label_key, load, match_labels

GOLDEN_ROWS = 8
PARITY_ROWS = 1000
#: what `OnnxRuntime` and Keras may differ by
PARITY = 1e-5
NICENESS = 10
Emit = Callable[[dict[str, Any]], None]


def train(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Carry out one job.

    Args:
        request: `spec` (resolved), `columns`, `table`, `validation_table` or None, `folder` (empty), `job`, and
            `start`, the `folder` and `sha256` of a version to start from, or None.
        emit: gets `warning`, `progress` and `epoch` events.

    Returns:
        `sha256` of the version written into `folder`, its `document`, and the job's last `metrics`.

    Raises:
        Invalid: the data cannot train.
        fit.Diverged, fit.OutOfTime: the run did not end well.
    """
    spec = TrainSpec.model_validate(request["spec"])
    device = _device(spec.device)
    emit({"type": "device", "device": device})
    table = load(Path(request["table"]))
    start = _start(request)
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
    x = encoder.encode(table_cells(encoder, table))
    train_set = fit.Examples(x[rows], y[rows])
    validation = fit.Examples(x[held_out], y[held_out]) if len(held_out) else None
    golden_table, golden_rows = table, held_out if len(held_out) else rows
    if request["validation_table"] is not None:
        validation = _other(Path(request["validation_table"]), encoder, str(spec.target), classes)
    architecture = Architecture.from_spec(spec, encoder.width, len(classes))
    weighting = class_weights(spec, classes, train_set.y)
    with fit.on(device):
        weights = None if start is None else start.weights
        fitted = fit.fit(architecture, spec, train_set, validation, weighting, emit, weights)
    runtime = OnnxRuntime(architecture, fitted.weights)
    _check_parity(architecture, fitted, runtime, train_set.x[:PARITY_ROWS])
    ours = _figures(runtime, train_set, architecture, fitted.weights, spec)
    theirs = None if validation is None else _figures(runtime, validation, architecture, fitted.weights, spec)
    figures = {"train": ours, "validation": theirs}
    made = artifact.Artifact(
        architecture=architecture,
        encoder=encoder,
        classes=tuple(classes),
        weights=fitted.weights,
        training={"spec": spec.model_dump(mode="json"), "metrics": figures, "history": fitted.history},
        golden=_golden(golden_table, golden_rows, encoder, runtime),
    )
    folder = Path(request["folder"])
    sha256 = artifact.write(made, folder)
    document = {
        **_document(made, fitted),
        "rows": {"train": len(train_set.x), "validation": 0 if validation is None else len(validation.x)},
        "size_bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "environment": {**fit.environment(), "device": device},
    }
    shown = {"loss": ours["loss"], "accuracy": ours["accuracy"]}
    shown |= {f"val_{name}": theirs[name] if theirs else None for name in ("loss", "accuracy")}
    return {"sha256": sha256, "document": document, "metrics": shown}


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


def class_weights(spec: TrainSpec, classes: list[Label], y: NDArray[np.int32]) -> dict[int, float] | None:
    """Give each class index its weight; "balanced" is n / (k * count), as in scikit-learn.

    Raises:
        Invalid: a weight for a label that is no class.
    """
    asked = spec.fit.class_weight
    if asked is None:
        return None
    if asked == "balanced":
        counts = np.bincount(y, minlength=len(classes))
        return {i: len(y) / (len(classes) * int(count)) if count else 1.0 for i, count in enumerate(counts)}
    index = {label_key(label): i for i, label in enumerate(classes)}
    unknown = [label for label in asked if label_key(label) not in index]
    if unknown:
        raise Invalid.at(("fit", "class_weight"), f"There is no class {unknown[0][:80]!r}.")
    return dict.fromkeys(range(len(classes)), 1.0) | {
        index[label_key(label)]: weight for label, weight in asked.items()
    }


def _other(path: Path, encoder: Encoder, target: str, classes: list[Label]) -> fit.Examples:
    table = load(path)
    if target not in table.names:
        raise Invalid.at(("validation", "dataset"), f"The validation data set has no target column {target!r}.")
    y, strange = match_labels(table.column(target), classes)
    if strange:
        names = ", ".join(repr(label)[:40] for label in strange[:5])
        raise Invalid.at(("validation", "dataset"), f"Expected labels that the training data has, got {names}.")
    if not (y >= 0).any():
        raise Invalid.at(("validation", "dataset"), "The validation data set has no labelled row.")
    x = encoder.encode(table_cells(encoder, table))
    return fit.Examples(x[y >= 0], y[y >= 0])


def _device(asked: str) -> str:
    if asked == "cpu":
        return "cpu"
    if asked == "auto":
        return "gpu:0" if fit.has_gpu() else "cpu"
    if not fit.has_gpu():
        raise Invalid.at(("device",), f"Expected a GPU for device {asked!r}, and this machine has none.")
    return asked if ":" in asked else f"{asked}:0"


def _check_parity(architecture: Architecture, fitted: fit.Fitted, runtime: OnnxRuntime, x: NDArray[np.float32]) -> None:
    reference = fit.KerasRuntime(architecture, fitted.weights, "cpu").probabilities(x)
    difference = float(np.abs(reference - runtime.probabilities(x)).max())
    if not difference <= PARITY:
        raise RuntimeError(f"the served network differs from Keras by {difference:g}, more than {PARITY:g}")


def _figures(
    runtime: OnnxRuntime, examples: fit.Examples, architecture: Architecture, weights: Any, spec: TrainSpec
) -> dict[str, Any]:
    smoothing = spec.fit.label_smoothing
    found = metrics.evaluate(
        runtime.logits(examples.x), examples.y, label_smoothing=smoothing, penalty=architecture.penalty(weights)
    )
    names = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "roc_auc_ovr")
    return {name: getattr(found, name) for name in names}


def _golden(table: Table, rows: NDArray[np.intp], encoder: Encoder, runtime: OnnxRuntime) -> dict[str, Any]:
    chosen = rows[:GOLDEN_ROWS]
    last = int(chosen.max()) + 1
    columns = {each.name: table.column(each.name).cells(last) for each in encoder.inputs}
    records = [{name: cells[row] for name, cells in columns.items()} for row in chosen.tolist()]
    x = encoder.encode({name: cells[chosen] for name, cells in table_cells(encoder, table).items()})
    return {"records": records, "probabilities": runtime.probabilities(x).tolist()}


def _input(state: dict[str, Any]) -> dict[str, Any]:
    shown = {"name": state["name"], "kind": state["kind"], "missing": state["missing"]}
    if state["kind"] == "categorical":
        return {**shown, "categories": list(state["categories"])}
    return {**shown, "min": state["low"], "max": state["high"]} if state["kind"] == "numeric" else shown


def main() -> None:
    """Be the child, by way of `app.lifeline`."""
    os.nice(NICENESS)
    # whatever a library prints must not end up among the events
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    emit({"type": "ready"})
    line = sys.stdin.readline()
    if not line:
        return
    request = json.loads(line)
    try:
        emit({"type": "done", **train(request, emit)})
    except fit.Diverged as error:
        emit({"type": "failed", "code": "loss_not_finite", "message": str(error)})
    except fit.OutOfTime as error:
        emit({"type": "failed", "code": "timeout", "message": str(error)})
    except FitserveError as error:
        param = ".".join(str(part) for part in error.faults[0].loc) if error.faults else None
        emit({"type": "failed", "code": "invalid_data", "message": error.message, "param": param})
    except Exception as error:
        if fit.is_out_of_memory(error):
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
