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
from app.api.protocols.version_paths import MODEL, NUMBER, each_way, every_model, named
from app.api.run_prediction import TimedVersion, admitted
from app.api.schemas.open_inference import DATATYPES, ModelMetadata, ModelReady, ServerMetadata
from app.errors import Invalid, NotReady
from app.http.media_types import BINARY, JSON, JSON_LENGTH
from app.http.protocol_errors import OPEN_INFERENCE
from app.learning.requests.open_inference import LABEL, PROBABILITIES, read_infer_request
from app.learning.requests.open_inference_response import InferResponse, write_infer_response
from app.learning.tables.label import label_text

router = APIRouter(prefix=OPEN_INFERENCE, tags=["Open Inference Protocol"])

WAYS = (MODEL, NUMBER)
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")


@router.get("", response_model=UNCHECKED, summary="Get the server's metadata", responses=documented_plainly())
async def get_server() -> ServerMetadata:
    """Give the name, the version and the extensions of the protocol that are spoken."""
    return {"name": "fitserve", "version": __version__, "extensions": list(EXTENSIONS)}


@router.get("/health/live", summary="Is the server alive?", responses=documented_plainly())
async def get_live() -> dict[str, bool]:
    """Answer from the event loop alone."""
    return {"live": True}


@router.get("/health/ready", summary="Does the server serve?", responses=documented_plainly())
async def get_ready(services: ServicesDep) -> dict[str, bool]:
    """Answer 200 from the end of start-up until draining begins."""
    if services.is_draining:
        raise NotReady("The service is stopping.")
    # the specification's text says live, and its clients read ready
    return {"live": True, "ready": True}


@router.get("/models", summary="List models", responses=documented_plainly())
def list_served(services: ServicesDep) -> dict[str, list[str]]:
    """Give the names of all models, as KServe does."""
    return {"models": [model.name for model in every_model(services.rooms.registry)]}


@each_way(
    router,
    "GET",
    "",
    WAYS,
    response_model=UNCHECKED,
    summary="Get a model's metadata",
    responses=documented_plainly(400, 404),
)
def get_served(request: Request, services: ServicesDep) -> ModelMetadata:
    """Give the inputs, one for each column, and the outputs of a version, and which versions there are."""
    version = services.rooms.registry.resolve(named(request))
    model = services.rooms.registry.get(version.model)
    classes = len(version.document["classes"])
    return {
        "name": version.model,
        "versions": [str(each.version) for each in reversed(model.versions)],
        "platform": "keras",
        "inputs": [
            {"name": each["name"], "datatype": DATATYPES[each["kind"]], "shape": [-1]}
            for each in version.document["inputs"]
        ],
        "outputs": [
            {"name": LABEL, "datatype": "BYTES", "shape": [-1]},
            {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, classes]},
        ],
    }


@each_way(
    router,
    "GET",
    "/ready",
    WAYS,
    response_model=UNCHECKED,
    summary="Is a model ready?",
    responses=documented_plainly(400, 404),
)
def get_served_ready(request: Request, services: ServicesDep) -> ModelReady:
    """Load a version where it is not in memory, and answer 200 where it can be asked; 503 where it is damaged."""
    loaded = services.version_cache.get(named(request))
    return {"name": loaded.version.model, "ready": True}


@each_way(
    router,
    "POST",
    "/infer",
    WAYS,
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
    """Classify rows: a tensor of shape [rows] or [rows, 1] for each column, or one of [rows, columns] of any other name.

    Tensors are JSON, or bytes after it as `Inference-Header-Content-Length` says; `null` and NaN are missing. Outputs are
    `label` (BYTES) and `probabilities` (FP32, or with `classification: k` the k best as `value:index:label`).
    """
    given_length = request.headers.get(JSON_LENGTH)
    if given_length is not None and not (given_length.isascii() and given_length.isdigit() and len(given_length) < 16):
        raise Invalid.at((JSON_LENGTH,), f"Expected {JSON_LENGTH} to be a number of bytes.")
    json_bytes = None if given_length is None else int(given_length)
    async with admitted(request, services) as prediction:
        body, length = await prediction.answer(named(request), partial(_infer, prediction.body, json_bytes))
    if length is None:
        return Response(body, media_type=JSON)
    return Response(body, headers={JSON_LENGTH: str(length)}, media_type=BINARY)


def _infer(body: bytes, json_bytes: int | None, timed: TimedVersion) -> tuple[bytes, int | None]:
    ask = read_infer_request(body, json_bytes, timed.columns)
    prediction = timed.predict_known(ask.rows)
    classes = [label_text(label) for label in prediction.classes]
    labels = [classes[i] for i in prediction.probabilities.argmax(axis=1).tolist()]
    version = timed.loaded.version
    head = {"model_name": version.model, "model_version": str(version.version)}
    head |= {} if ask.id is None else {"id": ask.id}
    return write_infer_response(InferResponse(labels, prediction.probabilities, classes), ask.outputs, head)
