"""The export child: a version's folder to another program's file, checked on the version's golden rows."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.learning import artifact
from app.learning.encoding.encoder import Input
from app.learning.encoding.read_cells import records_cells
from app.learning.network import keras_network
from app.learning.network.architecture import Rescaling, run_onnx, to_onnx


def export(source: Path, sha256: str, form: str, out: Path) -> dict[str, object]:
    """Write the file; gives the card's part about what goes in and how exact it is.

    Where every input is one number, the file takes the raw numbers and scales them itself, unless they are so far
    from 1 that float32 gives no answer.

    Args:
        form: "keras", "saved_model", "litert" or "onnx".
    """
    made = artifact.read(source, sha256)
    if all(each.kind != "categorical" and each.width == 1 for each in made.encoder.inputs):
        difference = _write(made, form, out, takes_raw=True)
        if math.isfinite(difference):
            return _card(made, difference, "raw", [each.name for each in made.encoder.inputs])
    return _card(made, _write(made, form, out, takes_raw=False), "encoded", made.encoder.width)


def _write(made: artifact.Artifact, form: str, out: Path, *, takes_raw: bool) -> float:
    """Write the file; gives the largest difference between its golden probabilities and the version's."""
    with np.errstate(over="ignore"):
        rescaling = _rescaling(made.encoder.inputs) if takes_raw else None
        x = _golden_rows(made, takes_raw=takes_raw)
        if form == "onnx":
            out.write_bytes(to_onnx(made.architecture, made.weights, rescaling))
            found = run_onnx(out.read_bytes(), x)
        else:
            keras_network.save(form, made.architecture, made.weights, rescaling, str(out))
            found = keras_network.predict_file(form, str(out), x)
    return float(np.abs(found - np.array(made.golden["probabilities"], np.float32)).max())


def _rescaling(inputs: tuple[Input, ...]) -> Rescaling:
    scale = np.array([1 / each.scale for each in inputs])
    return Rescaling(scale, np.array([-each.mean / each.scale for each in inputs]))


def _golden_rows(made: artifact.Artifact, *, takes_raw: bool) -> NDArray[np.float32]:
    """Give the golden rows as the file takes them, float32 (n, d)."""
    records = made.golden["records"]
    inputs = made.encoder.inputs
    columns = {each.name: [record[each.name] for record in records] for each in inputs}
    cells = records_cells(made.encoder, columns, len(records))
    if not takes_raw:
        return made.encoder.encode(cells)
    filled = [np.where(np.isnan(cells[each.name]), each.impute, cells[each.name]) for each in inputs]
    return np.stack(filled, axis=1).astype(np.float32)


def _card(made: artifact.Artifact, difference: float, takes: str, inputs: list[str] | int) -> dict[str, object]:
    return {
        "takes": takes,
        "inputs": inputs,
        "largest_difference": difference,
        "checked_on_rows": len(made.golden["records"]),
        "environment": keras_network.environment(),
    }


def main() -> None:
    """Be the child, by way of `app.system.child_process`: arguments SOURCE SHA256 FORM OUT."""
    reply = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    reply.write(json.dumps(export(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))))
    reply.close()


if __name__ == "__main__":
    main()
