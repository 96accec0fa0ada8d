"""What a specification becomes for a table: every `"auto"` settled, and what cannot train refused.

Knows the table only by its statistics; knows nothing of Keras. Each rule is a function of the table's size alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from app.errors import Invalid, TooLarge
from app.learning.spec import (
    EarlyStopping,
    Features,
    Fit,
    Layer,
    Optimizer,
    TrainSpec,
    Validation,
    count_parameters,
)
from app.learning.tables.describe_column import ColumnDescription

#: a hundredth of the rows as a power of two: small batches generalise better (Masters and Luschi 2018,
#: arXiv:1804.07612), and larger ones are less work a row
SMALLEST_BATCH, LARGEST_BATCH = 16, 256
#: the rate for a batch of 256, and in proportion for another: the linear scaling rule of Goyal et al. 2017,
#: arXiv:1706.02677, section 2.1. Below a batch of 32 it stays: there 100 epochs would not be enough for small tables
RATE, RATE_BATCH, SMALLEST_RATE_BATCH = 0.1, 256, 32
#: Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning"
MOMENTUM = 0.9
#: a gradual warm-up over 5 % of the steps: 5 of 90 epochs in Goyal et al. 2017, section 2.2; then a cosine to zero
#: (Loshchilov and Hutter 2017, arXiv:1608.03983)
WARMUP = 0.05
#: so many steps at least, in at most 100 epochs, which early stopping may cut (Prechelt 1998, "Early stopping, but
#: when?"); a schedule that ends with its budget loses little to a longer one (Li et al. 2020, arXiv:1905.04753)
STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 20_000, 10, 100
#: from so many rows on the network is two layers and wider
WIDER_ROWS = 2000


@dataclass(frozen=True)
class Limits:
    """What a job may ask for at most.

    Args:
        encoded_bytes: of encoded rows in memory; what is beyond it stays on disk.
        memory_bytes: of the training process, by its estimate.
    """

    classes: int
    features: int
    parameters: int
    seconds: float
    encoded_bytes: float = math.inf
    memory_bytes: float = math.inf


@dataclass(frozen=True)
class Resolved:
    """A specification without any "auto", the feature columns it uses, and what was noticed.

    Args:
        width: encoded features, d, as far as the statistics tell.
        parameters: weights of the network on that many features.
        auto: the names of the values that were chosen, such as "optimizer.learning_rate".
    """

    spec: TrainSpec
    columns: tuple[str, ...]
    warnings: tuple[str, ...]
    width: int
    parameters: int
    auto: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Give the specification as the job shows it."""
        return self.spec.model_dump(mode="json")


def resolve(
    spec: TrainSpec, columns: Sequence[ColumnDescription], rows: int, default_target: str, limits: Limits
) -> Resolved:
    """Settle every "auto", and refuse what cannot train on this table.

    Args:
        columns: the columns' descriptions.
        rows: n.
        default_target: the column aimed at where the specification names none.

    Raises:
        Invalid: the target or the features cannot be used; says which and why.
        TooLarge: too many classes, encoded features or parameters.
    """
    by_name = {c["name"]: c for c in columns}
    target = default_target if spec.target is None else spec.target
    if target not in by_name:
        raise Invalid.at(("target",), f"Expected a column of the data set as target, got {target[:80]!r}.")
    classes = by_name[target]["unique"]
    if classes < 2:
        raise Invalid.at(("target",), f"Expected at least 2 classes in column {target!r}, got {classes}.")
    if classes > limits.classes:
        raise Invalid.at(
            ("target",),
            f"Expected at most {limits.classes} classes in column {target!r}, got {classes} distinct values.",
        )
    labelled = rows - by_name[target]["missing"]
    warnings = []
    if labelled < rows:
        warnings.append(f"{rows - labelled} rows without a value in target {target!r} are left out")
    used, notes = _features(spec.features, by_name, target)
    warnings += notes
    width = sum(_width(by_name[name], spec.features.encoding) for name in used)
    if width > limits.features:
        raise TooLarge(f"Expected at most {limits.features} encoded features, got {width}.")
    resolved = _settle(spec, target, labelled, limits)
    parameters = count_parameters(width, resolved, classes)
    if parameters > limits.parameters:
        raise TooLarge(f"Expected at most {limits.parameters} parameters, got {parameters}.")
    return Resolved(resolved, tuple(used), tuple(warnings), width, parameters, tuple(_autos(spec)))


def adopt(spec: TrainSpec, ref: str, inputs: Sequence[str], origin: TrainSpec) -> TrainSpec:
    """Take over what a version has settled, for a run that starts from its weights.

    Args:
        ref: the version, as the job is to show it.
        inputs: the version's input columns.
        origin: the version's resolved specification.

    Raises:
        Invalid: the specification asks for another target, other features or other layers than the version has.
    """
    if spec.target not in (None, origin.target):
        raise Invalid.at(("target",), f"Expected the target {origin.target!r} of {ref}, got {spec.target!r}.")
    features = origin.features.model_copy(update={"include": list(inputs), "exclude": []})
    for name in Features.model_fields:
        if getattr(spec.features, name) not in [
            getattr(each, name) for each in (Features(), origin.features, features)
        ]:
            raise Invalid.at(("features", name), f"Expected the features of {ref}, or none: it brings its own.")
    layers = [] if spec.network.layers is None else spec.network.layers
    same_layers = layers in ("auto", origin.network.layers)
    if not same_layers or (spec.network.batch_norm and not origin.network.batch_norm):
        raise Invalid.at(("network",), f"Expected the layers of {ref}, or none: it brings its own.")
    update = {"target": origin.target, "features": features, "network": origin.network, "start_from": ref}
    return spec.model_copy(update=update)


