"""Triton's extension of the Open Inference Protocol for a model's configuration.

Source: Triton, docs/protocol/extension_model_configuration.md.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.api.deps import ServicesDep
from app.api.openapi import UNCHECKED, documented_plainly
from app.api.protocols.version_paths import MODEL, NUMBER, each_way, named
from app.api.schemas.open_inference import DATATYPES, ModelConfiguration
from app.http.protocol_errors import OPEN_INFERENCE
from app.learning.requests.open_inference import LABEL, PROBABILITIES

router = APIRouter(prefix=OPEN_INFERENCE, tags=["Open Inference Protocol"])

_TYPES = {"FP64": "TYPE_FP64", "BOOL": "TYPE_BOOL", "BYTES": "TYPE_STRING"}


@each_way(
    router,
    "GET",
    "/config",
    (MODEL, NUMBER),
    response_model=UNCHECKED,
    summary="Get a model's configuration",
    responses=documented_plainly(400, 404),
)
def get_configuration(request: Request, services: ServicesDep) -> ModelConfiguration:
    """Give the inputs and outputs of a version as Triton's configuration has them; the first dimension is the rows."""
    version = services.rooms.registry.resolve(named(request))
    columns = [(each["name"], _TYPES[DATATYPES[each["kind"]]], [-1]) for each in version.document["inputs"]]
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
