"""The network as files of other programs, written by Keras: `.keras`, SavedModel and LiteRT; and read back to be checked."""

from __future__ import annotations

import keras
import numpy as np
from numpy.typing import NDArray

from app.learning.network.architecture import Architecture, Rescaling, Weights
from app.learning.network.keras_network import build, set_weights


def write_keras_file(
    form: str, architecture: Architecture, weights: Weights, rescaling: Rescaling | None, path: str
) -> None:
    """Write a network as a file of another program.

    Args:
        form: "keras" (a `.keras` file), "saved_model" (a folder) or "litert" (a `.tflite` file).
        rescaling: applied to the raw numbers inside the file; None where the file takes encoded rows.
    """
    network = build(architecture)
    set_weights(network, architecture, weights)
    model = network
    if rescaling is not None:
        first = keras.layers.Rescaling(rescaling.scale, rescaling.offset)
        model = keras.Sequential([keras.Input((architecture.inputs,)), first, *network.layers])
    if form == "keras":
        model.save(path)
    else:
        model.export(path, format={"saved_model": "tf_saved_model"}.get(form, form), verbose=False)


def run_keras_file(form: str, path: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Read back a file that `write_keras_file` wrote in this process, and predict: float32 (n, d) to (n, k)."""
    if form == "keras":
        model = keras.models.load_model(path, compile=False)
        out: NDArray[np.float32] = keras.ops.convert_to_numpy(model(x, training=False))
        return out
    import tensorflow as tf

    if form == "saved_model":
        signature = tf.saved_model.load(path).signatures["serving_default"]
        (answer,) = signature(tf.constant(x)).values()
        return np.asarray(answer)
    interpreter = tf.lite.Interpreter(path)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], x)
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(target["index"]))
