"""TensorFlow Serving's REST API, and KServe's V1 protocol on the same paths.

Source: TensorFlow Serving, g3doc/api_rest.md and model_servers/http_rest_api_util.cc; KServe, protocol/rest/v1_endpoints.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import orjson
from fastapi import APIRouter, Request, Response

from app.api.deps import ServicesDep
from app.api.examples.media import OBJECT, json_body, media
from app.api.openapi import UNCHECKED, Success, documented_plainly, takes
from app.api.protocols.version_paths import LABEL, MODEL, NUMBER, all_models, each_path, ref_of
from app.api.run_prediction import TimedVersion, admit
from app.api.schemas.tensorflow_serving import (
    ErrorStatus,
    ModelMetadata,
    ModelStatus,
    Signature,
    TensorInfo,
    TensorShape,
    VersionStatus,
)
from app.errors import Invalid
from app.http.media_types import JSON
from app.http.protocol_errors import TENSORFLOW_SERVING
from app.learning.requests.json_with_nan import parse_json_with_nan
from app.learning.requests.tensorflow_serving import SIGNATURE, read_classify_request, read_predict_request
from app.learning.tables.label import label_text
from app.records.version import Version
from app.wiring import Services

router = APIRouter(prefix=TENSORFLOW_SERVING, tags=["TensorFlow Serving"])

PATHS = (MODEL, NUMBER, LABEL)
#: TensorFlow's types by the kind of a column
_TYPES = {"numeric": "DT_DOUBLE", "boolean": "DT_BOOL", "categorical": "DT_STRING"}
_STATUSES = (400, 404, 408, 413, 415)


def _lists(*keys: str) -> Success:
    schema = {"type": "object", "properties": {key: {"type": "array"} for key in keys}}
    return {"description": "An answer for each row.", "content": {JSON: media(schema)}}


@each_path(
    router,
    "POST",
    ":predict",
    PATHS,
    response_class=Response,
    summary="Predict",
    responses=documented_plainly(*_STATUSES, ok=_lists("predictions", "outputs")),
    openapi_extra=takes(
        json_body(
            OBJECT,
            rows={"instances": [[181, 3750], [217, None]]},
            records={"instances": [{"length": 181, "weight": 3750}]},
            columns={"inputs": {"length": [181, 217], "weight": [3750, 5200]}},
        )
    ),
)
async def predict_instances(request: Request, services: ServicesDep) -> Response:
    """Predict a list of probabilities for each row: `predictions` for `instances`, `outputs` for `inputs`.

    A row is a list in the order of the model's columns, an object, or a single value if the model has one column. `null`
    and NaN are missing values. The Content-Type is ignored.
    """
    return await _respond(request, services, _predict)


def _predict(body: bytes, version: TimedVersion) -> bytes:
    rows, key = read_predict_request(parse_json_with_nan(body), version.columns)
    return _to_json({key: version.predict_known(rows).probabilities})


@each_path(
    router,
    "POST",
    ":classify",
    PATHS,
    response_class=Response,
    summary="Classify",
    responses=documented_plainly(*_STATUSES, ok=_lists("results")),
    openapi_extra=takes(
        json_body(OBJECT, examples={"context": {"weight": 3750}, "examples": [{"length": 181}, {"length": 217}]})
    ),
)
async def classify_examples(request: Request, services: ServicesDep) -> Response:
    """Classify each example: `results` has every class as a text with its probability, in the order of the model's classes."""
    return await _respond(request, services, _classify)


def _classify(body: bytes, version: TimedVersion) -> bytes:
    prediction = version.predict_known(read_classify_request(parse_json_with_nan(body), version.columns))
    classes = [label_text(label) for label in prediction.classes]
    return _to_json({"results": [list(zip(classes, row, strict=True)) for row in prediction.probabilities]})


@each_path(
    router,
    "POST",
    ":regress",
    PATHS,
    summary="Regress",
    responses=documented_plainly(400, 404, ok=_lists("results")),
)
def regress_examples(request: Request, services: ServicesDep) -> None:
    """Answer 400: every model of this service is a classifier."""
    services.rooms.registry.resolve(ref_of(request))
    raise Invalid("Expected :predict or :classify; every model here is a classifier.")


@router.get("/models", summary="List models", responses=documented_plainly())
def list_names(services: ServicesDep) -> dict[str, list[str]]:
    """List the names of all models, as KServe's V1 protocol does; TensorFlow Serving has no such list."""
    return {"models": [model.name for model in all_models(services.rooms.registry)]}


@each_path(
    router,
    "GET",
    "/metadata",
    PATHS,
    response_model=UNCHECKED,
    summary="Get a version's signature",
    responses=documented_plainly(400, 404),
)
def get_signature(request: Request, services: ServicesDep) -> ModelMetadata:
    """Return the signature of a version: an input for each column, and one output."""
    version = services.rooms.registry.resolve(ref_of(request))
    inputs = {
        column["name"]: _tensor(column["name"], _TYPES[column["kind"]], -1) for column in version.document["inputs"]
    }
    outputs = {"probabilities": _tensor("probabilities", "DT_FLOAT", -1, len(version.document["classes"]))}
    signature: Signature = {"inputs": inputs, "outputs": outputs, "method_name": "tensorflow/serving/predict"}
    return {
        "model_spec": {"name": version.model, "signature_name": "", "version": str(version.version)},
        # the name stands twice: the message `signature_def` has a field of the same name
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }


def _tensor(name: str, dtype: str, *sizes: int) -> TensorInfo:
    shape: TensorShape = {"dim": [{"size": str(size), "name": ""} for size in sizes], "unknown_rank": False}
    return {"dtype": dtype, "tensor_shape": shape, "name": f"{SIGNATURE}_{name}:0"}


@each_path(
    router,
    "GET",
    "",
    (NUMBER, LABEL),
    response_model=UNCHECKED,
    summary="Get a version's status",
    responses=documented_plainly(400, 404),
)
def get_version_status(request: Request, services: ServicesDep) -> ModelStatus:
    """Return whether a version can be used. Versions are loaded at their first request."""
    return {"model_version_status": [_status(services, services.rooms.registry.resolve(ref_of(request)))]}


@each_path(
    router,
    "GET",
    "",
    (MODEL,),
    response_model=UNCHECKED,
    summary="Get a model's status",
    responses=documented_plainly(400, 404),
)
def get_model_status(request: Request, services: ServicesDep) -> ModelStatus:
    """Return whether each version can be used, newest first; and whether the model is ready, as KServe's V1 protocol does."""
    model = services.rooms.registry.get(ref_of(request).model)
    default = [version for version in model.versions if version.version == model.default_version]
    is_ready = any(not services.version_cache.is_broken(version) for version in default)
    versions = [_status(services, version) for version in model.versions]
    return {"name": model.name, "ready": is_ready, "model_version_status": versions}


def _status(services: Services, version: Version) -> VersionStatus:
    is_broken = services.version_cache.is_broken(version)
    error: ErrorStatus = {"error_code": "DATA_LOSS", "error_message": "Its files are damaged."}
    ok: ErrorStatus = {"error_code": "OK", "error_message": ""}
    state = "END" if is_broken else "AVAILABLE"
    return {"version": str(version.version), "state": state, "status": error if is_broken else ok}


async def _respond(request: Request, services: Services, write: Callable[[bytes, TimedVersion], bytes]) -> Response:
    async with admit(request, services) as admitted:
        body = await admitted.run(ref_of(request), partial(write, admitted.body))
    return Response(body, media_type=JSON)


def _to_json(document: Mapping[str, object]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
