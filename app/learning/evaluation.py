"""How good a classifier's answers are, from its logits and the true classes. Knows numpy and nothing else of the app.

Everything is computed in float64 from logits, so a very confident wrong answer has a large loss and not an infinite
one. A number that does not exist (no rows, a class that never occurs, logits that are not finite) is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32] | NDArray[np.float64]
Classes = NDArray[np.integer[Any]]

#: Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks (2017), section 5
CALIBRATION_BINS = 15
#: the default of keras.metrics.TopKCategoricalAccuracy
TOP_K = 5
#: where there are not more classes than TOP_K, which would make the accuracy 1 by definition
TOP_K_OF_FEW = 2
#: float64 cells of logits that are worked on at once
_SLICE_CELLS = 2**20


@dataclass(frozen=True)
class ClassScores:
    """One class against the rest; 0.0 where a ratio is 0/0.

    Args:
        index: the class, in [0, k).
        support: rows whose true class it is.
    """

    index: int
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class CalibrationBin:
    """The rows whose largest probability is in (lower, upper]; the means are None where there are none."""

    lower: float
    upper: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Evaluation:
    """A classifier's scores on n rows of k classes.

    Args:
        loss: what `keras.Model.evaluate` gives: cross-entropy with label smoothing plus penalties, nats per row.
        accuracy: share of rows whose largest logit (the first of equals) is the true class.
        top_k: the k of `top_k_accuracy`: `TOP_K` where there are more classes than that, else `TOP_K_OF_FEW`.
        top_k_accuracy: share of rows with fewer than top_k logits above that of the true class.
        balanced_accuracy: mean recall of the classes that occur in the truth.
        macro_f1: mean F1 of the classes that occur in the truth or in the answers.
        log_loss: cross-entropy, nats per row; no smoothing, no penalties.
        brier: squared error of the probabilities, summed over classes; in [0, 2].
        roc_auc_ovr: mean area under the curve of each class against the rest, over the classes that have both.
        ece: expected calibration error, the mean gap between confidence and accuracy over the bins; in [0, 1].
        per_class: k entries in the order of the classes.
        confusion_matrix: int64 (k, k), a row for each true class, a column for each answer.
        bins: `CALIBRATION_BINS` of equal width.
    """

    rows: int
    loss: float | None
    accuracy: float | None
    top_k: int
    top_k_accuracy: float | None
    balanced_accuracy: float | None
    macro_f1: float | None
    log_loss: float | None
    brier: float | None
    roc_auc_ovr: float | None
    ece: float | None
    per_class: tuple[ClassScores, ...]
    confusion_matrix: NDArray[np.int64]
    bins: tuple[CalibrationBin, ...]

    def document(self, classes: Sequence[Any]) -> dict[str, Any]:
        """Give the scores as strict JSON, with the k labels `classes` in place of class indices."""
        per_class = [
            {"class": label, "precision": c.precision, "recall": c.recall, "f1": c.f1, "support": c.support}
            for label, c in zip(classes, self.per_class, strict=True)
        ]
        return {
            "rows": self.rows,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "top_k": self.top_k,
            "top_k_accuracy": self.top_k_accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "log_loss": self.log_loss,
            "brier": self.brier,
            "roc_auc_ovr": self.roc_auc_ovr,
            "ece": self.ece,
            "per_class": per_class,
            "confusion_matrix": {"classes": list(classes), "counts": self.confusion_matrix.tolist()},
            "calibration": {"bins": [asdict(entry) for entry in self.bins]},
        }


@np.errstate(invalid="ignore", over="ignore")
def evaluate(logits: Logits, y: Classes, *, label_smoothing: float = 0.0, penalty: float = 0.0) -> Evaluation:
    """Compute every score of a classifier; O(n k log n) time, O(n + k²) memory beside the logits.

    Args:
        logits: the softmax's inputs, float32 or float64 (n, k).
        y: true classes, integers (n,) in [0, k).
        label_smoothing: share of each row's target that is spread over all classes, in [0, 1]; only in `loss`.
        penalty: the sum of the network's regularisation penalties, nats; only in `loss`.

    Raises:
        ValueError: the shapes do not fit, or a class is outside [0, k).
    """
    _check(logits, y)
    n, k = logits.shape
    softmax = _Softmax(logits)
    cross_entropy, smooth, brier = np.empty(n), np.empty(n), np.empty(n)
    confidence, in_top_k = np.empty(n), np.empty(n, np.bool_)
    top_k = TOP_K if k > TOP_K else min(TOP_K_OF_FEW, k)
    for part in softmax.slices():
        truth = y[part][:, None]
        log_p = softmax.log_probabilities(part)  # (s, k)
        cross_entropy[part] = -np.take_along_axis(log_p, truth, 1)[:, 0]
        # keras.losses.CategoricalCrossentropy: target · (1 - smoothing) + smoothing / k
        smooth[part] = -log_p.mean(1)
        p = np.exp(log_p, out=log_p)
        confidence[part] = p.max(1)
        np.put_along_axis(p, truth, np.take_along_axis(p, truth, 1) - 1, 1)
        brier[part] = np.square(p, out=p).sum(1)
        true_logit: NDArray[Any] = np.take_along_axis(logits[part], truth, 1)
        in_top_k[part] = ((logits[part] > true_logit).sum(1) < top_k) & np.isfinite(true_logit[:, 0])
    loss = (1 - label_smoothing) * cross_entropy + label_smoothing * smooth if label_smoothing else cross_entropy

    predicted = logits.argmax(1)
    confusion = _confusion(predicted, y, k)
    per_class = _per_class(confusion)
    is_right = predicted == y
    bins, ece = _calibration(confidence, is_right)
    return Evaluation(
        rows=n,
        loss=_finite(_mean(loss) + penalty),
        accuracy=_finite(_mean(is_right)),
        top_k=top_k,
        top_k_accuracy=_finite(_mean(in_top_k)),
        balanced_accuracy=_finite(_balanced_accuracy(confusion)),
        macro_f1=_finite(_macro_f1(confusion)),
        log_loss=_finite(_mean(cross_entropy)),
        brier=_finite(_mean(brier)),
        roc_auc_ovr=_finite(_roc_auc(softmax, y)),
        ece=_finite(ece),
        per_class=per_class,
        confusion_matrix=confusion,
        bins=bins,
    )


@np.errstate(invalid="ignore", over="ignore")
def score(name: str, logits: Logits, y: Classes) -> float | None:
    """Compute one score, at a fraction of the cost of `evaluate`: for early stopping and for choosing a version.

    Args:
        name: one of `SCORES`.
        logits: the softmax's inputs, float32 or float64 (n, k).
        y: true classes, integers (n,) in [0, k).

    Raises:
        KeyError: there is no such score.
        ValueError: the shapes do not fit, or a class is outside [0, k).
    """
    compute = _SCORES[name]
    _check(logits, y)
    return _finite(compute(logits, y))


def higher_is_better(name: str) -> bool:
    """Tell which way the score `name` improves; raises KeyError where there is no such score."""
    if name not in _SCORES:
        raise KeyError(name)
    return name != "log_loss"


class _Softmax:
    """Probabilities of logits (n, k), computed a few rows or one class at a time: never (n, k) float64 at once."""

    def __init__(self, logits: Logits) -> None:
        self._logits = logits
        self.n, self.k = logits.shape
        self._largest, self._total = np.empty(self.n), np.empty(self.n)
        for part in self.slices():
            at = logits[part].astype(np.float64)
            self._largest[part] = at.max(1)
            self._total[part] = np.exp(at - self._largest[part, None]).sum(1)

    def slices(self) -> Iterator[slice]:
        """Give slices of rows, each of at most `_SLICE_CELLS` cells or one row."""
        rows = max(_SLICE_CELLS // self.k, 1)
        return (slice(i, min(i + rows, self.n)) for i in range(0, self.n, rows))

    def log_probabilities(self, part: slice) -> NDArray[np.float64]:
        """Compute ln p of some rows, float64 (s, k)."""
        at: NDArray[np.float64] = self._logits[part].astype(np.float64) - self._largest[part, None]
        return at - np.log(self._total[part, None])

    def column(self, index: int) -> NDArray[np.float64]:
        """Compute the probability of one class, float64 (n,)."""
        p: NDArray[np.float64] = np.exp(self._logits[:, index].astype(np.float64) - self._largest) / self._total
        return p


def _check(logits: Logits, y: Classes) -> None:
    if logits.ndim != 2 or logits.shape[1] < 1 or y.shape != logits.shape[:1]:
        raise ValueError(f"expected logits (n, k) and classes (n,), got {logits.shape} and {y.shape}")
    if y.size and not 0 <= y.min() <= y.max() < logits.shape[1]:
        raise ValueError(f"expected classes in [0, {logits.shape[1]}), got {y.min()} to {y.max()}")


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else math.nan


def _divide(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide counts (k,); 0.0 where the whole is 0."""
    return part / np.maximum(whole, 1)


