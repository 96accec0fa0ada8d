"""The network as plain data: its layers, the names and shapes of its weights. Knows nothing that computes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from app.learning.spec import ActivationName, Layer, TrainSpec

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Dense:
    """`activation(x @ kernel + bias)`; the last layer of a network has the activation softmax."""

    units: int
    activation: str
    l2: float = 0.0
    type: Literal["dense"] = "dense"


@dataclass(frozen=True)
class BatchNorm:
    """Normalisation by the moving mean and variance, then a learned scale and shift."""

    type: Literal["batch_norm"] = "batch_norm"


@dataclass(frozen=True)
class Activation:
    """An activation on its own, after a batch normalisation."""

    activation: str
    type: Literal["activation"] = "activation"


@dataclass(frozen=True)
class Dropout:
    """Dropout, which does nothing at prediction."""

    rate: float
    type: Literal["dropout"] = "dropout"


@dataclass(frozen=True)
class Rescaling:
    """`x * scale + offset` ahead of an exported network; scale and offset are float64 (d,), and float32 in the file."""

    scale: NDArray[np.float64]
    offset: NDArray[np.float64]


Part = Dense | BatchNorm | Activation | Dropout
_PARTS: dict[str, type[Part]] = {"dense": Dense, "batch_norm": BatchNorm, "activation": Activation, "dropout": Dropout}


@dataclass(frozen=True)
class Architecture:
    """A Sequential network of `inputs` numbers; its last part is Dense with softmax."""

    inputs: int
    parts: tuple[Part, ...]

    @classmethod
    def from_spec(cls, spec: TrainSpec, inputs: int, classes: int) -> Architecture:
        """Lay out the network that a resolved specification asks for."""
        parts: list[Part] = []
        for layer in spec.network.layers or []:
            assert isinstance(layer, Layer)
            if spec.network.batch_norm:
                parts += [Dense(layer.units, "linear", layer.l2), BatchNorm(), Activation(layer.activation)]
            else:
                parts.append(Dense(layer.units, layer.activation, layer.l2))
            if layer.dropout:
                parts.append(Dropout(layer.dropout))
        return cls(inputs, (*parts, Dense(classes, "softmax")))

    @property
    def classes(self) -> int:
        """The number of classes, k."""
        last = self.parts[-1]
        assert isinstance(last, Dense)
        return last.units

    def document(self) -> dict[str, object]:
        """Return the architecture as plain JSON."""
        return {"inputs": self.inputs, "parts": [asdict(part) for part in self.parts]}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Architecture:
        """Rebuild an architecture from its document.

        Raises:
            LookupError: there is no such part.
            ValueError: there is no such activation, or the last part is no softmax layer.
        """
        parts = [_PARTS[part["type"]](**part) for part in document["parts"]]
        for part in parts[:-1]:
            if isinstance(part, Dense | Activation) and part.activation not in get_args(ActivationName):
                raise ValueError(f"there is no activation {part.activation!r}")
        if not isinstance(parts[-1], Dense) or parts[-1].activation != "softmax":
            raise ValueError("the last part is no softmax layer")
        return cls(int(document["inputs"]), tuple(parts))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every weight's name and shape, in Keras's order, such as `0.kernel` (d_in, d_out) and `0.bias` (d_out,)."""
        shapes: dict[str, tuple[int, ...]] = {}
        width = self.inputs
        for i, part in enumerate(self.parts):
            if isinstance(part, Dense):
                shapes |= {f"{i}.kernel": (width, part.units), f"{i}.bias": (part.units,)}
                width = part.units
            elif isinstance(part, BatchNorm):
                shapes |= {f"{i}.{name}": (width,) for name in ("gamma", "beta", "mean", "variance")}
        return shapes

    def penalty(self, weights: Weights) -> float:
        """Return the sum of the l2 penalties, which Keras adds to its loss."""
        dense = [(i, p.l2) for i, p in enumerate(self.parts) if isinstance(p, Dense) and p.l2]
        return sum(l2 * float(np.square(weights[f"{i}.kernel"].astype(np.float64)).sum()) for i, l2 in dense)
