"""The export process's own side: a version's folder to another program's file, checked on the version's golden rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.learning.artifact.artifact import Artifact
from app.learning.artifact.artifact_files import load_artifact
from app.learning.encoding.inputs import Input
from app.learning.encoding.read_cells import records_cells
from app.learning.network.architecture import Rescaling
from app.learning.network.keras_backend import environment
from app.learning.network.keras_export import run_keras_file, write_keras_file
from app.learning.network.onnx_network import run_onnx, to_onnx
from app.serving.export_messages import CARDS, REQUESTS, ExportCard, ExportRequest, FileFormat
from app.system.json_lines import ParentProcess


def export(request: ExportRequest) -> ExportCard:
    """Write the file, and return what it takes and how exact it is.

    Where every input is one number, the file takes the raw numbers and scales them itself, unless they are so far
    from 1 that float32 gives no answer.
    """
    version = load_artifact(request.source, request.sha256)
    inputs = version.encoder.inputs
    if all(column.kind != "categorical" and column.width == 1 for column in inputs):
        difference = _write(version, request.form, request.out, takes_raw=True)
        if math.isfinite(difference):
            return _card(version, difference, "raw", [column.name for column in inputs])
    difference = _write(version, request.form, request.out, takes_raw=False)
    return _card(version, difference, "encoded", version.encoder.width)


def _write(version: Artifact, form: FileFormat, out: Path, *, takes_raw: bool) -> float:
    """Write the file, and return the largest difference between its golden probabilities and the version's."""
    with np.errstate(over="ignore"):
        rescaling = _rescaling(version.encoder.inputs) if takes_raw else None
        x = _golden_rows(version, takes_raw=takes_raw)
        if form == "onnx":
            out.write_bytes(to_onnx(version.architecture, version.weights, rescaling))
            probabilities = run_onnx(out.read_bytes(), x)
        else:
            write_keras_file(form, version.architecture, version.weights, rescaling, str(out))
            probabilities = run_keras_file(form, str(out), x)
    return version.golden.difference(probabilities)


def _rescaling(inputs: tuple[Input, ...]) -> Rescaling:
    scale = np.array([1 / column.scale for column in inputs])
    return Rescaling(scale, np.array([-column.mean / column.scale for column in inputs]))


def _golden_rows(version: Artifact, *, takes_raw: bool) -> NDArray[np.float32]:
    """Return the golden rows as the file takes them, float32 (n, d)."""
    inputs = version.encoder.inputs
    cells = records_cells(version.encoder, version.golden.columns, len(version.golden.records))
    if not takes_raw:
        return version.encoder.encode(cells)
    filled = [np.where(np.isnan(cells[column.name]), column.impute, cells[column.name]) for column in inputs]
    return np.stack(filled, axis=1).astype(np.float32)


def _card(
    version: Artifact, difference: float, takes: Literal["raw", "encoded"], inputs: list[str] | int
) -> ExportCard:
    return ExportCard(takes, inputs, difference, len(version.golden.records), environment())


def main() -> None:
    """Be the export process, by way of `app.system.child_process`."""
    service = ParentProcess[ExportRequest, ExportCard](REQUESTS, CARDS)
    request = service.read()
    if request is not None:
        service.send(export(request))


if __name__ == "__main__":
    main()