def _confusion(predicted: Classes, y: Classes, k: int) -> NDArray[np.int64]:
    """Count answers, int64 (k, k), a row for each true class."""
    cells = y.astype(np.int64) * k + predicted
    return np.bincount(cells, minlength=k * k).reshape(k, k).astype(np.int64, copy=False)


def _f1(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute 2·hits / (truth + answers) of each class, (k,); 0.0 where a class occurs in neither."""
    return _divide(2 * confusion.diagonal(), confusion.sum(1) + confusion.sum(0))


def _per_class(confusion: NDArray[np.int64]) -> tuple[ClassScores, ...]:
    hits, support, answers = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    columns = (_divide(hits, answers), _divide(hits, support), _f1(confusion), support)
    return tuple(
        ClassScores(i, float(precision), float(recall), float(f1), int(count))
        for i, (precision, recall, f1, count) in enumerate(zip(*columns, strict=True))
    )


def _balanced_accuracy(confusion: NDArray[np.int64]) -> float:
    support = confusion.sum(1)
    return _mean(_divide(confusion.diagonal(), support)[support > 0])


def _macro_f1(confusion: NDArray[np.int64]) -> float:
    return _mean(_f1(confusion)[confusion.sum(1) + confusion.sum(0) > 0])


def _accuracy(logits: Logits, y: Classes) -> float:
    return _mean(logits.argmax(1) == y)


def _log_loss(logits: Logits, y: Classes) -> float:
    softmax = _Softmax(logits)
    out = np.empty(softmax.n)
    for part in softmax.slices():
        out[part] = -np.take_along_axis(softmax.log_probabilities(part), y[part][:, None], 1)[:, 0]
    return _mean(out)


def _roc_auc(softmax: _Softmax, y: Classes) -> float:
    """Mean area under the ROC curve, one class against the rest.

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
        # negatives below each positive, and those not above it: together two for one below, one for a tie
        wins = negatives.searchsorted(positives, "left").sum() + negatives.searchsorted(positives, "right").sum()
        areas.append(float(wins) / (2.0 * positives.size * negatives.size))
    return _mean(np.array(areas))


def _calibration(
    confidence: NDArray[np.float64], is_right: NDArray[np.bool_]
) -> tuple[tuple[CalibrationBin, ...], float]:
    """Sort rows into bins by their largest probability (n,); give the bins and the expected calibration error."""
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    is_known = np.isfinite(confidence)
    # (lower, upper], as in the source of CALIBRATION_BINS
    at = edges[1:-1].searchsorted(confidence[is_known], "left")
    count = np.bincount(at, minlength=CALIBRATION_BINS)
    confident = np.bincount(at, confidence[is_known], CALIBRATION_BINS)
    right = np.bincount(at, is_right[is_known], CALIBRATION_BINS)
    columns = zip(edges[:-1], edges[1:], count, confident, right, strict=True)
    bins = tuple(
        CalibrationBin(float(low), float(high), int(c), float(p / c) if c else None, float(r / c) if c else None)
        for low, high, c, p, r in columns
    )
    ece = float(np.abs(confident - right).sum()) / confidence.size if is_known.all() and is_known.size else math.nan
    return bins, ece


_SCORES: dict[str, Callable[[Logits, Classes], float]] = {
    "log_loss": _log_loss,
    "accuracy": _accuracy,
    "balanced_accuracy": lambda logits, y: _balanced_accuracy(_confusion(logits.argmax(1), y, logits.shape[1])),
    "macro_f1": lambda logits, y: _macro_f1(_confusion(logits.argmax(1), y, logits.shape[1])),
    "roc_auc": lambda logits, y: _roc_auc(_Softmax(logits), y),
}
#: what `score` computes
SCORES = tuple(_SCORES)
