"""Responses of the Open Inference Protocol: labels and probabilities as tensors. Knows neither HTTP nor a network.

Source: Open Inference Protocol, inference_rest.md; Triton's extension_binary_data.md and extension_classification.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from app.learning.requests.open_inference import LABEL, RequestedOutput
from app.learning.requests.open_inference_tensors import BYTES, to_bytes


@dataclass(frozen=True)
class InferResponse:
    """A version's prediction: n labels as texts, probabilities float32 (n, k), and the k classes as texts."""

    labels: Sequence[str]
    probabilities: NDArray[np.float32]
    classes: Sequence[str]


def write_infer_response(
    response: InferResponse, outputs: Sequence[RequestedOutput], head: Mapping[str, object]
) -> tuple[bytes, int | None]:
    """Write a response.

    Args:
        head: the members before the outputs: the model, its version, the request's id.

    Returns:
        The body, and the length of its JSON where tensors follow as bytes, else None.
    """
    documents: list[dict[str, object]] = []
    tail: list[bytes] = []
    for output in outputs:
        datatype, shape, values = _tensor(response, output)
        document: dict[str, object] = {"name": output.name, "datatype": datatype, "shape": shape}
        if output.is_binary:
            tail.append(to_bytes(values))
            document["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            document["data"] = values
        documents.append(document)
    text = orjson.dumps({**head, "outputs": documents}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((text, *tail)), len(text)) if tail else (text, None)


def _tensor(
    response: InferResponse, output: RequestedOutput
) -> tuple[str, list[int], Sequence[str] | NDArray[np.float32]]:
    """Return an output's datatype, shape and values."""
    rows, classes = response.probabilities.shape
    if output.name == LABEL:
        return BYTES, [rows], response.labels
    if output.top is None:
        return "FP32", [rows, classes], np.ascontiguousarray(response.probabilities).ravel()
    best = np.argsort(-response.probabilities, axis=1, kind="stable")[:, : output.top]
    texts = [
        f"{row[i]!s}:{i}:{response.classes[i]}"
        for row, order in zip(response.probabilities, best.tolist(), strict=True)
        for i in order
    ]
    return BYTES, list(best.shape), texts
