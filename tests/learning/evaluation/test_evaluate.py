"""Scores against scikit-learn's and Keras's, on random, tied, degenerate and extreme logits."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from app.learning.evaluation.evaluate import SCORES, evaluate, higher_is_better, score
from app.learning.evaluation.softmax import Softmax

Rows = tuple[NDArray[np.float64], NDArray[np.int32]]


def random_rows(n: int, k: int, seed: int, scale: float = 2.0) -> Rows:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n).astype(np.int32)
    logits = rng.normal(0, scale, (n, k))
    logits[np.arange(n), y] += 1
    return logits, y


@st.composite
def rows_with_ties(draw: st.DrawFn) -> Rows:
    """A few rows of half-integers: many equal logits and equal rows; classes may be absent."""
    k = draw(st.integers(2, 7))
    n = draw(st.integers(1, 30))
    extent = draw(st.sampled_from([1, 6, 1000]))
    halves = draw(hnp.arrays(np.int16, (n, k), elements=st.integers(-extent, extent)))
    y = draw(hnp.arrays(np.int32, n, elements=st.integers(0, k - 1)))
    return halves / 2, y


def mean_roc_auc(p: NDArray[np.float64], y: NDArray[np.int32]) -> float | None:
    """One class against the rest by scikit-learn, over the classes where it is defined."""
    defined = [c for c in range(p.shape[1]) if 0 < (y == c).sum() < len(y)]
    return float(np.mean([reference.roc_auc_score(y == c, p[:, c]) for c in defined])) if defined else None


def probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    """The probabilities that the scores rank by, bit for bit, so that rounding breaks no tie differently."""
    by_class = Softmax(logits)
    p = np.stack([by_class.column(c) for c in range(logits.shape[1])], axis=1)

    assert p == pytest.approx(softmax(logits.astype(np.float64), axis=1), abs=1e-12)
    return p


def assert_as_reference(logits: NDArray[Any], y: NDArray[np.int32]) -> None:
    k = logits.shape[1]
    labels = list(range(k))
    predicted = logits.argmax(1)
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    p = probabilities(logits)

    found = evaluate(logits, y)

    assert found.rows == len(y)
    assert found.accuracy == pytest.approx(reference.accuracy_score(y, predicted))
    recalls = reference.recall_score(y, predicted, labels=np.unique(y), average="macro", zero_division=0)
    assert found.balanced_accuracy == pytest.approx(recalls)
    assert found.macro_f1 == pytest.approx(reference.f1_score(y, predicted, average="macro", zero_division=0))
    assert found.log_loss == pytest.approx(-log_p[np.arange(len(y)), y].mean(), abs=1e-12)
    assert found.loss == found.log_loss
    assert found.brier == pytest.approx(np.square(p - np.eye(k)[y]).sum(1).mean(), abs=1e-12)
    assert found.roc_auc_ovr == pytest.approx(mean_roc_auc(p, y), abs=1e-12)
    assert np.array_equal(found.confusion_matrix, reference.confusion_matrix(y, predicted, labels=labels))
    columns = reference.precision_recall_fscore_support(y, predicted, labels=labels, zero_division=0)
    entries = [(c.precision, c.recall, c.f1, c.support) for c in found.per_class]
    assert np.array(entries) == pytest.approx(np.stack(columns, axis=1))
    assert [c.index for c in found.per_class] == labels
    assert sum(entry.count for entry in found.bins) == len(y)
    for name in SCORES:
        field = {"roc_auc": "roc_auc_ovr"}.get(name, name)
        assert score(name, logits, y) == pytest.approx(getattr(found, field), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "k"), [(1, 2), (200, 2), (500, 3), (1000, 11), (300, 100)])
def test_every_score_is_scikit_learns_on_random_rows(n: int, k: int, dtype: type[np.floating[Any]]) -> None:
    logits, y = random_rows(n, k, seed=n + k)

    assert_as_reference(logits.astype(dtype), y)


@settings(deadline=None, max_examples=200)
@given(rows_with_ties())
@example((np.zeros((3, 2)), np.array([0, 1, 1], np.int32)))
@example((np.zeros((2, 3)), np.array([2, 2], np.int32)))
def test_every_score_is_scikit_learns_with_ties_and_absent_classes(rows: Rows) -> None:
    assert_as_reference(*rows)


def test_whole_functions_of_scikit_learn_agree_where_all_classes_occur() -> None:
    logits, y = random_rows(400, 4, seed=1)
    p = softmax(logits, axis=1)

    found = evaluate(logits, y)

    assert found.log_loss == pytest.approx(reference.log_loss(y, p))
    assert found.balanced_accuracy == pytest.approx(reference.balanced_accuracy_score(y, logits.argmax(1)))
    assert found.roc_auc_ovr == pytest.approx(reference.roc_auc_score(y, p, multi_class="ovr", average="macro"))
    assert found.brier == pytest.approx(reference.brier_score_loss(y, p, scale_by_half=False))


def test_two_classes_have_the_area_of_the_binary_curve() -> None:
    logits, y = random_rows(300, 2, seed=2)

    area = score("roc_auc", logits, y)

    assert area == pytest.approx(reference.roc_auc_score(y, softmax(logits, axis=1)[:, 1]))


def test_rows_of_several_slices_give_the_scores_of_one_pass() -> None:
    # more cells than are worked on at once
    logits, y = random_rows(300_000, 5, seed=3)

    found = evaluate(logits, y)

    p = softmax(logits.astype(np.float64), axis=1)
    of_truth = p[np.arange(len(y)), y]
    assert found.log_loss == pytest.approx(-np.log(of_truth).mean())
    assert found.brier == pytest.approx(np.square(p - np.eye(5)[y]).sum(axis=1).mean())
    assert found.top_k_accuracy == pytest.approx(((p > of_truth[:, None]).sum(axis=1) < found.top_k).mean())


@pytest.mark.parametrize(("k", "top_k"), [(2, 2), (5, 2), (6, 5), (12, 5)])
def test_top_k_accuracy_is_kerass_for_the_k_it_states(k: int, top_k: int) -> None:
    import keras

    logits, y = random_rows(200, k, seed=k)
    hits = keras.metrics.sparse_top_k_categorical_accuracy(y, logits.astype(np.float32), k=top_k)

    found = evaluate(logits.astype(np.float32), y)

    assert found.top_k == top_k
    assert found.top_k_accuracy == pytest.approx(float(np.mean(keras.ops.convert_to_numpy(hits))))


def test_equal_logits_go_to_the_first_class_and_all_count_as_top_k() -> None:
    found = evaluate(np.zeros((4, 8)), np.array([0, 1, 7, 7]))

    assert found.accuracy == 0.25
    assert found.top_k_accuracy == 1.0
    assert found.roc_auc_ovr == 0.5
    assert found.log_loss == pytest.approx(math.log(8))


def test_extreme_logits_have_a_finite_loss() -> None:
    logits = np.array([[500, -500, 0], [-500, 500, 0], [-500, 0, 500]], np.float32)

    found = evaluate(logits, np.array([1, 1, 2]), label_smoothing=0.1)

    assert found.log_loss == pytest.approx(1000 / 3)
    assert found.loss == pytest.approx(0.9 * 1000 / 3 + 0.1 * 500)
    assert found.brier == pytest.approx(2 / 3)
    assert score("log_loss", logits, np.array([1, 1, 2])) == pytest.approx(1000 / 3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.5, 1.0])
def test_logits_that_are_not_finite_give_strict_json(odd: float, column: int, label_smoothing: float) -> None:
    logits, y = random_rows(20, 3, seed=4)
    y[:3] = [0, 1, 2]
    logits[0, column] = odd

    found = evaluate(logits, y, label_smoothing=label_smoothing)

    json.dumps(found.document("abc"), allow_nan=False)
    if math.isnan(odd):
        assert found.loss is found.log_loss is found.brier is found.roc_auc_ovr is found.ece is None
    for name in SCORES:
        value = score(name, logits, y)
        assert value is None or math.isfinite(value)


@pytest.mark.filterwarnings("error")
def test_no_rows_have_no_scores() -> None:
    found = evaluate(np.empty((0, 3), np.float32), np.empty(0, np.int32))

    assert (found.rows, found.loss, found.accuracy, found.roc_auc_ovr, found.ece) == (0, None, None, None, None)
    assert found.confusion_matrix.tolist() == [[0] * 3] * 3
    assert all(score(name, np.empty((0, 3)), np.empty(0, np.int32)) is None for name in SCORES)


def test_one_class_alone_has_no_area_under_a_curve() -> None:
    assert score("roc_auc", np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([1, 1])) is None


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("l2", [0.0, 0.03])
@pytest.mark.parametrize("scale", [1.0, 400.0], ids=["ordinary", "saturated"])
def test_loss_and_accuracy_are_what_keras_evaluate_gives(smoothing: float, l2: float, scale: float) -> None:
    import keras

    rng = np.random.default_rng(5)
    x = rng.normal(size=(97, 4)).astype(np.float32)
    y = rng.integers(0, 3, 97).astype(np.int32)
    kernel = (scale * rng.normal(size=(4, 3))).astype(np.float32)
    bias = rng.normal(size=3).astype(np.float32)
    penalise = keras.regularizers.L2(l2 / scale**2) if l2 else None
    dense = keras.layers.Dense(3, activation="softmax", kernel_regularizer=penalise)
    model = keras.Sequential([keras.Input((4,)), dense])
    model.set_weights([kernel, bias])
    model.compile("sgd", keras.losses.CategoricalCrossentropy(label_smoothing=smoothing), metrics=["accuracy"])
    expected = model.evaluate(x, keras.utils.to_categorical(y, 3), batch_size=32, verbose=0, return_dict=True)
    penalty = l2 / scale**2 * float(np.square(kernel.astype(np.float64)).sum())

    found = evaluate(x @ kernel + bias, y, label_smoothing=smoothing, penalty=penalty)

    assert found.loss == pytest.approx(expected["loss"], rel=1e-5)
    assert found.accuracy == pytest.approx(expected["accuracy"], abs=1e-6)
    assert found.log_loss == score("log_loss", x @ kernel + bias, y)


def test_calibration_compares_confidence_with_accuracy_in_bins_closed_above() -> None:
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.55, 0.45], [1.0, 1e-30]])
    y = np.array([0, 1, 0, 0])

    found = evaluate(np.log(p), y)

    filled = {i: b for i, b in enumerate(found.bins) if b.count}
    assert list(filled) == [8, 13, 14]
    assert [b.count for b in filled.values()] == [1, 2, 1]
    assert [b.accuracy for b in filled.values()] == [1.0, 0.5, 1.0]
    assert [b.confidence for b in filled.values()] == pytest.approx([0.55, 0.9, 1.0])
    assert (found.bins[0].lower, found.bins[0].upper) == pytest.approx((0, 1 / 15))
    assert (found.bins[0].count, found.bins[0].confidence, found.bins[0].accuracy) == (0, None, None)
    assert found.bins[-1].upper == 1.0
    assert found.ece == pytest.approx((1 * 0.45 + 2 * 0.4 + 1 * 0.0) / 4)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    found = evaluate(np.zeros((1, 3)), np.array([0]))

    assert [i for i, entry in enumerate(found.bins) if entry.count] == [4]


def test_the_document_carries_the_labels_as_they_were_posted() -> None:
    logits, y = random_rows(50, 3, seed=6)

    document: Any = evaluate(logits, y).document([5, "b", 7])

    assert [entry["class"] for entry in document["per_class"]] == [5, "b", 7]
    assert document["confusion_matrix"]["classes"] == [5, "b", 7]
    assert np.sum(document["confusion_matrix"]["counts"]) == document["rows"] == 50
    assert set(document["calibration"]["bins"][0]) == {"lower", "upper", "count", "confidence", "accuracy"}
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.mark.parametrize(
    ("logits", "y"),
    [
        pytest.param(np.zeros((2, 3)), np.array([0, 3]), id="class-too-large"),
        pytest.param(np.zeros((2, 3)), np.array([-1, 0]), id="class-negative"),
        pytest.param(np.zeros((2, 3)), np.array([0]), id="too-few-classes"),
        pytest.param(np.zeros(3), np.array([0]), id="one-dimension"),
        pytest.param(np.zeros((2, 0)), np.array([0, 0]), id="no-columns"),
    ],
)
def test_rows_that_do_not_fit_are_refused(logits: NDArray[np.float64], y: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match="expected"):
        evaluate(logits, y)
    with pytest.raises(ValueError, match="expected"):
        score("accuracy", logits, y)


def test_only_a_lower_log_loss_is_better() -> None:
    assert [name for name in SCORES if not higher_is_better(name)] == ["log_loss"]
    assert set(SCORES) == {"log_loss", "accuracy", "balanced_accuracy", "macro_f1", "roc_auc"}


def test_an_unknown_score_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        score("auc", np.zeros((1, 2)), np.array([0]))
    with pytest.raises(KeyError):
        higher_is_better("auc")
