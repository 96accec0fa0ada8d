"""The OpenAPI document: how routes describe their bodies and answers, and corrections of what FastAPI generates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, TypedDict

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from app.api.auth import is_public, required_scope
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
#: `response_model` of a JSON object that FastAPI writes without checking its members; the route's return type has them
UNCHECKED: Any = dict[str, Any]


class Success(TypedDict, total=False):
    """The description of a successful answer, where the route's return type does not say everything."""

    model: type[BaseModel]
    description: str
    content: Mapping[str, Media]


def documented(*statuses: int, ok: Success | None = None, is_public: bool = False) -> Responses:
    """Return FastAPI's `responses` of a native route: its errors, and the answer 200 where `ok` describes it.

    Every route may answer 403 and 503, and a route that is not public 401. No route answers 500 by contract.
    """
    responses: Responses = {} if ok is None else {200: {**ok}}
    return responses | _errors({*statuses, 403, 503} | (set() if is_public else {401}), PROBLEM, Problem)


def documented_plainly(*statuses: int, ok: Success | None = None) -> Responses:
    """Return FastAPI's `responses` of a route of another protocol. Every such route may answer 401, 403 and 503."""
    responses = _errors({*statuses, 401, 403, 503}, JSON, PlainError)
    return responses if ok is None else responses | {200: {**ok}}


def takes(body: RequestBody) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that reads its body itself."""
    return {"requestBody": body}


def takes_json(model: type[BaseModel]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that reads a JSON body itself."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return takes({"required": True, "content": {JSON: media(schema)}})


def _errors(statuses: Iterable[int], media_type: str, body: type[BaseModel]) -> Responses:
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in sorted(statuses)}


#: every native route that writes may answer 507: bodies and changes in the database need space on the disk
_DISK_FULL = {str(status): answer for status, answer in _errors([507], PROBLEM, Problem).items()}
#: schemas that FastAPI does not find: bodies that routes read themselves, and errors
_READ_BY_ROUTES: tuple[type[BaseModel], ...] = (TrainSpec, AliasIn, DatasetPatch, KeyIn, Problem, PlainError)
#: schemas whose examples contain null, which FastAPI would leave out
_WITH_NULLS: tuple[type[BaseModel], ...] = (DatasetOut, JobOut, ModelOut, PredictionOut)


def build_document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of all routes."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, servers=app.servers
    )
    _complete_schemas(document["components"]["schemas"])
    for route in iter_route_contexts(app.routes):
        if route.include_in_schema:
            for method in route.methods or ():
                _complete_operation(document["paths"][route.path_format][method.lower()], method, route)
    return document


def _complete_schemas(schemas: dict[str, Any]) -> None:
    for body in _READ_BY_ROUTES:
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[body.__name__] = schema
    for body in _WITH_NULLS:
        schemas[body.__name__]["examples"] = body.model_json_schema()["examples"]
    # FastAPI's own shape of errors, which no route uses
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)


def _complete_operation(operation: dict[str, Any], method: str, route: Any) -> None:
    if is_of_other_protocol(str(route.path_format)):
        # FastAPI adds 422 by itself; these protocols answer 400 instead
        operation["responses"].pop("422", None)
    elif method != "GET":
        operation["responses"] |= _DISK_FULL
    if is_public(route):
        # FastAPI would add the empty list to the requirement of the whole application
        operation["security"] = []
    else:
        scope = required_scope(route)
        asks = "any key" if scope == "any" else f"a key with the scope `{scope}`"
        operation["description"] += f"\n\nWhere keys are asked for: {asks}."
