"""What rooms hold, made small: data sets and jobs without an upload, versions without a training run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np

from app.jobs.messages import Done, VersionDescription
from app.jobs.publish import publish
from app.learning.artifact.artifact import Artifact, GoldenRows, TrainingRecord
from app.learning.artifact.artifact_files import write_artifact
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.inputs import Input
from app.learning.encoding.read_cells import records_cells
from app.learning.network.architecture import Architecture, Dense
from app.learning.network.onnx_network import OnnxRuntime
from app.records.dataset import Dataset, ParsedTable, RawFile
from app.records.job import Job, JobSpec, NewJob
from app.records.rooms import Rooms


def add_dataset(rooms: Rooms, raw: bytes = b"a,y\n1,x\n", table: bytes = b"table") -> Dataset:
    """Add a data set; nobody parses what is in it."""
    with rooms.blobs.staging("test") as folder:
        (folder / "raw").write_bytes(raw)
        (folder / "table").write_bytes(table)
        return rooms.datasets.add(
            None, RawFile.of(folder / "raw", "csv"), ParsedTable(folder / "table", 1, [], [], "y")
        )[0]


def submit(rooms: Rooms, model: str = "m", key: str | None = None, body: str = "body", **changes: Any) -> Job:
    """Submit a job on a data set of its own, or on the one in `changes`."""
    dataset = changes.pop("dataset", None) or add_dataset(rooms)
    spec = cast(JobSpec, {"target": "y", "tags": {}, **changes})
    new = NewJob(model, dataset.id, dataset.table_key, None, spec, ("one warning",))
    return rooms.jobs.submit(new, key, body)


def make_artifact(seed: int = 0, units: int = 4) -> Artifact:
    """Make a network of random weights on one number and one category, with golden rows that it reproduces."""
    encoder = Encoder(
        (
            Input("a", "numeric", "impute", marks_missing=False, low=-5.0, high=5.0),
            Input("b", "categorical", "impute", marks_missing=False, categories=("x", "z")),
        )
    )
    records: list[dict[str, Any]] = [{"a": 1.0, "b": "x"}, {"a": -2.5, "b": "unseen"}, {"a": None, "b": None}]
    return artifact_of(encoder, records, seed, units)


def artifact_of(encoder: Encoder, records: list[dict[str, Any]], seed: int = 0, units: int = 4) -> Artifact:
    """Make a network of random weights behind an encoder; it reproduces its predictions for these records."""
    rng = np.random.default_rng(seed)
    architecture = Architecture(encoder.width, (Dense(units, "relu"), Dense(2, "softmax")))
    shapes = architecture.shapes()
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    columns = {each.name: [record[each.name] for record in records] for each in encoder.inputs}
    x = encoder.encode(records_cells(encoder, columns, len(records)))
    return Artifact(
        architecture=architecture,
        encoder=encoder,
        classes=("no", "yes"),
        weights=weights,
        training=TrainingRecord({"target": "y", "fit": {"label_smoothing": 0.0}}, {}, []),
        golden=GoldenRows(records, OnnxRuntime(architecture, weights).probabilities(x).tolist()),
    )


def train(
    rooms: Rooms,
    model: str = "m",
    artifact: Artifact | None = None,
    *,
    promote: str = "always",
    optimize: str = "log_loss",
    validation: dict[str, float | None] | None = None,
) -> int | None:
    """Publish a version as a worker does, for a job of its own; gives its number, or None where it was refused."""
    job = submit(rooms, model)
    claim = rooms.claims.take(job.id, job.workflow_id)
    assert claim is not None
    done, artifact = make_done(promote, optimize, validation), artifact or make_artifact()
    inputs = [{"name": each.name, "kind": each.kind} for each in artifact.encoder.inputs]
    version = replace(done.version, inputs=inputs, classes=artifact.classes)
    with rooms.blobs.staging("test") as folder:
        (folder / "version").mkdir()
        sha256 = write_artifact(artifact, folder / "version")
        publish(rooms, job, claim, folder / "version", replace(done, sha256=sha256, version=version))
    return rooms.jobs.get(job.id).version


def make_done(
    promote: str = "always", optimize: str = "log_loss", validation: dict[str, float | None] | None = None
) -> Done:
    """Make what a training process sends at its end."""
    version = VersionDescription(
        weights_sha256="",
        inputs=[],
        classes=[],
        spec={"promote": promote, "optimize": optimize},
        metrics={"train": {}, "validation": validation},
        history=[],
        stopped=None,
        parameters=9,
        features=0,
        rows={},
        size_bytes=0,
        environment={},
    )
    return Done("", version, {})
