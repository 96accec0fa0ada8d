"""The OpenAPI document: the answers that routes share, and what FastAPI leaves out of it or says differently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, TypedDict

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from app.api.auth import is_public, needed
from app.api.examples.media import Media, RequestBody, media
from app.api.schemas.datasets import DatasetOut, DatasetPatch
from app.api.schemas.errors import PlainError, Problem
from app.api.schemas.jobs import JobOut
from app.api.schemas.keys import KeyIn
from app.api.schemas.models import AliasIn, ModelOut
from app.api.schemas.predictions import PredictionOut
from app.http.media_types import JSON, PROBLEM
from app.http.protocol_errors import is_of_other_protocol
from app.learning.spec import TrainSpec

#: FastAPI's type of `responses`
Responses = dict[int | str, dict[str, Any]]
#: `response_model` of a JSON object that FastAPI is to write as it is; the route's own type says what is in it
UNCHECKED: Any = dict[str, Any]


class Success(TypedDict, total=False):
    """What the OpenAPI page says about an answer of 200 or 202, beside what FastAPI finds out by itself."""

    model: type[BaseModel]
    description: str
    content: Mapping[str, Media]


def documented(*statuses: int, ok: Success | None = None, is_public: bool = False) -> Responses:
    """Describe the answers of a route for its OpenAPI page: its errors, and 200 where it needs more words.

    Every route may answer 403 and 503, and 401 where it is not public; none answers 500 by contract.
    """
    responses: Responses = {} if ok is None else {200: {**ok}}
    return responses | _errors({*statuses, 403, 503} | (set() if is_public else {401}), PROBLEM, Problem)


def documented_plainly(*statuses: int, ok: Success | None = None) -> Responses:
    """Describe the answers of another protocol's route for its OpenAPI page; every one may answer 401, 403 and 503."""
    responses = _errors({*statuses, 401, 403, 503}, JSON, PlainError)
    return responses if ok is None else responses | {200: {**ok}}


def takes(body: RequestBody) -> dict[str, Any]:
    """Describe the bodies of a route that reads its body itself, for `openapi_extra`."""
    return {"requestBody": body}


def takes_json(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a JSON body of a route that reads its body itself, for `openapi_extra`."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return takes({"required": True, "content": {JSON: media(schema)}})


def _errors(statuses: Iterable[int], media_type: str, body: type[BaseModel]) -> Responses:
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in sorted(statuses)}


#: an answer of every native route that writes: changes need space on the disk, and so do bodies
_DISK_FULL = {str(status): answer for status, answer in _errors([507], PROBLEM, Problem).items()}
#: bodies that routes read themselves, so that FastAPI does not describe them
_READ_BY_ROUTES: tuple[type[BaseModel], ...] = (TrainSpec, AliasIn, DatasetPatch, KeyIn, Problem, PlainError)
#: bodies whose examples hold null, which FastAPI leaves out
_WITH_NULLS: tuple[type[BaseModel], ...] = (DatasetOut, JobOut, ModelOut, PredictionOut)


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of all routes."""
    whole = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, servers=app.servers
    )
    _complete_schemas(whole["components"]["schemas"])
    for route in iter_route_contexts(app.routes):
        if route.include_in_schema:
            for method in route.methods or ():
                _complete_operation(whole["paths"][route.path_format][method.lower()], method, route)
    return whole


def _complete_schemas(schemas: dict[str, Any]) -> None:
    for body in _READ_BY_ROUTES:
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[body.__name__] = schema
    for body in _WITH_NULLS:
        schemas[body.__name__]["examples"] = body.model_json_schema()["examples"]
    # the shape of FastAPI's own errors, which no route answers
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)


def _complete_operation(operation: dict[str, Any], method: str, route: Any) -> None:
    if is_of_other_protocol(str(route.path_format)):
        # FastAPI documents 422 by itself; these protocols answer 400 instead
        operation["responses"].pop("422", None)
    elif method != "GET":
        operation["responses"] |= _DISK_FULL
    if is_public(route):
        # FastAPI adds the empty list to the application's requirement
        operation["security"] = []
    else:
        scope = needed(route)
        asks = "any key" if scope == "any" else f"a key with the scope `{scope}`"
        operation["description"] += f"\n\nWhere keys are asked for: {asks}."
