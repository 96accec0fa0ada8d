"""Routes of models, their versions and aliases."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from app.api.deps import After, Alias, Limit, ModelName, Number, ServicesDep, json_body
from app.api.examples.media import BYTES, media
from app.api.openapi import UNCHECKED, documented, takes_json
from app.api.schemas.models import AliasHistory, AliasIn, AliasMove, ModelOut, ModelPage, VersionOut
from app.api.spool import staging
from app.api.version_openapi import Document, build_version_document
from app.errors import Conflict, Corrupt
from app.records.ref import Ref
from app.serving.export import Form, export_version

router = APIRouter(prefix="/api/v1/models", tags=["Models"])


@router.get("", summary="List models", responses=documented(422))
def list_models(services: ServicesDep, limit: Limit = 50, after: After = None) -> ModelPage:
    """List the models, in the order of their names."""
    models, next_page = services.rooms.registry.list(limit, after)
    return ModelPage(items=[ModelOut.of(model) for model in models], next=next_page)


@router.get("/{name}", summary="Get a model", responses=documented(404, 422))
def get_model(name: ModelName, services: ServicesDep) -> ModelOut:
    """Return a model with its versions, newest first, and its aliases."""
    return ModelOut.of(services.rooms.registry.get(name))


@router.delete(
    "/{name}", status_code=204, response_class=Response, summary="Delete a model", responses=documented(404, 409, 422)
)
def delete_model(name: ModelName, services: ServicesDep) -> None:
    """Delete a model with all its versions and aliases."""
    services.version_cache.forget(services.rooms.registry.delete(name))


@router.get("/{name}/versions/{n}", summary="Get a version", responses=documented(404, 422))
def get_version(name: ModelName, n: Number, services: ServicesDep) -> VersionOut:
    """Return a version: its inputs, classes, specification, figures and history. A version never changes.

    The status is `failed_load` if the stored files were found to be damaged.
    """
    version = services.rooms.registry.get_version(name, n)
    return VersionOut.of(version, is_broken=services.version_cache.is_broken(version))


@router.delete(
    "/{name}/versions/{n}",
    status_code=204,
    response_class=Response,
    summary="Delete a version",
    responses=documented(404, 409, 422),
)
def delete_version(
    name: ModelName,
    n: Number,
    services: ServicesDep,
    force: Annotated[bool, Query(description="Delete the version even if an alias points at it.")] = False,
) -> None:
    """Delete a version. Its number is never used again."""
    services.version_cache.forget([services.rooms.registry.delete_version(name, n, force=force)])


@router.get(
    "/{name}/versions/{n}/export",
    response_class=Response,
    summary="Export a version",
    responses=documented(*(404, 422, 507), ok={"content": {"application/zip": media(BYTES)}}),
)
async def get_export(
    name: ModelName,
    n: Number,
    services: ServicesDep,
    format: Annotated[Form, Query(description="The format of the model.")],
) -> Response:
    """Return a zip: the model in another program's format, `encoder.json`, and `card.json`, which describes the input.

    `saved_model` unpacks to a folder that TensorFlow Serving can serve directly.
    """
    version = await asyncio.to_thread(services.rooms.registry.get_version, name, n)
    artifact = await asyncio.to_thread(services.rooms.registry.load, version)
    async with staging(services) as folder:
        source = services.rooms.registry.folder(version)
        body = await export_version(artifact, version, source, format, folder)
    disposition = f'attachment; filename="{name}-{n}-{format}.zip"'
    return Response(body, media_type="application/zip", headers={"Content-Disposition": disposition})


@router.put(
    "/{name}/aliases/{alias}",
    summary="Point an alias at a version",
    responses=documented(400, 404, 408, 409, 413, 415, 422),
    openapi_extra=takes_json(AliasIn),
)
def put_alias(
    name: ModelName, alias: Alias, body: Annotated[AliasIn, Depends(json_body(AliasIn))], services: ServicesDep
) -> ModelOut:
    """Point an alias at a version. The model's bare name means the alias `default`.

    The version is loaded first; the answer is 409 if it cannot be loaded.
    """
    try:
        services.version_cache.get(Ref(name, body.version, ""))
    except Corrupt as error:
        raise Conflict(f"Expected a version that can be loaded: {error.message}") from error
    return ModelOut.of(services.rooms.aliases.set(name, alias, body.version))


@router.delete(
    "/{name}/aliases/{alias}",
    status_code=204,
    response_class=Response,
    summary="Delete an alias",
    responses=documented(404, 422),
)
def delete_alias(name: ModelName, alias: Alias, services: ServicesDep) -> None:
    """Delete an alias. Its version stays."""
    services.rooms.aliases.delete(name, alias)


@router.get(
    "/{name}/aliases/{alias}/history",
    summary="Get an alias's history",
    responses=documented(404, 422),
)
def get_alias_history(
    name: ModelName,
    alias: Alias,
    services: ServicesDep,
    limit: Limit = 50,
    after: Annotated[int | None, Query(ge=1, le=2**53, description="The `next` of the page before.")] = None,
) -> AliasHistory:
    """List the moves of an alias, newest first: to which version, when, and why."""
    moves, next_page = services.rooms.aliases.history(name, alias, limit, after)
    items = [AliasMove(version=move.version, reason=move.reason, at=move.at) for move in moves]
    return AliasHistory(items=items, next=None if next_page is None else str(next_page))


@router.post(
    "/{name}/aliases/{alias}/rollback",
    summary="Roll an alias back",
    responses=documented(404, 409, 422),
)
def rollback_alias(name: ModelName, alias: Alias, services: ServicesDep) -> ModelOut:
    """Point an alias at its previous version again; deleted and damaged versions are skipped. A second call goes back further."""
    damaged: set[int] = set()
    while True:
        target = services.rooms.aliases.previous_version(name, alias, damaged)
        try:
            services.version_cache.get(Ref(name, target, ""))
        except Corrupt:
            damaged.add(target)
        else:
            return ModelOut.of(services.rooms.aliases.rollback(name, alias, damaged))


@router.get(
    "/{name}/versions/{n}/openapi.json",
    response_model=UNCHECKED,
    summary="Get a version's own OpenAPI document",
    responses=documented(404, 422),
)
def get_version_document(name: ModelName, n: Number, services: ServicesDep) -> Document:
    """Return an OpenAPI document with the real columns, categories and classes of this version, and an example that works."""
    return build_version_document(services.rooms.registry.get_version(name, n))
