"""The training specification: what may be asked. Knows no table, and nothing of Keras."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.names import REF

Auto = Literal["auto"]
ActivationName = Literal[
    "relu", "elu", "gelu", "leaky_relu", "linear", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh"
]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]

AUTO_PATIENCE = 15


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
    activation: ActivationName = "relu"
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
    warmup: Fraction | Auto | None = Field(
        "auto", description="Fraction of all steps in which the rate rises from zero, ahead of a cosine schedule."
    )
    clip_norm: Positive | None = Field(None, description="The gradients' common norm is cut to this.")


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
    start_from: Annotated[str, Field(pattern=f"^{REF}$")] | None = Field(
        None, description="A version whose weights, features and layers training starts from, such as iris@3."
    )
    optimize: Literal["log_loss", "accuracy", "balanced_accuracy", "macro_f1", "roc_auc"] = "log_loss"
    promote: Literal["always", "if_better", "never"] = "always"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|gpu(:\d{1,2})?)$")] = "auto"
    tags: Annotated[dict[str, Annotated[str, Field(max_length=200)]], Field(max_length=50)] = {}


def count_parameters(inputs: int, spec: TrainSpec, classes: int) -> int:
    """Count the network's weights, those of batch normalisation included."""
    widths = [inputs, *(layer.units for layer in spec.network.layers or [] if isinstance(layer, Layer)), classes]
    dense = sum((a + 1) * b for a, b in pairwise(widths))
    return dense + (4 * sum(widths[1:-1]) if spec.network.batch_norm else 0)
