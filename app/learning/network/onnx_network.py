"""The network as an ONNX graph, and ONNX Runtime, which computes it on the CPU. Knows neither Keras nor the encoder.

The graph is built in memory from the weights. ONNX Runtime is the fastest runtime measured on a CPU, and the bits of a
row's answer do not depend on the other rows of the call.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.learning.network.architecture import Activation, Architecture, BatchNorm, Dense, Rescaling, Weights

BATCH_NORM_EPSILON = 1e-3  # keras.layers.BatchNormalization's default
LEAKY_RELU_SLOPE = 0.2  # keras.activations.leaky_relu's default
_OPSET = 20  # the first with Gelu
_IR_VERSION = 10
#: rows that ONNX Runtime computes at once: the memory of a call grows with its rows
CALL_ROWS = 8192
#: operators by the activation's name; linear and silu have none of their own
_OPERATORS = {
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
        starts = range(0, max(len(x), 1), CALL_ROWS)
        parts = [self._session.run([output], {"x": x[start : start + CALL_ROWS]})[0] for start in starts]
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
        return add(_OPERATORS[name], [at], f"{i}.out", **attributes)

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
