"""Routes of API keys: list, make, revoke. All are for admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi import Path as PathParameter

from app.api.deps import After, Limit, ServicesDep, json_body
from app.api.openapi import documented, takes_json
from app.api.schemas.keys import KeyIn, KeyMade, KeyOut, KeyPage
from app.errors import Invalid
from app.names import id_of

router = APIRouter(prefix="/api/v1/keys", tags=["Keys"])

Id = Annotated[
    str,
    PathParameter(
        pattern=f"^{id_of('key')}$", description="A key's id.", examples=["key_0193a5c2f1b07d2c9f1e3a5b7c9d"]
    ),
]


@router.get("", summary="List keys", responses=documented(422))
def list_keys(services: ServicesDep, limit: Limit = 50, after: After = None) -> KeyPage:
    """List the stored keys, newest first, without the keys themselves. The configured admin key is not among them."""
    keys, next_page = services.keys.list(limit, after)
    return KeyPage(items=[KeyOut.model_validate(key) for key in keys], next=next_page)


@router.post(
    "",
    status_code=201,
    summary="Make a key",
    responses=documented(400, 408, 413, 415, 422, 507),
    openapi_extra=takes_json(KeyIn),
)
def add_key(body: Annotated[KeyIn, Depends(json_body(KeyIn))], services: ServicesDep) -> KeyMade:
    """Make a key with these scopes; `admin` allows everything. Only this answer shows the key itself."""
    if body.name is not None and not body.name.isprintable():
        raise Invalid.at(("name",), "Expected a name of printable characters.")
    key, secret = services.keys.add(body.name, body.scopes)
    return KeyMade(id=key.id, name=key.name, scopes=list(key.scopes), created_at=key.created_at, key=secret)


@router.delete(
    "/{id}", status_code=204, response_class=Response, summary="Revoke a key", responses=documented(404, 409, 422)
)
def delete_key(id: Id, services: ServicesDep) -> None:
    """Revoke a key at once. The last admin key cannot be revoked."""
    services.keys.delete(id)
