"""Triton's model configuration extension of the Open Inference Protocol.

Source: Triton, docs/protocol/extension_model_configuration.md.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.api.deps import ServicesDep
from app.api.openapi import UNCHECKED, documented_plainly
from app.api.protocols.version_paths import MODEL, NUMBER, each_path, ref_of
from app.api.schemas.open_inference import DATATYPES, ModelConfiguration
from app.http.protocol_errors import OPEN_INFERENCE
from app.learning.requests.open_inference import LABEL, PROBABILITIES

router = APIRouter(prefix=OPEN_INFERENCE, tags=["Open Inference Protocol"])

_TYPES = {"FP64": "TYPE_FP64", "BOOL": "TYPE_BOOL", "BYTES": "TYPE_STRING"}


@each_path(
    router,
    "GET",
    "/config",
    (MODEL, NUMBER),
    response_model=UNCHECKED,
    summary="Get a model's configuration",
    responses=documented_plainly(400, 404),
)
def get_configuration(request: Request, services: ServicesDep) -> ModelConfiguration:
    """Return the inputs and outputs of a version in the form of Triton's configuration. The first dimension is the rows."""
    version = services.rooms.registry.resolve(ref_of(request))
    columns = [(column["name"], _TYPES[DATATYPES[column["kind"]]], [-1]) for column in version.document["inputs"]]
    classes = len(version.document["classes"])
    outputs = [(LABEL, "TYPE_STRING", [-1]), (PROBABILITIES, "TYPE_FP32", [-1, classes])]
    return {
        "name": version.model,
        "platform": "",
        "backend": "keras",
        "version_policy": {"all": {}},
        "max_batch_size": 0,
        "input": [{"name": name, "data_type": kind, "dims": dims} for name, kind, dims in columns],
        "output": [{"name": name, "data_type": kind, "dims": dims} for name, kind, dims in outputs],
    }
