"""The OpenAPI document: the answers that routes share, and what FastAPI leaves out of it or says differently."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from app.api.auth import is_public, needed
from app.api.schemas import AliasIn, DatasetOut, DatasetPatch, JobOut, KeyIn, ModelOut, PredictionOut
from app.http.media_types import PROBLEM
from app.http.protocol_errors import is_plain
from app.learning.spec import TrainSpec


class ProblemFault(BaseModel):
    """One thing that is wrong, and where."""

    loc: list[str | int]
    message: str
    code: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    errors: list[ProblemFault]


class PlainError(BaseModel):
    """What went wrong, in words."""

    error: str


Answers = dict[int | str, dict[str, Any]]


def documented(*statuses: int, ok: dict[str, Any] | None = None, is_public: bool = False) -> Answers:
    """Describe the answers of a route for its OpenAPI page: its errors, and 200 where it needs more words.

    Every route may answer 403 and 503, and 401 where it is not public; none answers 500 by contract.
    """
    answers: Answers = {} if ok is None else {200: ok}
    return answers | _errors({*statuses, 403, 503} | (set() if is_public else {401}), PROBLEM, Problem)


def documented_plainly(*statuses: int) -> Answers:
    """Describe the errors of another protocol's route for its OpenAPI page; every one may answer 401, 403 and 503."""
    return _errors({*statuses, 401, 403, 503}, "application/json", PlainError)


def _errors(statuses: Iterable[int], media_type: str, body: type[BaseModel]) -> Answers:
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
    if is_plain(str(route.path_format)):
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
