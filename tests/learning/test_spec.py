"""What may be asked of a training job, and what becomes of every "auto"."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from app.errors import Invalid, TooLarge
from app.learning.spec import Features, Layer, TrainSpec, count_parameters
from app.learning.tables.column import Column
from app.learning.tables.describe_column import ColumnDescription, describe
from app.learning.training.resolve_spec import Limits, Resolved, resolve
from app.learning.training.start_from import adopt

ROWS = 300
LIMITS = Limits(classes=10, features=100, parameters=100_000, seconds=3600)


def column(name: str, kind: Any = "numeric", unique: int = 4, missing: int = 0) -> ColumnDescription:
    """Describe a column of `ROWS` cells."""
    numbers = np.arange(ROWS) % max(unique, 1)
    gone = np.arange(ROWS) < missing
    if kind in ("numeric", "boolean"):
        return describe(Column(name, kind, np.where(gone, np.nan, numbers.astype(float))))
    codes = np.where(gone, -1, numbers).astype(np.int32)
    return describe(Column(name, kind, codes, tuple(f"{i:03}" for i in range(unique))))


COLUMNS = [
    column("size", unique=50, missing=3),
    column("place", "categorical", unique=5),
    column("day", "datetime", unique=9),
    column("words", "text", unique=99),
    column("gone", missing=ROWS),
    column("kind", "categorical", unique=3, missing=7),
]


def settle(document: dict[str, Any], **given: Any) -> Resolved:
    arguments: dict[str, Any] = {"columns": COLUMNS, "rows": ROWS, "default_target": "kind", "limits": LIMITS} | given
    return resolve(TrainSpec.model_validate(document), **arguments)


def test_every_auto_becomes_a_value() -> None:
    found = settle({})

    assert ("size", "place") == found.columns
    assert {
        "target": "kind",
        "features": {"include": None, "exclude": [], "scaling": "standard", "encoding": "auto"},
        "validation": {"fraction": 0.2, "dataset": None},
        "network": {
            "layers": [{"units": 64, "activation": "relu", "dropout": 0.0, "l2": 0.0}],
            "batch_norm": False,
        },
        "optimizer": {
            "learning_rate": pytest.approx(0.1 * 32 / 256),
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 0.0,
            "schedule": "cosine",
            "warmup": 0.05,
            "clip_norm": None,
        },
        "fit": {
            "epochs": 100,
            "batch_size": 16,
            "shuffle": True,
            "class_weight": None,
            "label_smoothing": 0.0,
            "early_stopping": {"patience": 15, "min_delta": 0.0, "restore_best_weights": True},
            "seed": 0,
            "deterministic": False,
            "max_seconds": 3600.0,
        },
        "start_from": None,
        "optimize": "log_loss",
        "promote": "always",
        "device": "auto",
        "tags": {},
    } == found.document()


EXPLICIT: dict[str, Any] = {
    "target": "place",
    "features": {"include": ["size"], "exclude": [], "scaling": "none", "encoding": "plain"},
    "validation": {"fraction": 0.3, "dataset": None},
    "network": {
        "layers": [{"units": 8, "activation": "tanh", "dropout": 0.1, "l2": 0.01}],
        "batch_norm": True,
    },
    "optimizer": {
        "learning_rate": 0.01,
        "momentum": 0.5,
        "nesterov": True,
        "weight_decay": 0.001,
        "schedule": "cosine",
        "warmup": 0.1,
        "clip_norm": 1.0,
    },
    "fit": {
        "epochs": 10,
        "batch_size": 32,
        "shuffle": False,
        "class_weight": {"000": 2.0},
        "label_smoothing": 0.1,
        "early_stopping": {"patience": 3, "min_delta": 0.1, "restore_best_weights": False},
        "seed": 7,
        "deterministic": True,
        "max_seconds": 60.0,
    },
    "start_from": None,
    "optimize": "macro_f1",
    "promote": "if_better",
    "device": "gpu:1",
    "tags": {"team": "a"},
}


def test_explicit_values_stay_untouched() -> None:
    assert settle(EXPLICIT).document() == EXPLICIT


def test_a_resolved_specification_resolves_to_itself() -> None:
    document = settle({}).document()

    assert document == settle(json.loads(json.dumps(document))).document()


def test_an_explicit_learning_rate_means_what_keras_means_by_it() -> None:
    found = settle({"optimizer": {"learning_rate": 0.01}, "fit": {"epochs": 10, "batch_size": 32}}).document()

    assert (0.01, 0.0, "constant") == tuple(
        found["optimizer"][name] for name in ("learning_rate", "momentum", "schedule")
    )
    assert found["fit"]["early_stopping"] is None


def test_null_switches_off_what_auto_would_switch_on() -> None:
    found = settle(
        {
            "features": {"scaling": None, "encoding": None},
            "validation": None,
            "network": {"layers": None},
            "optimizer": {"momentum": None, "schedule": None},
            "fit": {"early_stopping": None},
        }
    ).document()

    assert ("none", "plain") == (found["features"]["scaling"], found["features"]["encoding"])
    assert found["validation"] is None
    assert [] == found["network"]["layers"]
    assert (0.0, "constant") == (found["optimizer"]["momentum"], found["optimizer"]["schedule"])
    assert found["fit"]["early_stopping"] is None


def test_without_validation_nothing_stops_early() -> None:
    assert settle({"validation": None}).document()["fit"]["early_stopping"] is None


@pytest.mark.parametrize(("rows", "batch", "widths"), [(10, 16, [64]), (5000, 64, [128, 64]), (10**6, 256, [128, 64])])
def test_larger_tables_get_larger_batches_and_networks(rows: int, batch: int, widths: list[int]) -> None:
    labels = [column("kind", "categorical", unique=3)]

    found = settle({}, columns=[COLUMNS[1], *labels], rows=rows).document()

    assert batch == found["fit"]["batch_size"]
    assert widths == [layer["units"] for layer in found["network"]["layers"]]


def test_what_is_left_out_is_said() -> None:
    warnings = settle({}).warnings

    assert [
        "7 rows without a value in target 'kind' are left out",
        "column 'day' is datetime and is left out",
        "column 'words' is text and is left out",
        "column 'gone' has no values and is left out",
    ] == list(warnings)


def test_features_are_included_and_excluded_by_name() -> None:
    assert ("place",) == settle({"features": {"include": ["place"]}}).columns
    assert ("size",) == settle({"features": {"exclude": ["place"]}}).columns


@pytest.mark.parametrize(
    ("document", "loc", "message"),
    [
        ({"target": "nothing"}, ("target",), "Expected a column of the data set as target, got 'nothing'"),
        ({"target": "gone"}, ("target",), "at least 2 classes in column 'gone', got 0"),
        ({"target": "size"}, ("target",), "at most 10 classes in column 'size', got 50 distinct values"),
        ({"features": {"include": ["size", "x"]}}, ("features", "include", 1), "There is no column 'x'"),
        ({"features": {"exclude": ["x"]}}, ("features", "exclude", 0), "There is no column 'x'"),
        ({"features": {"include": ["kind"]}}, ("features", "include"), "The target 'kind' cannot be a feature too"),
        ({"features": {"include": ["words"]}}, ("features", "include"), "PATCH its kind to categorical"),
        ({"features": {"include": []}}, ("features",), "at least one column to learn from, got none"),
        ({"features": {"exclude": ["size", "place"]}}, ("features",), "at least one column to learn from"),
        ({"validation": {"fraction": 0.1, "dataset": "ds_1"}}, ("validation",), "fraction or dataset, got both"),
        ({"fit": {"max_seconds": 3601}}, ("fit", "max_seconds"), "at most 3600 seconds, got 3601"),
        ({"validation": None, "fit": {"early_stopping": {}}}, ("fit", "early_stopping"), "needs validation"),
        ({"optimizer": {"momentum": 0, "nesterov": True}}, ("optimizer", "nesterov"), "a momentum above 0"),
    ],
)
def test_what_cannot_train_on_a_table_is_refused_at_its_place(
    document: dict[str, Any], loc: tuple[str | int, ...], message: str
) -> None:
    with pytest.raises(Invalid) as caught:
        settle(document)

    assert loc == caught.value.faults[0].loc
    assert message in caught.value.message


def test_one_class_is_refused() -> None:
    with pytest.raises(Invalid, match="at least 2 classes in column 'kind', got 1"):
        settle({}, columns=[COLUMNS[0], column("kind", "categorical", unique=1)])


@pytest.mark.parametrize(
    ("document", "limits", "message"),
    [
        ({}, {"features": 6}, "at most 6 encoded features, got 7"),
        ({"network": {"layers": [{"units": 30_000}]}}, {}, "at most 100000 parameters, got 330003"),
    ],
)
def test_what_is_too_large_is_refused(document: dict[str, Any], limits: dict[str, int], message: str) -> None:
    with pytest.raises(TooLarge, match=message):
        settle(document, limits=dataclasses.replace(LIMITS, **limits))


def test_another_validation_data_set_stands_in_for_the_fraction() -> None:
    assert {"dataset": "ds_1", "fraction": None} == settle({"validation": {"dataset": "ds_1"}}).document()["validation"]
    assert 0.2 == settle({"validation": {}}).document()["validation"]["fraction"]


@pytest.mark.parametrize(
    "place",
    ["", "features", "validation", "network", "network.layers.0", "optimizer", "fit", "fit.early_stopping"],
)
def test_an_unknown_field_is_refused_at_its_place(place: str) -> None:
    document = json.loads(json.dumps(EXPLICIT))
    inner = document
    path = [int(part) if part.isdigit() else part for part in place.split(".") if part]
    for part in path:
        inner = inner[part]
    inner["momentun"] = 0.9

    with pytest.raises(ValidationError) as caught:
        TrainSpec.model_validate(document)

    assert any(
        error["type"] == "extra_forbidden" and set(path) | {"momentun"} <= set(error["loc"])
        for error in caught.value.errors()
    )


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("target", [1, ["a"]]),
        ("features", [None, "all"]),
        ("features.include", ["a", [1]]),
        ("features.scaling", ["minmax", True]),
        ("features.encoding", ["target", 1]),
        ("validation.fraction", [0, 1, -0.1, "0.2", True, float("nan")]),
        ("validation.dataset", [5]),
        ("network", [None]),
        ("network.layers", ["some", [64], [{"units": 1}] * 65, [{}]]),
        ("network.layers.0.units", [0, -1, 1.5, "64", 65_537, True, "auto", None]),
        ("network.layers.0.activation", ["softmax", "lambda x: x", None]),
        ("network.layers.0.dropout", [1, -0.1, "0.5", float("nan"), None]),
        ("network.layers.0.l2", [-1, float("inf"), None]),
        ("network.batch_norm", [1, "true", None]),
        ("optimizer", [None, "sgd"]),
        ("optimizer.learning_rate", [0, -1, float("inf"), "fast", None, True]),
        ("optimizer.momentum", [1, -0.1, "0.9"]),
        ("optimizer.nesterov", [1, None]),
        ("optimizer.weight_decay", [-1, None]),
        ("optimizer.schedule", ["linear", 1]),
        ("fit", [None, []]),
        ("fit.epochs", [0, -1, 1.5, "10", None, 100_001]),
        ("fit.batch_size", [0, 1.5, "32", None]),
        ("fit.shuffle", [1, None]),
        ("fit.class_weight", ["equal", {"a": 0}, {"a": -1}, {"a": "2"}, [1]]),
        ("fit.label_smoothing", [1, -0.1, None]),
        ("fit.early_stopping", [True, 5, {"patience": 0}, {"min_delta": -1}]),
        ("fit.seed", [-1, 2**32, 1.5, None]),
        ("fit.deterministic", [1, None]),
        ("fit.max_seconds", [0, -1, "60", float("inf")]),
        ("start_from", [3, "", "x" * 65, "iris@", "@3", "iris@3@4", "iris@-1", "iris\n", "iris\0"]),
        ("optimize", ["f1", None]),
        ("promote", ["maybe", None]),
        ("device", ["tpu", "gpu:", "gpu:123", "gpu:1 ", None]),
        ("tags", [None, {"a": 1}, {"a": "x" * 201}, {str(i): "" for i in range(51)}]),
    ],
)
def test_a_bad_value_is_refused_at_its_place(place: str, values: list[Any]) -> None:
    path = [int(part) if part.isdigit() else part for part in place.split(".")]
    for value in values:
        document = json.loads(json.dumps(EXPLICIT))
        inner = document
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = value

        with pytest.raises(ValidationError) as caught:
            TrainSpec.model_validate(document)

        assert set(path) <= set(caught.value.errors()[0]["loc"]), value


ORIGIN = {"target": "y", "network": {"layers": [{"units": 5}]}, "features": {"exclude": ["id"], "scaling": "standard"}}


def test_a_run_that_starts_from_a_version_takes_over_its_target_features_and_layers() -> None:
    asked = TrainSpec.model_validate({"start_from": "iris", "fit": {"epochs": 3}})

    found = adopt(asked, "iris@3", ["a", "b"], TrainSpec.model_validate(ORIGIN))

    assert ("iris@3", "y", [Layer(units=5)], 3) == (
        found.start_from,
        found.target,
        found.network.layers,
        found.fit.epochs,
    )
    assert (["a", "b"], [], "standard") == (found.features.include, found.features.exclude, found.features.scaling)


@pytest.mark.parametrize(
    ("place", "asked"),
    [
        ("target", {"target": "z"}),
        ("features", {"features": {"scaling": "none"}}),
        ("features", {"features": {"include": ["a"]}}),
        ("network", {"network": {"layers": [{"units": 6}]}}),
        ("network", {"network": {"batch_norm": True}}),
    ],
)
def test_a_run_that_starts_from_a_version_cannot_ask_for_what_that_has_not(place: str, asked: dict[str, Any]) -> None:
    spec = TrainSpec.model_validate({"start_from": "iris", **asked})

    with pytest.raises(Invalid) as caught:
        adopt(spec, "iris@3", ["a", "b"], TrainSpec.model_validate(ORIGIN))

    assert place == caught.value.faults[0].loc[0]


@pytest.mark.parametrize(
    "features",
    [{}, {"scaling": "standard"}, {"exclude": ["id"]}, {"include": ["a", "b"]}, {"include": ["a", "b"], "exclude": []}],
)
def test_what_a_version_has_settled_may_be_asked_for_again(features: dict[str, Any]) -> None:
    spec = TrainSpec.model_validate({"start_from": "iris", "target": "y", "features": features})

    found = adopt(spec, "iris@3", ["a", "b"], TrainSpec.model_validate(ORIGIN))

    assert Features(include=["a", "b"], scaling="standard") == found.features


@pytest.mark.parametrize("layers", ["auto", None, []])
def test_no_hidden_layer_is_what_a_version_without_one_has(layers: Any) -> None:
    spec = TrainSpec.model_validate({"start_from": "iris", "network": {"layers": layers}})

    found = adopt(spec, "iris@3", ["a"], TrainSpec.model_validate({"target": "y", "network": {"layers": []}}))

    assert [] == found.network.layers


def test_parameters_are_counted_with_those_of_batch_normalisation() -> None:
    spec = TrainSpec.model_validate({"network": {"layers": [{"units": 5}, {"units": 3}], "batch_norm": True}})

    assert (4 + 1) * 5 + 4 * 5 + (5 + 1) * 3 + 4 * 3 + (3 + 1) * 2 == count_parameters(4, spec, 2)
    assert (4 + 1) * 2 == count_parameters(4, TrainSpec.model_validate({"network": {"layers": []}}), 2)
