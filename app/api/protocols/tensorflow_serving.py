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
from app.api.protocols.version_paths import LABEL, MODEL, NUMBER, each_way, every_model, named
from app.api.run_prediction import TimedVersion, admitted
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

WAYS = (MODEL, NUMBER, LABEL)
#: by the kind of a column
_TYPES = {"numeric": "DT_DOUBLE", "boolean": "DT_BOOL", "categorical": "DT_STRING"}
_ASKED = (400, 404, 408, 413, 415)


def _lists(*keys: str) -> Success:
    schema = {"type": "object", "properties": {key: {"type": "array"} for key in keys}}
    return {"description": "An answer for each row.", "content": {JSON: media(schema)}}


@each_way(
    router,
    "POST",
    ":predict",
    WAYS,
    response_class=Response,
    summary="Predict",
    responses=documented_plainly(*_ASKED, ok=_lists("predictions", "outputs")),
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
    """Give a list of probabilities for each row: `predictions` for `instances`, `outputs` for `inputs`.

    A row is a list in the order of the model's columns, an object, or for a model of one column a value. `null` and NaN are
    missing. The Content-Type is not looked at.
    """
    return await _answer(request, services, _predict)


def _predict(body: bytes, version: TimedVersion) -> bytes:
    rows, key = read_predict_request(parse_json_with_nan(body), version.columns)
    return _dump({key: version.predict_known(rows).probabilities})


@each_way(
    router,
    "POST",
    ":classify",
    WAYS,
    response_class=Response,
    summary="Classify",
    responses=documented_plainly(*_ASKED, ok=_lists("results")),
    openapi_extra=takes(
        json_body(OBJECT, examples={"context": {"weight": 3750}, "examples": [{"length": 181}, {"length": 217}]})
    ),
)
async def classify_examples(request: Request, services: ServicesDep) -> Response:
    """Give `results`: for each example each class as a text with its probability, in the order of the model's classes."""
    return await _answer(request, services, _classify)


def _classify(body: bytes, version: TimedVersion) -> bytes:
    prediction = version.predict_known(read_classify_request(parse_json_with_nan(body), version.columns))
    classes = [label_text(label) for label in prediction.classes]
    return _dump({"results": [list(zip(classes, row, strict=True)) for row in prediction.probabilities]})


@each_way(
    router,
    "POST",
    ":regress",
    WAYS,
    summary="Regress",
    responses=documented_plainly(400, 404, ok=_lists("results")),
)
def regress_examples(request: Request, services: ServicesDep) -> None:
    """Answer 400: every model here is a classifier."""
    services.rooms.registry.resolve(named(request))
    raise Invalid("Expected :predict or :classify; every model here is a classifier.")


@router.get("/models", summary="List models", responses=documented_plainly())
def list_names(services: ServicesDep) -> dict[str, list[str]]:
    """Give the names of all models, as KServe's V1 protocol does; TensorFlow Serving has no such list."""
    return {"models": [model.name for model in every_model(services.rooms.registry)]}


@each_way(
    router,
    "GET",
    "/metadata",
    WAYS,
    response_model=UNCHECKED,
    summary="Get a version's signature",
    responses=documented_plainly(400, 404),
)
def get_signature(request: Request, services: ServicesDep) -> ModelMetadata:
    """Give the inputs, one for each column, and the output of a version."""
    version = services.rooms.registry.resolve(named(request))
    inputs = {each["name"]: _tensor(each["name"], _TYPES[each["kind"]], -1) for each in version.document["inputs"]}
    outputs = {"probabilities": _tensor("probabilities", "DT_FLOAT", -1, len(version.document["classes"]))}
    signature: Signature = {"inputs": inputs, "outputs": outputs, "method_name": "tensorflow/serving/predict"}
    return {
        "model_spec": {"name": version.model, "signature_name": "", "version": str(version.version)},
        # named twice: the message of that name has a field of that name
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }


def _tensor(name: str, dtype: str, *sizes: int) -> TensorInfo:
    shape: TensorShape = {"dim": [{"size": str(size), "name": ""} for size in sizes], "unknown_rank": False}
    return {"dtype": dtype, "tensor_shape": shape, "name": f"{SIGNATURE}_{name}:0"}


@each_way(
    router,
    "GET",
    "",
    (NUMBER, LABEL),
    response_model=UNCHECKED,
    summary="Get a version's status",
    responses=documented_plainly(400, 404),
)
def get_version_status(request: Request, services: ServicesDep) -> ModelStatus:
    """Say whether a version answers: it is loaded when it is first asked."""
    return {"model_version_status": [_status(services, services.rooms.registry.resolve(named(request)))]}


@each_way(
    router,
    "GET",
    "",
    (MODEL,),
    response_model=UNCHECKED,
    summary="Get a model's status",
    responses=documented_plainly(400, 404),
)
def get_model_status(request: Request, services: ServicesDep) -> ModelStatus:
    """Say whether each version answers, newest first, and as KServe's V1 protocol does whether the model is ready."""
    model = services.rooms.registry.get(named(request).model)
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


async def _answer(request: Request, services: Services, write: Callable[[bytes, TimedVersion], bytes]) -> Response:
    async with admitted(request, services) as prediction:
        body = await prediction.answer(named(request), partial(write, prediction.body))
    return Response(body, media_type=JSON)


def _dump(document: Mapping[str, object]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
