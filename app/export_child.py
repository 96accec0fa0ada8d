"""The export child: a version's folder to a `.keras` file, checked on the version's golden rows."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import numpy as np

from app.learning import artifact, fit
from app.learning.encoder import records_cells


def export(source: Path, sha256: str, out: Path) -> dict[str, object]:
    """Write the file; gives the card's part about what goes in and how exact it is.

    Where every input is one number, the file takes the raw numbers and scales them itself, unless they are so far
    from 1 that float32 gives no answer.
    """
    made = artifact.read(source, sha256)
    if all(each.kind != "categorical" and each.width == 1 for each in made.encoder.inputs):
        difference = _write(made, out, takes_raw=True)
        if math.isfinite(difference):
            return _card(made, difference, "raw", [each.name for each in made.encoder.inputs])
    return _card(made, _write(made, out, takes_raw=False), "encoded", made.encoder.width)


def _write(made: artifact.Artifact, out: Path, *, takes_raw: bool) -> float:
    """Write the file; gives the largest difference between its golden probabilities and the version's."""
    inputs = made.encoder.inputs
    scale = np.array([1 / each.scale for each in inputs]) if takes_raw else None
    offset = np.array([-each.mean / each.scale for each in inputs]) if takes_raw else None
    with np.errstate(over="ignore"):
        fit.save_keras(made.architecture, made.weights, offset, scale, str(out))
        records = made.golden["records"]
        columns = {each.name: [record[each.name] for record in records] for each in inputs}
        cells = records_cells(made.encoder, columns, len(records))
        if takes_raw:
            filled = [np.where(np.isnan(cells[each.name]), each.impute, cells[each.name]) for each in inputs]
            x = np.stack(filled, axis=1).astype(np.float32)
        else:
            x = made.encoder.encode(cells)
    found = fit.predict_file(str(out), x)
    return float(np.abs(found - np.array(made.golden["probabilities"], np.float32)).max())


def _card(made: artifact.Artifact, difference: float, takes: str, inputs: list[str] | int) -> dict[str, object]:
    return {
        "takes": takes,
        "inputs": inputs,
        "largest_difference": difference,
        "checked_on_rows": len(made.golden["records"]),
        "environment": fit.environment(),
    }


def main() -> None:
    """Be the child, by way of `app.lifeline`: arguments SOURCE SHA256 OUT."""
    reply = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    reply.write(json.dumps(export(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))))
    reply.close()


if __name__ == "__main__":
    main()
