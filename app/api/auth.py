"""Access: the key of a request, and the scope that each route requires. `app.http.policy` lists the scopes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api.deps import ServicesDep
from app.errors import Forbidden, Unauthorized
from app.http.policy import POLICY, allows
from app.records.keys import Scope

#: as `openapi_extra` of a route, this makes the route public: it answers without a key
PUBLIC: dict[str, Any] = {"security": []}
_bearer = HTTPBearer(auto_error=False, description="An API key.")


def is_public(route: Any) -> bool:
    """Return whether a route answers without a key."""
    return (getattr(route, "openapi_extra", None) or {}).get("security") == []


def required_scope(route: Any) -> Literal["any"] | Scope:
    """Return the scope that a route requires; a route that the policy does not list is for admins."""
    return POLICY.get(getattr(route, "name", ""), "admin")


async def authorize(
    request: Request,
    services: ServicesDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> None:
    """Refuse a request whose key may not use the route. Where no key is required every request passes.

    The application depends on this function, so no route can be without it.

    Raises:
        Unauthorized: the request has no key, or an unknown one.
        Forbidden: the key does not have the scope.
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
    scope = required_scope(route)
    if scope != "any":
        require_scope(request, scope)


def require_scope(request: Request, scope: Scope) -> None:
    """Refuse a request whose key does not have a scope. Where no key is required every request passes.

    Raises:
        Forbidden: the key does not have the scope.
    """
    scopes: tuple[Scope, ...] | None = getattr(request.state, "scopes", None)
    if scopes is not None and not allows(scopes, scope):
        raise Forbidden(f"Expected a key with the scope {scope}; this one has {', '.join(scopes) or 'none'}.")
