"""The training specification: what may be asked, and what `"auto"` becomes for a table.

Knows the table only by its statistics; knows nothing of Keras.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.errors import Invalid, TooLarge

Auto = Literal["auto"]
Activation = Literal[
    "relu", "elu", "gelu", "leaky_relu", "linear", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh"
]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]

#: what a caller calls a version: `name`, `name@3` or `name@alias`
REF_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(@[A-Za-z0-9][A-Za-z0-9_.-]{0,63})?$"
#: the rates that suit standardised inputs and momentum at batch 32
AUTO_LEARNING_RATE = 0.02
AUTO_MOMENTUM = 0.9
AUTO_EPOCHS = 100
AUTO_PATIENCE = 15
KERAS_LEARNING_RATE = 0.01  # keras.optimizers.SGD's own default


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Features(_Part):
    """Which columns are used, and how they become numbers."""

    include: list[str] | None = Field(None, description="Only these columns; default all but the target.")
    exclude: list[str] = Field(default=[], description="Leave these columns out.")
    scaling: Literal["auto", "standard", "none"] | None = Field(
        "auto", description="auto is standard: zero mean, unit variance; null is none."
    )
    encoding: Literal["auto", "plain"] | None = Field(
        "auto",
        description="auto marks missing values in a column of their own; plain is one-hot and numbers alone, as is null.",
    )


class Validation(_Part):
    """What is held out: a stratified, seeded fraction, or another data set."""

    fraction: Annotated[float, Field(gt=0, le=0.9)] | None = Field(None, description="Fraction of the rows.")
    dataset: str | None = Field(None, description="Id of a data set with the same columns.")


class Layer(_Part):
    """One hidden Dense layer."""

    units: Annotated[int, Field(ge=1, le=65_536)]
    activation: Activation = "relu"
    dropout: Fraction = Field(0.0, description="Fraction of outputs dropped while training.")
    l2: NonNegative = Field(0.0, description="Penalty on the squared weights.")


class Network(_Part):
    """The hidden layers; the softmax layer is added."""

    layers: Annotated[list[Layer], Field(max_length=64)] | Auto | None = Field(
        "auto", description="null, as an empty list, is no hidden layer."
    )
    batch_norm: bool = Field(False, description="Normalise between each hidden layer and its activation.")


class Optimizer(_Part):
    """Stochastic gradient descent."""

    learning_rate: Positive | Auto = "auto"
    momentum: Fraction | Auto | None = "auto"
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    schedule: Literal["auto", "constant", "cosine", "exponential", "step"] | None = "auto"


class EarlyStopping(_Part):
    """Stop when `optimize` has not improved for `patience` epochs, and keep the best weights."""

    patience: Annotated[int, Field(ge=1, le=10_000)] = AUTO_PATIENCE
    min_delta: NonNegative = 0.0
    restore_best_weights: bool = True


class Fit(_Part):
    """How long and in what steps."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] | Auto = "auto"
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | Auto = "auto"
    shuffle: bool = True
    class_weight: dict[str, Positive] | Literal["balanced"] | None = Field(
        None, description='"balanced", or a weight for each class by its label.'
    )
    label_smoothing: Fraction = 0.0
    early_stopping: EarlyStopping | Auto | None = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    deterministic: bool = Field(False, description="Only operations that give the same bits each time.")
    max_seconds: Positive | None = None


class TrainSpec(_Part):
    """A training request, but for its data."""

    target: str | None = Field(None, description='The column to predict; default "y" or the last one.')
    features: Features = Features()
    validation: Validation | None = Validation(fraction=0.2)
    network: Network = Network()
    optimizer: Optimizer = Optimizer()
    fit: Fit = Fit()
    start_from: Annotated[str, Field(pattern=REF_PATTERN)] | None = Field(
        None, description="A version whose weights, features and layers training starts from, such as iris@3."
    )
    optimize: Literal["log_loss", "accuracy", "balanced_accuracy", "macro_f1", "roc_auc"] = "log_loss"
    promote: Literal["always", "if_better", "never"] = "always"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|gpu(:\d{1,2})?)$")] = "auto"
    tags: Annotated[dict[str, Annotated[str, Field(max_length=200)]], Field(max_length=50)] = {}


@dataclass(frozen=True)
class Limits:
    """What a job may ask for at most."""

    classes: int
    features: int
    parameters: int
    seconds: float


