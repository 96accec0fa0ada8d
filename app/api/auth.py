"""Who may do what: the scope that each route asks of a key. Default deny: what is not listed here is for admins."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api.deps import ServicesDep
from app.errors import Forbidden, Unauthorized
from app.http.policy import POLICY, allows
from app.records.keys import Scope

#: put into `openapi_extra`, it makes a route answer without a key
PUBLIC: dict[str, Any] = {"security": []}
_bearer = HTTPBearer(auto_error=False, description="An API key.")


def is_public(route: Any) -> bool:
    """Tell whether a route answers without a key."""
    return (getattr(route, "openapi_extra", None) or {}).get("security") == []


def needed(route: Any) -> Literal["any"] | Scope:
    """Give the scope that a route asks for."""
    return POLICY.get(getattr(route, "name", ""), "admin")


async def authorize(
    request: Request,
    services: ServicesDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> None:
    """Let a request through whose key may do this, that needs none, or that meets a public route.

    It hangs on the application, so that no route can be without it.

    Raises:
        Unauthorized: no key came, or an unknown one.
        Forbidden: the key has not the scope.
    """
    route = request.scope.get("route")
    if not services.settings.needs_key or is_public(route):
        return
    if credentials is None:
        raise Unauthorized("Expected a key: Authorization: Bearer KEY.")
    scopes = services.keys.scopes(credentials.credentials)
    if scopes is None:
        raise Unauthorized("This key is not known.")
    request.state.scopes = scopes
    scope = needed(route)
    if scope != "any":
        require(request, scope)


def require(request: Request, scope: Scope) -> None:
    """Let a request go on whose key has a scope, or that needed none.

    Raises:
        Forbidden: the key has not the scope.
    """
    scopes: tuple[Scope, ...] | None = getattr(request.state, "scopes", None)
    if scopes is not None and not allows(scopes, scope):
        raise Forbidden(f"Expected a key with the scope {scope}; this one has {', '.join(scopes) or 'none'}.")
