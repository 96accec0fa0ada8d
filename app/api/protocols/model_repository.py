"""Triton's model repository extension of the Open Inference Protocol: list versions, load and unload models.

Source: Triton, docs/protocol/extension_model_repository.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from app.api.deps import SMALL_BODY, ModelName, ServicesDep
from app.api.examples.media import OBJECT, json_body
from app.api.openapi import UNCHECKED, documented_plainly, takes
from app.api.protocols.version_paths import all_models
from app.api.request_body import read_body
from app.api.schemas.open_inference import IndexEntry, RepositoryChange
from app.errors import Invalid
from app.http.protocol_errors import OPEN_INFERENCE
from app.learning.requests.json_with_nan import parse_json_with_nan
from app.names import DEFAULT
from app.records.ref import Ref

router = APIRouter(prefix=OPEN_INFERENCE, tags=["Open Inference Protocol"])

_STATUSES = (400, 408, 413, 415)


async def _read_options(request: Request) -> Mapping[str, object]:
    """Read a JSON object from a body that may be empty."""
    body = await read_body(request, SMALL_BODY)
    return parse_json_with_nan(body) if body.strip() else {}


Options = Annotated[Mapping[str, object], Depends(_read_options)]


@router.post(
    "/repository/index",
    summary="List versions and their states",
    response_model=list[dict[str, str]],
    responses=documented_plainly(*_STATUSES),
    openapi_extra=takes(json_body(OBJECT, required=False, one={"ready": True})),
)
def list_repository(services: ServicesDep, options: Options) -> list[IndexEntry]:
    """List all versions: READY, because a version is loaded at its first request; or UNAVAILABLE if its files are damaged.

    `{"ready": true}` in the body lists only those that are READY.
    """
    is_ready_only = options.get("ready", False)
    if not isinstance(is_ready_only, bool):
        raise Invalid.at(("ready",), "Expected ready to be true or false.")
    index: list[IndexEntry] = []
    for model in all_models(services.rooms.registry):
        for version in reversed(model.versions):
            is_broken = services.version_cache.is_broken(version)
            if is_broken and is_ready_only:
                continue
            state, reason = ("UNAVAILABLE", "Its files are damaged.") if is_broken else ("READY", "")
            index.append({"name": model.name, "version": str(version.version), "state": state, "reason": reason})
    return index


@router.post(
    "/repository/models/{name}/load",
    response_model=UNCHECKED,
    summary="Load a model",
    responses=documented_plainly(404, *_STATUSES),
    openapi_extra=takes(json_body(OBJECT, required=False, one={})),
)
def load_model(name: ModelName, services: ServicesDep, options: Options) -> RepositoryChange:
    """Load a model's default version into memory and check it, so that the first request does not wait for that.

    A configuration or files in the body are refused: versions are made by training.
    """
    if options.get("parameters"):
        raise Invalid.at(("parameters",), "Expected no parameters: versions are made by training.")
    services.version_cache.get(Ref(name, None, DEFAULT))
    return {"name": name, "load": True}


@router.post(
    "/repository/models/{name}/unload",
    response_model=UNCHECKED,
    summary="Unload a model",
    responses=documented_plainly(400, 404),
)
def unload_model(name: ModelName, services: ServicesDep) -> RepositoryChange:
    """Free the memory of a model's versions. Nothing is deleted: the next request loads its version again."""
    services.rooms.registry.get(name)
    services.version_cache.unload(name)
    return {"name": name, "unload": True}
