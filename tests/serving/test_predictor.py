"""Predictions of posted rows: the network's probabilities, warnings, and refused rows."""

from __future__ import annotations

import numpy as np
import pytest

from app.errors import Invalid, TooLarge
from app.learning.encoding.cell_warnings import MAX_WARNINGS
from app.learning.requests.prediction_rows import Rows
from app.records.ref import Ref
from app.records.rooms import Rooms
from app.serving.predictor import LoadedVersion, first_warnings
from app.serving.version_cache import VersionCache
from tests.stored_rows import make_artifact, train


def load(rooms: Rooms, max_cells: int = 1000) -> LoadedVersion:
    return VersionCache(rooms.registry, "cpu", 1024**3, max_cells).get(Ref.parse("m"))


def test_a_version_predicts_what_its_network_computes(rooms: Rooms) -> None:
    artifact = make_artifact(seed=5)
    train(rooms, artifact=artifact)

    loaded = load(rooms)
    prediction = loaded.predict(Rows({"a": [1.0, -2.5], "b": ["x", "unseen"]}, 2))

    expected = np.array(artifact.golden.probabilities[:2], np.float32)
    assert expected.tobytes() == prediction.probabilities.tobytes()
    assert [artifact.classes[i] for i in expected.argmax(axis=1)] == prediction.labels
    assert [(1, "b", "unseen_category")] == [
        (warning.row, warning.column, warning.code) for warning in prediction.warnings
    ]
    assert ("y", 1) == (loaded.target, loaded.version.version)
    assert expected.argmax(axis=1).tolist() == prediction.best(1)[:, 0].tolist()


def test_the_target_is_no_unknown_column(rooms: Rooms) -> None:
    train(rooms)

    prediction = load(rooms).predict(Rows({"a": [0.5, -1.0], "b": ["x", "z"], "y": ["no", "no"], "other": [1, 2]}, 2))

    assert [("other", "unknown_column")] == [(warning.column, warning.code) for warning in prediction.warnings]


def test_the_first_hundred_warnings_are_shown_and_all_are_counted(rooms: Rooms) -> None:
    train(rooms)
    prediction = load(rooms).predict(Rows({"a": [None] * 150, "b": ["?"] * 150}, 150))

    shown, count = first_warnings(prediction.warnings)

    assert (MAX_WARNINGS, 300) == (len(shown), count)
    assert [warning.row for warning in shown] == sorted(warning.row for warning in shown)


def test_a_wrong_value_is_refused_with_its_row_and_column(rooms: Rooms) -> None:
    train(rooms)

    with pytest.raises(Invalid) as caught:
        load(rooms).predict(Rows({"a": [1.0, "many"], "b": ["x", "x"]}, 2))

    (fault,) = caught.value.faults
    assert "a" in fault.loc
    assert 1 in fault.loc


def test_more_cells_than_one_prediction_may_have_are_refused(rooms: Rooms) -> None:
    train(rooms)
    loaded = load(rooms, max_cells=9)

    # a row has three features and two classes: three rows have nine cells
    assert 3 == len(loaded.predict(Rows({"a": [1.0] * 3, "b": ["x"] * 3}, 3)).labels)
    with pytest.raises(TooLarge, match="at most 3 rows for this model in one request, got 4"):
        loaded.predict(Rows({"a": [1.0] * 4, "b": ["x"] * 4}, 4))