@dataclass(frozen=True)
class Resolved:
    """A specification without any "auto", the feature columns it uses, and what was noticed.

    Args:
        width: encoded features, d, as far as the statistics tell.
        parameters: weights of the network on that many features.
    """

    spec: TrainSpec
    columns: tuple[str, ...]
    warnings: tuple[str, ...]
    width: int
    parameters: int

    def document(self) -> dict[str, Any]:
        """Give the specification as the job shows it."""
        return self.spec.model_dump(mode="json")


def resolve(
    spec: TrainSpec, columns: Sequence[dict[str, Any]], rows: int, default_target: str, limits: Limits
) -> Resolved:
    """Settle every "auto", and refuse what cannot train on this table.

    Args:
        columns: descriptions as `Column.describe` gives them.
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
    return Resolved(resolved, tuple(used), tuple(warnings), width, parameters)


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


def _features(features: Features, by_name: dict[str, Any], target: str) -> tuple[list[str], list[str]]:
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


def _width(column: dict[str, Any], encoding: str | None) -> int:
    marks = 1 if encoding == "auto" and column["missing"] else 0
    return marks + (column["unique"] if column["kind"] == "categorical" else 1)


def _settle(spec: TrainSpec, target: str, rows: int, limits: Limits) -> TrainSpec:
    is_auto = spec.optimizer.learning_rate == "auto"
    validation = spec.validation
    if validation is not None and validation.dataset is None and validation.fraction is None:
        validation = Validation(fraction=0.2)
    if validation is not None and validation.dataset is not None and validation.fraction is not None:
        raise Invalid.at(("validation",), "Expected fraction or dataset, got both.")
    seconds = spec.fit.max_seconds or limits.seconds
    if seconds > limits.seconds:
        raise Invalid.at(("fit", "max_seconds"), f"Expected at most {limits.seconds} seconds, got {seconds}.")
    asked = spec.fit.batch_size
    batch = asked if isinstance(asked, int) else min(256, max(16, 2 ** round(math.log2(max(rows / 100, 1)))))
    layers = [] if spec.network.layers is None else spec.network.layers
    if layers == "auto":
        layers = [Layer(units=64)] if rows < 2000 else [Layer(units=128), Layer(units=64)]
    optimizer = spec.optimizer.model_copy(
        update={
            "learning_rate": AUTO_LEARNING_RATE * math.sqrt(batch / 32) if is_auto else spec.optimizer.learning_rate,
            "momentum": _auto(spec.optimizer.momentum, AUTO_MOMENTUM if is_auto else 0.0) or 0.0,
            "schedule": _auto(spec.optimizer.schedule, "cosine" if is_auto else "constant") or "constant",
        }
    )
    stops = spec.fit.epochs == "auto" and validation is not None
    fit = spec.fit.model_copy(
        update={
            "epochs": _auto(spec.fit.epochs, AUTO_EPOCHS),
            "batch_size": batch,
            "early_stopping": _auto(spec.fit.early_stopping, EarlyStopping() if stops else None),
            "max_seconds": float(seconds),
        }
    )
    if fit.early_stopping is not None and validation is None:
        raise Invalid.at(("fit", "early_stopping"), "Early stopping needs validation, got null.")
    if optimizer.nesterov and not optimizer.momentum:
        raise Invalid.at(("optimizer", "nesterov"), "Nesterov needs a momentum above 0.")
    network = spec.network.model_copy(update={"layers": layers})
    scaling = _auto(spec.features.scaling, "standard") or "none"
    features = spec.features.model_copy(update={"scaling": scaling, "encoding": spec.features.encoding or "plain"})
    update = {
        "target": target,
        "validation": validation,
        "network": network,
        "optimizer": optimizer,
        "fit": fit,
        "features": features,
    }
    return spec.model_copy(update=update)


def _auto(value: Any, default: Any) -> Any:
    return default if value == "auto" else value


def count_parameters(inputs: int, spec: TrainSpec, classes: int) -> int:
    """Count the network's weights, those of batch normalisation included."""
    widths = [inputs, *(layer.units for layer in spec.network.layers or [] if isinstance(layer, Layer)), classes]
    dense = sum((a + 1) * b for a, b in pairwise(widths))
    return dense + (4 * sum(widths[1:-1]) if spec.network.batch_norm else 0)
