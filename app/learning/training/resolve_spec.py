"""A training specification for a table: every "auto" settled, and refused what cannot train on this table.

Knows the table by its statistics only; knows nothing of Keras. The rules for "auto" are in `auto_values`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from app.errors import Invalid, TooLarge
from app.learning.spec import TrainSpec, Validation, count_parameters
from app.learning.tables.describe_column import ColumnDescription
from app.learning.training.auto_values import auto_or, settle_fit, settle_network, settle_optimizer
from app.learning.training.choose_features import choose_features, encoded_width

#: the fraction of the rows that is held out where a specification does not say
VALIDATION_FRACTION = 0.2


@dataclass(frozen=True)
class Limits:
    """The largest job that is accepted.

    Args:
        seconds: the longest time limit that a job may ask for.
        encoded_bytes: of encoded rows in memory; more of them stay on disk.
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
    """A specification without any "auto", and what follows from it for the table.

    Args:
        columns: the feature columns.
        warnings: what was noticed, in sentences.
        width: encoded features, d, as far as the statistics say.
        parameters: weights of the network on so many features.
        auto: the names of the values that were chosen, such as "optimizer.learning_rate".
    """

    spec: TrainSpec
    columns: tuple[str, ...]
    warnings: tuple[str, ...]
    width: int
    parameters: int
    auto: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the specification as JSON, as the job shows it."""
        return self.spec.model_dump(mode="json")


def resolve(
    spec: TrainSpec, columns: Sequence[ColumnDescription], rows: int, default_target: str, limits: Limits
) -> Resolved:
    """Settle every "auto", and refuse what cannot train on this table.

    Args:
        columns: the columns' descriptions.
        rows: n.
        default_target: the column to predict where the specification names none.

    Raises:
        Invalid: the target or the features cannot be used; says which and why.
        TooLarge: too many classes, encoded features or parameters.
    """
    by_name = {column["name"]: column for column in columns}
    target = default_target if spec.target is None else spec.target
    if target not in by_name:
        raise Invalid.at(("target",), f"Expected a column of the data set as target, got {target[:80]!r}.")
    classes, labelled = _check_target(by_name[target], rows, limits)
    warnings = []
    if labelled < rows:
        warnings.append(f"{rows - labelled} rows without a value in target {target!r} are left out")
    used, left_out = choose_features(spec.features, by_name, target)
    warnings += left_out
    width = sum(encoded_width(by_name[name], spec.features.encoding) for name in used)
    if width > limits.features:
        raise TooLarge(f"Expected at most {limits.features} encoded features, got {width}.")
    settled = _settle(spec, target, labelled, limits)
    parameters = count_parameters(width, settled, classes)
    if parameters > limits.parameters:
        raise TooLarge(f"Expected at most {limits.parameters} parameters, got {parameters}.")
    return Resolved(settled, tuple(used), tuple(warnings), width, parameters, tuple(_auto_names(spec)))


def _check_target(column: ColumnDescription, rows: int, limits: Limits) -> tuple[int, int]:
    """Return the number of classes, and of rows that have a label."""
    name, classes = column["name"], column["unique"]
    if classes < 2:
        raise Invalid.at(("target",), f"Expected at least 2 classes in column {name!r}, got {classes}.")
    if classes > limits.classes:
        raise Invalid.at(
            ("target",),
            f"Expected at most {limits.classes} classes in column {name!r}, got {classes} distinct values.",
        )
    return classes, rows - column["missing"]


def _settle(spec: TrainSpec, target: str, rows: int, limits: Limits) -> TrainSpec:
    validation = _settle_validation(spec.validation)
    fraction = validation.fraction if validation is not None and validation.fraction is not None else 0.0
    training_rows = round(rows * (1 - fraction))
    fit = settle_fit(spec.fit, rows, training_rows, limits.seconds, is_validated=validation is not None)
    features = {
        "scaling": auto_or(spec.features.scaling, "standard") or "none",
        "encoding": spec.features.encoding or "plain",
    }
    update = {
        "target": target,
        "validation": validation,
        "network": settle_network(spec.network, rows),
        "optimizer": settle_optimizer(spec.optimizer, int(fit.batch_size)),
        "fit": fit,
        "features": spec.features.model_copy(update=features),
    }
    return spec.model_copy(update=update)


def _settle_validation(validation: Validation | None) -> Validation | None:
    if validation is None:
        return None
    if validation.dataset is not None and validation.fraction is not None:
        raise Invalid.at(("validation",), "Expected fraction or dataset, got both.")
    is_empty = validation.dataset is None and validation.fraction is None
    return Validation(fraction=VALIDATION_FRACTION) if is_empty else validation


def _auto_names(part: BaseModel, prefix: str = "") -> Iterator[str]:
    """Return the names of the values that are left to the service, such as "optimizer.learning_rate"."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        if value == "auto":
            yield f"{prefix}{name}"
        elif isinstance(value, BaseModel):
            yield from _auto_names(value, f"{prefix}{name}.")
