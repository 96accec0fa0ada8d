"""Who may do what: the scope that each route asks of a key. Default deny: what is not listed here is for admins."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api.deps import Given
from app.errors import Forbidden, Unauthorized
from app.records.keys import Scope

#: put into `openapi_extra`, it makes a route answer without a key
PUBLIC: dict[str, Any] = {"security": []}
_bearer = HTTPBearer(auto_error=False, description="An API key.")

#: what any key may do, by the name of the route's function
_READ = (
    "list_models",
    "get_model",
    "get_version",
    "get_version_document",
    "get_alias_history",
    "get_system",
    "get_metrics",
    # TensorFlow Serving
    *("list_names", "get_signature", "get_version_status", "get_model_status"),
    # the Open Inference Protocol
    *("get_server", "get_live", "get_ready", "list_served", "get_served", "get_served_ready", "list_repository"),
    *("get_all_statistics", "get_model_statistics", "get_version_statistics", "get_configuration"),
)
_PREDICT = ("predict", "evaluate", "predict_instances", "classify_examples", "regress_examples", "infer")
_TRAIN = (
    *("upload", "list_datasets", "get_dataset", "get_rows", "patch_dataset", "delete_dataset"),
    *("train", "list_jobs", "get_job", "get_events", "cancel_job", "resume_job", "delete_job"),
    *("put_alias", "delete_alias", "rollback_alias", "get_export", "load_model", "unload_model"),
)
POLICY: dict[str, Literal["any"] | Scope] = {
    **dict.fromkeys(_READ, "any"),
    **dict.fromkeys(_PREDICT, "predict"),
    **dict.fromkeys(_TRAIN, "train"),
}


def is_public(route: Any) -> bool:
    """Tell whether a route answers without a key."""
    return (getattr(route, "openapi_extra", None) or {}).get("security") == []


def needed(route: Any) -> Literal["any"] | Scope:
    """Give the scope that a route asks for."""
    return POLICY.get(getattr(route, "name", ""), "admin")


async def authorize(
    request: Request, given: Given, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Let a request through whose key may do this, that needs none, or that meets a public route.

    It hangs on the application, so that no route can be without it.

    Raises:
        Unauthorized: no key came, or an unknown one.
        Forbidden: the key has not the scope.
    """
    route = request.scope.get("route")
    if not given.settings.needs_key or is_public(route):
        return
    if credentials is None:
        raise Unauthorized("Expected a key: Authorization: Bearer KEY.")
    scopes = given.keys.scopes(credentials.credentials)
    if scopes is None:
        raise Unauthorized("This key is not known.")
    request.state.scopes = scopes
    scope = needed(route)
    if scope != "any":
        require(request, scope)


def allows(scopes: Collection[Scope], scope: Literal["any"] | Scope) -> bool:
    """Tell whether a key with these scopes may do what asks for one."""
    return scope == "any" or scope in scopes or "admin" in scopes


def require(request: Request, scope: Scope) -> None:
    """Let a request go on whose key has a scope, or that needed none.

    Raises:
        Forbidden: the key has not the scope.
    """
    scopes: tuple[Scope, ...] | None = getattr(request.state, "scopes", None)
    if scopes is not None and not allows(scopes, scope):
        raise Forbidden(f"Expected a key with the scope {scope}; this one has {', '.join(scopes) or 'none'}.")
