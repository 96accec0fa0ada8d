"""Every score of a classifier, or one of them, from its logits and the true classes.

Everything is computed in float64 from logits, so a very confident wrong answer has a large loss and not an infinite
one. A score that is not defined (no rows, a class that never occurs, logits that are not finite) is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.learning.evaluation.measures import (
    accuracy,
    balanced_accuracy,
    calibration,
    class_scores,
    count_confusion,
    log_loss,
    macro_f1,
    mean,
    roc_auc,
)
from app.learning.evaluation.scores import ClassifierScores
from app.learning.evaluation.softmax import Classes, Logits, Softmax

#: the default of keras.metrics.TopKCategoricalAccuracy
TOP_K = 5
#: used where there are at most TOP_K classes, because the accuracy among the top 5 would be 1 by definition
TOP_K_OF_FEW = 2


@np.errstate(invalid="ignore", over="ignore")
def evaluate(logits: Logits, y: Classes, *, label_smoothing: float = 0.0, penalty: float = 0.0) -> ClassifierScores:
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
    softmax = Softmax(logits)
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
    confusion = count_confusion(predicted, y, k)
    is_right = predicted == y
    bins, ece = calibration(confidence, is_right)
    return ClassifierScores(
        rows=n,
        loss=_finite(mean(loss) + penalty),
        accuracy=_finite(mean(is_right)),
        top_k=top_k,
        top_k_accuracy=_finite(mean(in_top_k)),
        balanced_accuracy=_finite(balanced_accuracy(confusion)),
        macro_f1=_finite(macro_f1(confusion)),
        log_loss=_finite(mean(cross_entropy)),
        brier=_finite(mean(brier)),
        roc_auc_ovr=_finite(roc_auc(softmax, y)),
        ece=_finite(ece),
        per_class=class_scores(confusion),
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
    """Return whether a larger value of the score `name` is better; raises KeyError where there is no such score."""
    if name not in _SCORES:
        raise KeyError(name)
    return name != "log_loss"


def _check(logits: Logits, y: Classes) -> None:
    if logits.ndim != 2 or logits.shape[1] < 1 or y.shape != logits.shape[:1]:
        raise ValueError(f"expected logits (n, k) and classes (n,), got {logits.shape} and {y.shape}")
    if y.size and not 0 <= y.min() <= y.max() < logits.shape[1]:
        raise ValueError(f"expected classes in [0, {logits.shape[1]}), got {y.min()} to {y.max()}")


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


_SCORES: dict[str, Callable[[Logits, Classes], float]] = {
    "log_loss": log_loss,
    "accuracy": accuracy,
    "balanced_accuracy": lambda logits, y: balanced_accuracy(count_confusion(logits.argmax(1), y, logits.shape[1])),
    "macro_f1": lambda logits, y: macro_f1(count_confusion(logits.argmax(1), y, logits.shape[1])),
    "roc_auc": lambda logits, y: roc_auc(Softmax(logits), y),
}
#: names of the scores that `score` computes
SCORES = tuple(_SCORES)
