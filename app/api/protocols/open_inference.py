"""The Open Inference Protocol (V2), which KServe, Triton and MLServer speak: the server, its models, and inference.

Source: Open Inference Protocol, inference_rest.md; Triton's http_server.cc; KServe, protocol/rest/v2_endpoints.py.
"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from app import __version__
from app.api.deps import ServicesDep
from app.api.examples.media import BYTES, OBJECT, media
from app.api.examples.predictions import INFER
from app.api.openapi import UNCHECKED, documented_plainly, takes
from app.api.protocols.version_paths import MODEL, NUMBER, all_models, each_path, ref_of
from app.api.run_prediction import TimedVersion, admit
from app.api.schemas.open_inference import DATATYPES, ModelMetadata, ModelReady, ServerMetadata
from app.errors import Invalid, NotReady
from app.http.media_types import BINARY, JSON, JSON_LENGTH
from app.http.protocol_errors import OPEN_INFERENCE
from app.learning.requests.open_inference import LABEL, PROBABILITIES, read_infer_request
from app.learning.requests.open_inference_response import InferResponse, write_infer_response
from app.learning.tables.label import label_text

router = APIRouter(prefix=OPEN_INFERENCE, tags=["Open Inference Protocol"])

PATHS = (MODEL, NUMBER)
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")


@router.get("", response_model=UNCHECKED, summary="Get the server's metadata", responses=documented_plainly())
async def get_server() -> ServerMetadata:
    """Return the server's name and version, and the extensions of the protocol that it supports."""
    return {"name": "fitserve", "version": __version__, "extensions": list(EXTENSIONS)}


@router.get("/health/live", summary="Is the server alive?", responses=documented_plainly())
async def get_live() -> dict[str, bool]:
    """Answer as long as the event loop runs; nothing else is checked."""
    return {"live": True}


@router.get("/health/ready", summary="Does the server serve?", responses=documented_plainly())
async def get_ready(services: ServicesDep) -> dict[str, bool]:
    """Answer 200 from the end of start-up until shutdown begins."""
    if services.is_draining:
        raise NotReady("The service is stopping.")
    # the specification names this member live, but clients read ready
    return {"live": True, "ready": True}


@router.get("/models", summary="List models", responses=documented_plainly())
def list_served(services: ServicesDep) -> dict[str, list[str]]:
    """List the names of all models, as KServe does."""
    return {"models": [model.name for model in all_models(services.rooms.registry)]}


@each_path(
    router,
    "GET",
    "",
    PATHS,
    response_model=UNCHECKED,
    summary="Get a model's metadata",
    responses=documented_plainly(400, 404),
)
def get_served(request: Request, services: ServicesDep) -> ModelMetadata:
    """Return a version's inputs, one for each column, its outputs, and the numbers of all versions of the model."""
    version = services.rooms.registry.resolve(ref_of(request))
    model = services.rooms.registry.get(version.model)
    classes = len(version.document["classes"])
    return {
        "name": version.model,
        "versions": [str(version.version) for version in reversed(model.versions)],
        "platform": "keras",
        "inputs": [
            {"name": column["name"], "datatype": DATATYPES[column["kind"]], "shape": [-1]}
            for column in version.document["inputs"]
        ],
        "outputs": [
            {"name": LABEL, "datatype": "BYTES", "shape": [-1]},
            {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, classes]},
        ],
    }


@each_path(
    router,
    "GET",
    "/ready",
    PATHS,
    response_model=UNCHECKED,
    summary="Is a model ready?",
    responses=documented_plainly(400, 404),
)
def get_served_ready(request: Request, services: ServicesDep) -> ModelReady:
    """Load a version unless it is in memory; answer 200 if it can be used, and 503 if its files are damaged."""
    loaded = services.version_cache.get(ref_of(request))
    return {"name": loaded.version.model, "ready": True}


@each_path(
    router,
    "POST",
    "/infer",
    PATHS,
    response_class=Response,
    summary="Infer",
    responses=documented_plainly(
        *(400, 404, 408, 413, 415),
        ok={
            "description": "The label and the probabilities of each row, or the outputs that were asked for.",
            "content": {JSON: media(OBJECT), BINARY: media(BYTES)},
        },
    ),
    openapi_extra=takes(INFER),
)
async def infer(request: Request, services: ServicesDep) -> Response:
    """Predict rows: a tensor of shape [rows] or [rows, 1] for each column, or one tensor [rows, columns] of another name.

    Tensors are JSON, or bytes behind the JSON, whose length is `Inference-Header-Content-Length`. `null` and NaN are
    missing values. The outputs are `label` (BYTES) and `probabilities` (FP32). With the parameter `classification: k`,
    `probabilities` are the k best classes as `value:index:label`.
    """
    header = request.headers.get(JSON_LENGTH)
    if header is not None and not (header.isascii() and header.isdigit() and len(header) < 16):
        raise Invalid.at((JSON_LENGTH,), f"Expected {JSON_LENGTH} to be a number of bytes.")
    json_bytes = None if header is None else int(header)
    async with admit(request, services) as admitted:
        body, length = await admitted.run(ref_of(request), partial(_infer, admitted.body, json_bytes))
    if length is None:
        return Response(body, media_type=JSON)
    return Response(body, headers={JSON_LENGTH: str(length)}, media_type=BINARY)


def _infer(body: bytes, json_bytes: int | None, timed: TimedVersion) -> tuple[bytes, int | None]:
    infer_request = read_infer_request(body, json_bytes, timed.columns)
    prediction = timed.predict_known(infer_request.rows)
    classes = [label_text(label) for label in prediction.classes]
    labels = [classes[i] for i in prediction.probabilities.argmax(axis=1).tolist()]
    version = timed.loaded.version
    head = {"model_name": version.model, "model_version": str(version.version)}
    head |= {} if infer_request.id is None else {"id": infer_request.id}
    return write_infer_response(InferResponse(labels, prediction.probabilities, classes), infer_request.outputs, head)
