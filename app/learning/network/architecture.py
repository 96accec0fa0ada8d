"""The network as plain data, and as an ONNX graph for the CPU. Knows neither Keras nor the encoder.

The graph is built in memory from the weights: the fastest runtime measured on a CPU, and a row's answer has the
same bits whatever it is batched with.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.learning.spec import Layer, TrainSpec

Weights = Mapping[str, NDArray[np.float32]]
BATCH_NORM_EPSILON = 1e-3  # keras.layers.BatchNormalization's default
LEAKY_RELU_SLOPE = 0.2  # keras.activations.leaky_relu's default
_OPSET = 20  # the first with Gelu
_IR_VERSION = 10
#: rows that are computed at once
CALL_ROWS = 8192


@dataclass(frozen=True)
class Dense:
    """`activation(x @ kernel + bias)`; the last one of a network has the activation softmax."""

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
    """Dropout; does nothing at prediction."""

    rate: float
    type: Literal["dropout"] = "dropout"


@dataclass(frozen=True)
class Rescaling:
    """`x * scale + offset`, float64 (d,) each, ahead of a network that is exported; in the file it is float32."""

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

    def document(self) -> dict[str, Any]:
        """Give the architecture as plain JSON."""
        return {"inputs": self.inputs, "parts": [asdict(part) for part in self.parts]}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Architecture:
        """Rebuild an architecture; only the parts and activations listed here exist, else `LookupError` or `ValueError`."""
        parts = [_PARTS[part["type"]](**part) for part in document["parts"]]
        for part in parts[:-1]:
            if isinstance(part, Dense | Activation) and part.activation not in {"linear", "silu", *_ONNX}:
                raise ValueError(f"there is no activation {part.activation!r}")
        if not isinstance(parts[-1], Dense) or parts[-1].activation != "softmax":
            raise ValueError("the last part is no softmax layer")
        return cls(int(document["inputs"]), tuple(parts))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Give every weight's name and shape, in Keras's order, such as `0.kernel` (d_in, d_out) and `0.bias` (d_out,)."""
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
        """Give the sum of the l2 penalties, which Keras counts in its loss."""
        dense = [(i, p.l2) for i, p in enumerate(self.parts) if isinstance(p, Dense) and p.l2]
        return sum(l2 * float(np.square(weights[f"{i}.kernel"].astype(np.float64)).sum()) for i, l2 in dense)


class Runtime(Protocol):
    """A network that is ready to compute."""

    @property
    def device(self) -> str:
        """Where it computes: "cpu" or "gpu:0"."""

    @property
    def library(self) -> str:
        """What computes."""

    @property
    def cpu_rows(self) -> int:
        """The most rows that the processor computes."""

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (n, d) to class probabilities float32 (n, k)."""

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (n, d) to the softmax's inputs, float32 (n, k)."""


class OnnxRuntime:
    """ONNX Runtime on the CPU, one thread; safe to call from several threads."""

    device = "cpu"
    library = "onnxruntime"
    cpu_rows = sys.maxsize

    def __init__(self, architecture: Architecture, weights: Weights) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        graph = to_onnx(architecture, weights)
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (n, d) to class probabilities float32 (n, k)."""
        return self._run("probabilities", x)

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (n, d) to the softmax's inputs, float32 (n, k)."""
        return self._run("logits", x)

    def _run(self, output: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        # what a call holds between the layers grows with its rows
        parts = [
            self._session.run([output], {"x": x[at : at + CALL_ROWS]})[0] for at in range(0, max(len(x), 1), CALL_ROWS)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def to_onnx(architecture: Architecture, weights: Weights, rescaling: Rescaling | None = None) -> bytes:
    """Write a network as an ONNX model: input `x` (n, d), outputs `logits` and `probabilities` (n, k)."""
    # imported here: a process that has no version to load is smaller and starts sooner without it
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    tensors = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()]
    at = "x"

    def add(op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def activate(name: str, i: int) -> str:
        if name == "linear":
            return at
        if name == "silu":
            return add("Mul", [at, add("Sigmoid", [at], f"{i}.sigmoid")], f"{i}.out")
        attributes = {"alpha": LEAKY_RELU_SLOPE} if name == "leaky_relu" else {}
        return add(_ONNX[name], [at], f"{i}.out", **attributes)

    if rescaling is not None:
        for name, value in (("scale", rescaling.scale), ("offset", rescaling.offset)):
            tensors.append(numpy_helper.from_array(value.astype(np.float32), name))
        at = add("Add", [add("Mul", [at, "scale"], "scaled"), "offset"], "rescaled")
    last = len(architecture.parts) - 1
    for i, part in enumerate(architecture.parts):
        if isinstance(part, Dense):
            at = add("Gemm", [at, f"{i}.kernel", f"{i}.bias"], "logits" if i == last else f"{i}.dense")
            at = add("Softmax", [at], "probabilities", axis=-1) if i == last else activate(part.activation, i)
        elif isinstance(part, BatchNorm):
            names = [at, *(f"{i}.{name}" for name in ("gamma", "beta", "mean", "variance"))]
            at = add("BatchNormalization", names, f"{i}.norm", epsilon=BATCH_NORM_EPSILON)
        elif isinstance(part, Activation):
            at = activate(part.activation, i)
    shape = ["n", architecture.classes]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("logits", "probabilities")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", architecture.inputs])]
    graph = helper.make_graph(nodes, "network", inputs, outputs, tensors)
    opset = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())


def run_onnx(model: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the probabilities (n, k) of an ONNX model that `to_onnx` wrote, on the CPU."""
    (out,) = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(["probabilities"], {"x": x})
    return out  # type: ignore[no-any-return]


_ONNX = {
    "relu": "Relu",
    "elu": "Elu",
    "gelu": "Gelu",
    "leaky_relu": "LeakyRelu",
    "selu": "Selu",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "tanh": "Tanh",
}
