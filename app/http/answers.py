"""Predictions in the form that the caller accepts: JSON, CSV, NPZ or Arrow. Knows no route."""

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
from app.serving.predictor import Prediction, shown_notes

#: what a spreadsheet would take for the start of a formula (OWASP ASVS 5.0, 1.2.10)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\0")


def to_json(found: Prediction, top_k: int | None) -> bytes:
    """Write an answer as the contract's JSON object; a bad row's entries are null."""
    warnings, total = shown_notes(found.notes)
    document: dict[str, Any] = {
        "model": found.loaded.version.model,
        "version": found.loaded.version.version,
        "classes": found.classes,
        "predictions": found.labels,
    }
    if top_k is None:
        document["probabilities"] = _without_bad(found, found.probabilities)
    else:
        document["top"] = _without_bad(found, _top(found, top_k))
    document |= {"warnings": warnings, "warnings_total": total}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _without_bad(found: Prediction, rows: Sequence[Any] | NDArray[Any]) -> Any:
    if found.is_bad is None:
        return rows
    return [None if bad else row for row, bad in zip(rows, found.is_bad.tolist(), strict=True)]


def _top(found: Prediction, k: int) -> list[list[dict[str, Any]]]:
    return [
        [{"class": found.classes[i], "probability": row[i]} for i in best]
        for best, row in zip(found.best(k).tolist(), found.probabilities, strict=True)
    ]


def to_csv(found: Prediction, top_k: int | None) -> bytes:
    """Write an answer as CSV: a column for each array of `arrays`; a bad row's cells are empty."""
    names, columns = _table(found, top_k)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([_inert(name) for name in names])
    for row, cells in enumerate(zip(*columns, strict=True)):
        is_bad = found.is_bad is not None and found.is_bad[row]
        writer.writerow([""] * len(names) if is_bad else [_inert(cell) for cell in cells])
    return out.getvalue().encode()


def _inert(cell: Any) -> Any:
    """Keep a text from being run as a formula; numbers stay numbers, and booleans are spelled as in JSON."""
    if isinstance(cell, bool):
        return label_key(cell)
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _table(found: Prediction, top_k: int | None) -> tuple[list[str], list[list[Any]]]:
    """Give an answer as named columns of n cells: the prediction, then probabilities, or classes with theirs.

    The probabilities stay float32, so that they are spelled the same in every form.
    """
    if top_k is None:
        names = [f"probability_{label_key(c) if isinstance(c, bool) else c}" for c in found.classes]
        return ["prediction", *names], [found.labels, *map(list, found.probabilities.T)]
    order = found.best(top_k)
    chosen = np.take_along_axis(found.probabilities, order, axis=1)
    names, columns = ["prediction"], [found.labels]
    for rank in range(order.shape[1]):
        names += [f"class_{rank + 1}", f"probability_{rank + 1}"]
        columns += [[found.classes[i] for i in order[:, rank].tolist()], list(chosen[:, rank])]
    return names, columns


def _of_one_type(classes: Sequence[Label]) -> list[Label]:
    """Give classes as one typed column can have them: integers that no type of 64 bits holds together as texts."""
    integers = [label for label in classes if isinstance(label, int)]
    is_wide = min(integers, default=0) < 0 and max(integers, default=0) >= 2**63
    return [str(label) if is_wide else label for label in classes]


def to_npz(found: Prediction, top_k: int | None) -> bytes:
    """Write an answer as NPZ.

    `predictions` (n,) and `classes` (k,) in the labels' own type, `probabilities` float32 (n, k), and `valid` bool (n,);
    with `top_k` `top_classes` and `probabilities` of that many columns. A bad row's probabilities are NaN, and its
    prediction is the first class.
    """
    is_valid = np.ones(len(found.probabilities), np.bool_) if found.is_bad is None else ~found.is_bad
    given = _of_one_type(found.classes)
    # numpy makes floats of the integers that only an unsigned type holds
    classes = np.array(given, np.uint64 if any(isinstance(c, int) and c >= 2**63 for c in given) else None)
    probabilities = np.where(is_valid[:, None], found.probabilities, np.float32("nan"))
    best = np.where(is_valid, found.probabilities.argmax(axis=1), 0)
    made = {"predictions": classes[best], "classes": classes, "valid": is_valid, "probabilities": probabilities}
    if top_k is not None:
        order = found.best(top_k)
        made |= {"probabilities": np.take_along_axis(probabilities, order, axis=1), "top_classes": classes[order]}
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **made)
    return out.getvalue()


def to_columns(found: Prediction, top_k: int | None) -> bytes:
    """Write an answer as JSON columns, from which the ingest child makes Arrow; a bad row's cells are null.

    The classes go with them: they say what a column of labels is, where every row is bad.
    """
    names, columns = _table(found, top_k)
    classes = _of_one_type(found.classes)
    if classes[0] != found.classes[0]:
        spelled = dict(zip(found.classes, classes, strict=True))
        columns = [[spelled.get(cell, cell) for cell in column] for column in columns]
    cells = {name: _without_bad(found, column) for name, column in zip(names, columns, strict=True)}
    return orjson.dumps({"classes": classes, "columns": cells}, option=orjson.OPT_SERIALIZE_NUMPY)


WRITERS: dict[str, Callable[[Prediction, int | None], bytes]] = {
    JSON: to_json,
    CSV: to_csv,
    NPZ: to_npz,
    ARROW_STREAM: to_columns,
}
