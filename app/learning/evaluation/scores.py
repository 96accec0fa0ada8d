"""A classifier's scores as values, and as the document that clients read. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray


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
    """The rows whose largest probability is in (lower, upper]; the means are None where there are no rows."""

    lower: float
    upper: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class ClassifierScores:
    """A classifier's scores on n rows of k classes; a score that is not defined is None.

    Args:
        loss: as `keras.Model.evaluate`: cross-entropy with label smoothing plus penalties, nats per row.
        accuracy: share of rows whose largest logit (the first of equal ones) is the true class.
        top_k: the k of `top_k_accuracy`.
        top_k_accuracy: share of rows with fewer than top_k logits above that of the true class.
        balanced_accuracy: mean recall of the classes that occur in the truth.
        macro_f1: mean F1 of the classes that occur in the truth or in the answers.
        log_loss: cross-entropy, nats per row; no smoothing, no penalties.
        brier: squared error of the probabilities, summed over classes; in [0, 2].
        roc_auc_ovr: mean area under the curve of each class against the rest, over the classes that have both.
        ece: expected calibration error, the mean gap between confidence and accuracy over the bins; in [0, 1].
        per_class: k entries in the order of the classes.
        confusion_matrix: int64 (k, k), a row for each true class, a column for each answer.
        bins: of equal width.
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

    def document(self, classes: Sequence[object]) -> dict[str, object]:
        """Return the scores as strict JSON, with the k labels `classes` in place of class indices."""
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