def _features(features: Features, by_name: Mapping[str, ColumnDescription], target: str) -> tuple[list[str], list[str]]:
    for side, names in (("include", features.include or []), ("exclude", features.exclude)):
        for i, name in enumerate(names):
            if name not in by_name:
                raise Invalid.at(("features", side, i), f"There is no column {name[:80]!r}.")
    if target in (features.include or []):
        raise Invalid.at(("features", "include"), f"The target {target!r} cannot be a feature too.")
    used, warnings = [], []
    for name, column in by_name.items():
        if (
            name == target
            or name in features.exclude
            or (features.include is not None and name not in features.include)
        ):
            continue
        if column["kind"] in ("text", "datetime"):
            if features.include is not None:
                raise Invalid.at(
                    ("features", "include"),
                    f"Column {name!r} is {column['kind']}; PATCH its kind to categorical to use it.",
                )
            warnings.append(f"column {name!r} is {column['kind']} and is left out")
        elif column["unique"] == 0:
            warnings.append(f"column {name!r} has no values and is left out")
        else:
            used.append(name)
    if not used:
        raise Invalid.at(("features",), "Expected at least one column to learn from, got none.")
    return used, warnings


def _width(column: ColumnDescription, encoding: str | None) -> int:
    marks = 1 if encoding == "auto" and column["missing"] else 0
    return marks + (column["unique"] if column["kind"] == "categorical" else 1)


def _settle(spec: TrainSpec, target: str, rows: int, limits: Limits) -> TrainSpec:
    validation = _validation(spec.validation)
    fraction = validation.fraction if validation is not None and validation.fraction is not None else 0.0
    fit = _fit(spec.fit, rows, round(rows * (1 - fraction)), limits, is_validated=validation is not None)
    layers = [] if spec.network.layers is None else spec.network.layers
    if layers == "auto":
        layers = [Layer(units=64)] if rows < WIDER_ROWS else [Layer(units=128), Layer(units=64)]
    scaling = _auto(spec.features.scaling, "standard") or "none"
    update = {
        "target": target,
        "validation": validation,
        "network": spec.network.model_copy(update={"layers": layers}),
        "optimizer": _optimizer(spec.optimizer, int(fit.batch_size)),
        "fit": fit,
        "features": spec.features.model_copy(
            update={"scaling": scaling, "encoding": spec.features.encoding or "plain"}
        ),
    }
    return spec.model_copy(update=update)


def _validation(asked: Validation | None) -> Validation | None:
    if asked is None:
        return None
    if asked.dataset is not None and asked.fraction is not None:
        raise Invalid.at(("validation",), "Expected fraction or dataset, got both.")
    return Validation(fraction=0.2) if asked.dataset is None and asked.fraction is None else asked


def _fit(asked: Fit, rows: int, training_rows: int, limits: Limits, *, is_validated: bool) -> Fit:
    seconds = asked.max_seconds or limits.seconds
    if seconds > limits.seconds:
        raise Invalid.at(("fit", "max_seconds"), f"Expected at most {limits.seconds} seconds, got {seconds}.")
    suited = min(LARGEST_BATCH, max(SMALLEST_BATCH, 2 ** round(math.log2(max(rows / 100, 1)))))
    batch = suited if asked.batch_size == "auto" else asked.batch_size
    steps = math.ceil(max(training_rows, 1) / batch)
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(STEPS / steps)))
    stops = asked.epochs == "auto" and is_validated
    fit = asked.model_copy(
        update={
            "epochs": _auto(asked.epochs, epochs),
            "batch_size": batch,
            "early_stopping": _auto(asked.early_stopping, EarlyStopping() if stops else None),
            "max_seconds": float(seconds),
        }
    )
    if fit.early_stopping is not None and not is_validated:
        raise Invalid.at(("fit", "early_stopping"), "Early stopping needs validation, got null.")
    return fit


def _optimizer(asked: Optimizer, batch: int) -> Optimizer:
    """Settle the optimizer: where its rate is explicit, all else is what Keras does by itself."""
    is_auto = asked.learning_rate == "auto"
    schedule = _auto(asked.schedule, "cosine" if is_auto else "constant") or "constant"
    warms_up = is_auto and asked.schedule == "auto"
    optimizer = asked.model_copy(
        update={
            "learning_rate": RATE * max(batch, SMALLEST_RATE_BATCH) / RATE_BATCH if is_auto else asked.learning_rate,
            "momentum": _auto(asked.momentum, MOMENTUM if is_auto else 0.0) or 0.0,
            "schedule": schedule,
            "warmup": _auto(asked.warmup, WARMUP if warms_up else 0.0) or 0.0,
        }
    )
    if optimizer.nesterov and not optimizer.momentum:
        raise Invalid.at(("optimizer", "nesterov"), "Nesterov needs a momentum above 0.")
    if optimizer.warmup and schedule != "cosine":
        raise Invalid.at(("optimizer", "warmup"), f"Expected warm-up ahead of a cosine schedule, got {schedule}.")
    return optimizer


def _auto(value: Any, default: Any) -> Any:
    return default if value == "auto" else value


def _autos(part: BaseModel, prefix: str = "") -> Iterator[str]:
    """Give the names of the values that are left to the service, such as "optimizer.learning_rate"."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        if value == "auto":
            yield f"{prefix}{name}"
        elif isinstance(value, BaseModel):
            yield from _autos(value, f"{prefix}{name}.")
