"""Measures what was fitted, and writes it as a version's files. Knows no job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from app.jobs.messages import Done, Scores, VersionDescription
from app.learning.artifact.artifact import Artifact, GoldenRows, TrainingRecord, weights_sha256
from app.learning.artifact.artifact_files import write_artifact
from app.learning.evaluation.evaluate import evaluate
from app.learning.network.architecture import Architecture
from app.learning.network.keras_backend import environment
from app.learning.network.onnx_network import OnnxRuntime
from app.learning.network.parity import check_parity
from app.learning.spec import TrainSpec, count_parameters
from app.learning.training.examples import ExampleSource, sample
from app.learning.training.fit import Fitted
from app.learning.training.prepare_data import TrainingData

#: the scores of a version
SCORES = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "roc_auc_ovr")


def write_version(
    spec: TrainSpec, data: TrainingData, architecture: Architecture, fitted: Fitted, device: str, folder: Path
) -> Done:
    """Measure what was fitted, and write it into a folder, which is made.

    Args:
        data: that the network was fitted on.
        device: that computed.

    Raises:
        RuntimeError: the served network does not compute what Keras does.
    """
    runtime = OnnxRuntime(architecture, fitted.weights)
    classes = len(data.classes)
    # the two samples are made one after the other, so that only one is in memory
    scores = _scores(runtime, data.train, classes, architecture, fitted, spec)
    validation = None
    if data.validation is not None:
        validation = _scores(runtime, data.validation, classes, architecture, fitted, spec)
    optimizer = spec.optimizer.model_copy(update={"learning_rate": fitted.learning_rate})
    version = Artifact(
        architecture=architecture,
        encoder=data.encoder,
        classes=tuple(data.classes),
        weights=fitted.weights,
        training=TrainingRecord(
            spec.model_copy(update={"optimizer": optimizer}).model_dump(mode="json"),
            {"train": scores, "validation": validation},
            fitted.history,
        ),
        golden=GoldenRows(data.golden_records, runtime.probabilities(data.golden_x).tolist()),
    )
    folder.mkdir()
    sha256 = write_artifact(version, folder)
    description = VersionDescription(
        weights_sha256=weights_sha256(fitted.weights),
        inputs=[_describe_input(state) for state in data.encoder.document()],
        classes=data.classes,
        spec=version.training.spec,
        metrics=version.training.metrics,
        history=fitted.history,
        stopped=fitted.stopped,
        parameters=count_parameters(data.encoder.width, spec, classes),
        features=data.encoder.width,
        rows={"train": data.train.rows, "validation": 0 if data.validation is None else data.validation.rows},
        size_bytes=sum(file.stat().st_size for file in folder.iterdir()),
        environment={**environment(), "device": device, "loop": fitted.loop},
    )
    shown = ("loss", "accuracy")
    metrics = {name: scores[name] for name in shown}
    metrics |= {f"val_{name}": validation[name] if validation else None for name in shown}
    return Done(sha256, description, metrics)


def _scores(
    runtime: OnnxRuntime,
    source: ExampleSource,
    classes: int,
    architecture: Architecture,
    fitted: Fitted,
    spec: TrainSpec,
) -> Scores:
    """Return the scores on a sample of the rows."""
    examples = sample(source, classes)
    check_parity(architecture, fitted.weights, runtime, examples.x)
    evaluated = evaluate(
        runtime.logits(examples.x),
        examples.y,
        label_smoothing=spec.fit.label_smoothing,
        penalty=architecture.penalty(fitted.weights),
    )
    return {name: getattr(evaluated, name) for name in SCORES}


def _describe_input(state: Mapping[str, object]) -> dict[str, object]:
    shown = {name: state[name] for name in ("name", "kind", "missing")}
    if state["kind"] == "categorical":
        return {**shown, "categories": state["categories"]}
    return {**shown, "min": state["low"], "max": state["high"]} if state["kind"] == "numeric" else shown
