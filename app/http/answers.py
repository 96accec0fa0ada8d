"""Bodies of native responses in the format that the caller accepts: JSON, CSV, NPZ or Arrow. Knows no route."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from app.http.media_types import ARROW_STREAM, CSV, JSON, NPZ
from app.learning.tables.label import Label, label_key
from app.serving.predictor import Prediction, first_warnings

#: first characters of a cell that a spreadsheet takes for a formula (OWASP ASVS 5.0, 1.2.10)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\0")


def to_json(prediction: Prediction, top_k: int | None) -> bytes:
    """Write the native JSON object; a bad row's entries are null."""
    warnings, total = first_warnings(prediction.warnings)
    version = prediction.loaded.version
    document: dict[str, object] = {
        "model": version.model,
        "version": version.version,
        "classes": prediction.classes,
        "predictions": prediction.labels,
    }
    if top_k is None:
        document["probabilities"] = _without_bad(prediction, prediction.probabilities)
    else:
        document["top"] = _without_bad(prediction, _top(prediction, top_k))
    document |= {"warnings": warnings, "warnings_total": total}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _without_bad(prediction: Prediction, rows: Sequence[Any] | NDArray[Any]) -> Sequence[Any] | NDArray[Any]:
    if prediction.is_bad is None:
        return rows
    return [None if bad else row for row, bad in zip(rows, prediction.is_bad.tolist(), strict=True)]


def _top(prediction: Prediction, k: int) -> list[list[dict[str, object]]]:
    return [
        [{"class": prediction.classes[i], "probability": row[i]} for i in best]
        for best, row in zip(prediction.best(k).tolist(), prediction.probabilities, strict=True)
    ]


def to_csv(prediction: Prediction, top_k: int | None) -> bytes:
    """Write CSV with the columns of `_table`; a bad row's cells are empty."""
    names, columns = _table(prediction, top_k)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([_inert(name) for name in names])
    for row, cells in enumerate(zip(*columns, strict=True)):
        is_bad = prediction.is_bad is not None and prediction.is_bad[row]
        writer.writerow([""] * len(names) if is_bad else [_inert(cell) for cell in cells])
    return out.getvalue().encode()


def _inert(cell: Any) -> Any:
    """Return a cell that no spreadsheet runs as a formula; numbers stay numbers, and booleans are spelled as in JSON."""
    if isinstance(cell, bool):
        return label_key(cell)
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _table(prediction: Prediction, top_k: int | None) -> tuple[list[str], list[list[Any]]]:
    """Return named columns of n cells: the prediction, then the probabilities, or the best classes with theirs.

    The probabilities stay float32, so that every format spells them alike.
    """
    if top_k is None:
        names = [f"probability_{label_key(c) if isinstance(c, bool) else c}" for c in prediction.classes]
        return ["prediction", *names], [prediction.labels, *map(list, prediction.probabilities.T)]
    order = prediction.best(top_k)
    chosen = np.take_along_axis(prediction.probabilities, order, axis=1)
    names, columns = ["prediction"], [prediction.labels]
    for rank in range(order.shape[1]):
        names += [f"class_{rank + 1}", f"probability_{rank + 1}"]
        columns += [[prediction.classes[i] for i in order[:, rank].tolist()], list(chosen[:, rank])]
    return names, columns


def _of_one_type(classes: Sequence[Label]) -> list[Label]:
    """Return classes that fit one typed column: integers that no type of 64 bits holds together become texts."""
    integers = [label for label in classes if isinstance(label, int)]
    is_wide = min(integers, default=0) < 0 and max(integers, default=0) >= 2**63
    return [str(label) if is_wide else label for label in classes]


def to_npz(prediction: Prediction, top_k: int | None) -> bytes:
    """Write NPZ.

    `predictions` (n,) and `classes` (k,) in the labels' own type, `probabilities` float32 (n, k), and `valid` bool (n,);
    with `top_k` `top_classes` and `probabilities` of that many columns. A bad row's probabilities are NaN, and its
    prediction is the first class.
    """
    probabilities, is_bad = prediction.probabilities, prediction.is_bad
    is_valid = np.ones(len(probabilities), np.bool_) if is_bad is None else ~is_bad
    labels = _of_one_type(prediction.classes)
    # numpy makes floats of the integers that only an unsigned type holds
    classes = np.array(labels, np.uint64 if any(isinstance(c, int) and c >= 2**63 for c in labels) else None)
    probabilities = np.where(is_valid[:, None], probabilities, np.float32("nan"))
    best = np.where(is_valid, prediction.probabilities.argmax(axis=1), 0)
    arrays = {"predictions": classes[best], "classes": classes, "valid": is_valid, "probabilities": probabilities}
    if top_k is not None:
        order = prediction.best(top_k)
        arrays |= {"probabilities": np.take_along_axis(probabilities, order, axis=1), "top_classes": classes[order]}
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **arrays)
    return out.getvalue()


def to_columns(prediction: Prediction, top_k: int | None) -> bytes:
    """Write JSON columns, from which the parser process makes Arrow; a bad row's cells are null.

    The classes are written, too: they say what a column of labels is where every row is bad.
    """
    names, columns = _table(prediction, top_k)
    classes = _of_one_type(prediction.classes)
    if classes[0] != prediction.classes[0]:
        spelled = dict(zip(prediction.classes, classes, strict=True))
        columns = [[spelled.get(cell, cell) for cell in column] for column in columns]
    cells = {name: _without_bad(prediction, column) for name, column in zip(names, columns, strict=True)}
    return orjson.dumps({"classes": classes, "columns": cells}, option=orjson.OPT_SERIALIZE_NUMPY)


#: by the media type of the response
WRITERS: dict[str, Callable[[Prediction, int | None], bytes]] = {
    JSON: to_json,
    CSV: to_csv,
    NPZ: to_npz,
    ARROW_STREAM: to_columns,
}
