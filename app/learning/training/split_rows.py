"""Which rows are trained on and which are held out, and the weight of each row in the loss. Knows no tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.errors import Invalid
from app.learning.spec import TrainSpec
from app.learning.tables.label import Label, label_key


def split(y: NDArray[np.int32], spec: TrainSpec) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Divide the labelled rows into training and held-out ones, stratified and seeded.

    Args:
        y: class indices (n,), -1 where the label is missing; such rows are in neither part.

    Returns:
        Two ascending arrays of row indices; each class keeps at least one training row.
    """
    is_train, is_held_out = y >= 0, np.zeros(len(y), np.bool_)
    fraction = spec.validation.fraction if spec.validation is not None else None
    if fraction is not None:
        rng = np.random.default_rng(spec.fit.seed)
        for label in np.unique(y[is_train]):
            members = rng.permutation(np.flatnonzero(y == label))
            held_out = members[: min(round(fraction * len(members)), len(members) - 1)]
            is_train[held_out], is_held_out[held_out] = False, True
    return np.flatnonzero(is_train), np.flatnonzero(is_held_out)


def class_weights(spec: TrainSpec, classes: Sequence[Label], y: NDArray[np.int32]) -> NDArray[np.float32] | None:
    """Return the weight of each row's class, float32 (n,); "balanced" is n / (k * count), as in scikit-learn.

    Raises:
        Invalid: a weight for a label that is no class.
    """
    weights = spec.fit.class_weight
    if weights is None:
        return None
    if weights == "balanced":
        counts = np.bincount(y, minlength=len(classes))
        return (len(y) / (len(classes) * np.maximum(counts, 1))).astype(np.float32)[y]
    index = {label_key(label): i for i, label in enumerate(classes)}
    unknown = [label for label in weights if label_key(label) not in index]
    if unknown:
        raise Invalid.at(("fit", "class_weight"), f"There is no class {unknown[0][:80]!r}.")
    by_class = np.ones(len(classes), np.float32)
    for label, weight in weights.items():
        by_class[index[label_key(label)]] = weight
    return by_class[y]
