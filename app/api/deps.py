"""What routes are given: the services, the caller's right, and bodies read within their limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request
from fastapi import Path as PathParameter
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ValidationError

from app.api.problems import invalid
from app.errors import NotAcceptable, StorageFull, TooLarge, Unauthorized, UnsupportedMedia, is_disk_full
from app.wiring import REQUEST, Services

#: put into `openapi_extra`, it makes a route answer without a key; every other route asks for one
PUBLIC: dict[str, Any] = {"security": []}
#: largest body of a request that carries no data
SMALL_BODY = 1024**2
_bearer = HTTPBearer(auto_error=False, description="An API key.")

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
REF_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(@[A-Za-z0-9][A-Za-z0-9_.-]{0,63})?$"

Limit = Annotated[int, Query(ge=1, le=500, description="Most items of a page.")]
After = Annotated[str | None, Query(max_length=200, description="The `next` of the page before.")]
ModelName = Annotated[str, PathParameter(pattern=NAME_PATTERN, description="A model's name.", examples=["penguins"])]
ModelRef = Annotated[
    str,
    PathParameter(
        pattern=REF_PATTERN,
        description="`name` (the default version), `name@3`, or `name@alias`.",
        examples=["penguins"],
    ),
]
Number = Annotated[int, PathParameter(ge=1, le=2**31 - 1, description="A version's number.", examples=[1])]


# these two are asynchronous though they await nothing: a plain function would need a thread of every request,
# and a busy database could take them all from /livez
async def services(request: Request) -> Services:
    """Give the process's services."""
    found: Services = request.app.state.services
    return found


Given = Annotated[Services, Depends(services)]


def is_public(route: Any) -> bool:
    """Tell whether a route answers without a key."""
    return (getattr(route, "openapi_extra", None) or {}).get("security") == []


async def authorize(
    request: Request, given: Given, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Let a request through that carries a known key, needs none, or meets a public route.

    It hangs on the application, so that a new route is closed until it says `PUBLIC`.

    Raises:
        Unauthorized: no key came, or an unknown one.
    """
    if not given.settings.needs_key or is_public(request.scope.get("route")):
        return
    if credentials is None:
        raise Unauthorized("Expected a key: Authorization: Bearer KEY.")
    if not given.keys.accepts(credentials.credentials):
        raise Unauthorized("This key is not known.")


def media_type(request: Request) -> str:
    """Give the request's Content-Type without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_json(request: Request) -> None:
    """Refuse a body that does not say it is JSON: a page elsewhere cannot send that header unasked."""
    if media_type(request) != "application/json":
        raise UnsupportedMedia(f"Expected Content-Type application/json, got {media_type(request)[:80] or 'none'!r}.")


def require_acceptable(request: Request, *types: str) -> None:
    """Refuse a request whose Accept names none of these types."""
    accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "*/*").split(",")]
    wanted = {"*/*", *types, *(t.partition("/")[0] + "/*" for t in types)}
    if not wanted & set(accepted):
        raise NotAcceptable(f"Expected Accept to allow {' or '.join(types)}.")


async def _chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMedia("Expected a body without Content-Encoding.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"Expected a body of at most {limit} bytes, got {int(declared)}.")
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"Expected a body of at most {limit} bytes, got more.")
        yield chunk


async def read_body(request: Request, limit: int) -> bytes:
    """Read a body into memory.

    Raises:
        TooLarge: it is larger than `limit` bytes.
    """
    return b"".join([chunk async for chunk in _chunks(request, limit)])


_Model = TypeVar("_Model", bound=BaseModel)


def json_body(model: type[_Model]) -> Callable[[Request], Awaitable[_Model]]:
    """Make a dependency that reads a small JSON body; FastAPI's own would read it before the key is checked."""

    async def read(request: Request) -> _Model:
        require_json(request)
        body = await read_body(request, SMALL_BODY)
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            raise invalid(error) from error

    return read


def json_request(model: type[BaseModel]) -> dict[str, Any]:
    """Describe such a body for the OpenAPI page."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def spool(request: Request, path: Path, limit: int) -> None:
    """Stream a body into a file.

    Raises:
        TooLarge: it is larger than `limit` bytes.
        StorageFull: the disk is.
    """
    try:
        with path.open("wb") as file:
            async for chunk in _chunks(request, limit):
                file.write(chunk)
    except OSError as error:
        if is_disk_full(error):
            raise StorageFull("The disk is full; nothing was stored.") from error
        raise


@contextmanager
def staging(given: Services) -> Iterator[Path]:
    """Give a request a folder on the store's disk, removed at the end."""
    with given.rooms.blobs.staging(REQUEST) as folder:
        yield folder
