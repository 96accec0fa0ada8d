"""The measures that scores are made of: from a confusion matrix, from probabilities, and from confidences.

A measure that is not defined, such as a mean over nothing, is NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.learning.evaluation.scores import CalibrationBin, ClassScores
from app.learning.evaluation.softmax import Classes, Logits, Softmax

#: Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks (2017), section 5
CALIBRATION_BINS = 15


def mean(values: NDArray[Any]) -> float:
    """Compute a mean, NaN over nothing."""
    return float(values.mean()) if values.size else math.nan


def _divide(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide counts (k,); 0.0 where the whole is 0."""
    return part / np.maximum(whole, 1)


def count_confusion(predicted: Classes, y: Classes, k: int) -> NDArray[np.int64]:
    """Count answers, int64 (k, k), a row for each true class."""
    cells = y.astype(np.int64) * k + predicted
    return np.bincount(cells, minlength=k * k).reshape(k, k).astype(np.int64, copy=False)


def _f1(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute 2·hits / (truth + answers) of each class, (k,); 0.0 where a class occurs in neither."""
    return _divide(2 * confusion.diagonal(), confusion.sum(1) + confusion.sum(0))


def class_scores(confusion: NDArray[np.int64]) -> tuple[ClassScores, ...]:
    """Compute precision, recall, F1 and support of each class."""
    hits, support, answers = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    columns = (_divide(hits, answers), _divide(hits, support), _f1(confusion), support)
    return tuple(
        ClassScores(i, float(precision), float(recall), float(f1), int(count))
        for i, (precision, recall, f1, count) in enumerate(zip(*columns, strict=True))
    )


def balanced_accuracy(confusion: NDArray[np.int64]) -> float:
    """Compute the mean recall of the classes that occur in the truth."""
    support = confusion.sum(1)
    return mean(_divide(confusion.diagonal(), support)[support > 0])


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Compute the mean F1 of the classes that occur in the truth or in the answers."""
    return mean(_f1(confusion)[confusion.sum(1) + confusion.sum(0) > 0])


def accuracy(logits: Logits, y: Classes) -> float:
    """Compute the share of rows whose largest logit (the first of equal ones) is the true class."""
    return mean(logits.argmax(1) == y)


def log_loss(logits: Logits, y: Classes) -> float:
    """Compute the cross-entropy, nats per row."""
    softmax = Softmax(logits)
    losses = np.empty(softmax.n)
    for part in softmax.slices():
        losses[part] = -np.take_along_axis(softmax.log_probabilities(part), y[part][:, None], 1)[:, 0]
    return mean(losses)


def roc_auc(softmax: Softmax, y: Classes) -> float:
    """Compute the mean area under the ROC curve, one class against the rest.

    The area is the chance that a row of the class has a higher probability for it than another row, where equal
    counts a half; that is the Mann-Whitney statistic with mean ranks.

    Source: Fawcett, An introduction to ROC analysis (2006), sections 7 and 9.2.
    """
    areas = []
    for index in np.flatnonzero(np.bincount(y, minlength=softmax.k)):
        p, is_of_class = softmax.column(int(index)), y == index
        # sorting both is 10 times faster than searching for unsorted values
        positives, negatives = np.sort(p[is_of_class]), np.sort(p[~is_of_class])
        if not negatives.size:
            continue
        if not np.isfinite(p).all():
            return math.nan
        # negatives below each positive, and negatives not above it: together two for one below, one for a tie
        wins = negatives.searchsorted(positives, "left").sum() + negatives.searchsorted(positives, "right").sum()
        areas.append(float(wins) / (2.0 * positives.size * negatives.size))
    return mean(np.array(areas))


def calibration(
    confidence: NDArray[np.float64], is_right: NDArray[np.bool_]
) -> tuple[tuple[CalibrationBin, ...], float]:
    """Sort rows into `CALIBRATION_BINS` bins by their largest probability (n,).

    Returns:
        The bins, and the expected calibration error.
    """
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    is_finite = np.isfinite(confidence)
    # bins are (lower, upper], as in the source of CALIBRATION_BINS
    bin_of_row = edges[1:-1].searchsorted(confidence[is_finite], "left")
    count = np.bincount(bin_of_row, minlength=CALIBRATION_BINS)
    confident = np.bincount(bin_of_row, confidence[is_finite], CALIBRATION_BINS)
    right = np.bincount(bin_of_row, is_right[is_finite], CALIBRATION_BINS)
    columns = zip(edges[:-1], edges[1:], count, confident, right, strict=True)
    bins = tuple(
        CalibrationBin(float(low), float(high), int(c), float(p / c) if c else None, float(r / c) if c else None)
        for low, high, c, p, r in columns
    )
    ece = float(np.abs(confident - right).sum()) / confidence.size if is_finite.all() and is_finite.size else math.nan
    return bins, ece
