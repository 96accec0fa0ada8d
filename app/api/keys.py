"""Routes of API keys; for admins."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi import Path as PathParameter

from app.api.deps import After, Limit, ServicesDep, json_body, json_request
from app.api.openapi import documented
from app.api.schemas import KeyIn, KeyMade, KeyPage
from app.errors import Invalid
from app.names import id_of

router = APIRouter(prefix="/api/v1/keys", tags=["Keys"])

Id = Annotated[
    str,
    PathParameter(
        pattern=f"^{id_of('key')}$", description="A key's id.", examples=["key_0193a5c2f1b07d2c9f1e3a5b7c9d"]
    ),
]


@router.get("", response_model=KeyPage, summary="List keys", responses=documented(422))
def list_keys(services: ServicesDep, limit: Limit = 50, after: After = None) -> Any:
    """Give the stored keys, newest first, without the keys themselves; the configured admin key is not among them."""
    found, following = services.keys.list(limit, after)
    return {"items": found, "next": following}


@router.post(
    "",
    status_code=201,
    response_model=KeyMade,
    summary="Make a key",
    responses=documented(400, 408, 413, 415, 422, 507),
    openapi_extra=json_request(KeyIn),
)
def add_key(body: Annotated[KeyIn, Depends(json_body(KeyIn))], services: ServicesDep) -> Any:
    """Make a key with these scopes; `admin` may do everything. The answer shows the key this once."""
    if body.name is not None and not body.name.isprintable():
        raise Invalid.at(("name",), "Expected a name of printable characters.")
    made, secret = services.keys.add(body.name, body.scopes)
    return {"id": made.id, "name": made.name, "scopes": made.scopes, "created_at": made.created_at, "key": secret}


@router.delete(
    "/{id}", status_code=204, response_class=Response, summary="Revoke a key", responses=documented(404, 409, 422)
)
def delete_key(id: Id, services: ServicesDep) -> None:
    """Revoke a key at once; the last admin key stays."""
    services.keys.delete(id)
