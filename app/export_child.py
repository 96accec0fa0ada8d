"""The export child: a version's folder to a `.keras` file, checked on the version's golden rows."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from app.learning import artifact, fit
from app.learning.encoder import records_cells


def export(source: Path, sha256: str, out: Path) -> dict[str, object]:
    """Write the file; gives the card's part about what goes in and how exact it is.

    Where every input is one number, the file takes the raw numbers and scales them itself.
    """
    made = artifact.read(source, sha256)
    inputs = made.encoder.inputs
    takes_raw = all(each.kind != "categorical" and each.width == 1 for each in inputs)
    scale = np.array([1 / each.scale for each in inputs]) if takes_raw else None
    offset = np.array([-each.mean / each.scale for each in inputs]) if takes_raw else None
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
    difference = float(np.abs(found - np.array(made.golden["probabilities"], np.float32)).max())
    return {
        "takes": "raw" if takes_raw else "encoded",
        "inputs": [each.name for each in inputs] if takes_raw else made.encoder.width,
        "largest_difference": difference,
        "checked_on_rows": len(records),
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
