"""What routes depend on: the services, parameters of paths and queries, small JSON bodies, and the Accept header."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, TypeVar

from fastapi import Depends, Query, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel, ValidationError

from app.api.error_handlers import invalid_body
from app.api.request_body import media_type, read_body
from app.errors import NotAcceptable, UnsupportedMedia
from app.http.media_types import JSON
from app.names import ALIAS, MODEL, REF
from app.wiring import Services

#: bytes of the largest body that carries no data
SMALL_BODY = 1024**2
_QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")

Limit = Annotated[int, Query(ge=1, le=500, description="Most items of a page.")]
After = Annotated[str | None, Query(max_length=200, description="The `next` of the page before.")]
ModelName = Annotated[str, PathParameter(pattern=f"^{MODEL}$", description="A model's name.", examples=["penguins"])]
ModelRef = Annotated[
    str,
    PathParameter(
        pattern=f"^{REF}$",
        description="`name` (the default version), `name@3`, or `name@alias`.",
        examples=["penguins"],
    ),
]
Alias = Annotated[str, PathParameter(pattern=f"^{ALIAS}$", description="An alias.", examples=["default"])]
Number = Annotated[int, PathParameter(ge=1, le=2**31 - 1, description="A version's number.", examples=[1])]


# asynchronous though nothing is awaited: FastAPI runs a plain function in a thread, and when a slow database holds all
# threads, /livez would wait for one
async def get_services(request: Request) -> Services:
    """Return the services of this process."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


def require_json(request: Request) -> None:
    """Refuse a body whose Content-Type is not JSON: a page of another origin cannot send that header without a preflight."""
    if media_type(request) != JSON:
        raise UnsupportedMedia(f"Expected Content-Type application/json, got {media_type(request)[:80] or 'none'!r}.")


def negotiate(request: Request, offered: Iterable[str]) -> str:
    """Return the media type that the request's Accept prefers; of equally preferred ones the first that is offered.

    Raises:
        NotAcceptable: the request accepts none of the offered media types.

    Source: RFC 9110, section 12.5.1.
    """
    qualities: dict[str, float] = {}
    # a client may send the list as several headers; an empty list accepts anything
    for part in (",".join(request.headers.getlist("accept")).lower().strip(", ") or "*/*").split(","):
        name, _, parameters = part.partition(";")
        quality = next((p.strip()[2:] for p in parameters.split(";") if p.strip().startswith("q=")), "1")
        qualities[name.strip()] = float(quality) if _QUALITY.fullmatch(quality) else 0.0
    best, best_rank = "", (0.0, 0)
    for media in offered:
        # the most specific range that matches decides
        ranges = (media, media.partition("/")[0] + "/*", "*/*")
        rank = next(((qualities[name], -i) for i, name in enumerate(ranges) if name in qualities), (0.0, 0))
        if rank[0] > 0 and (not best or rank > best_rank):
            best, best_rank = media, rank
    if not best:
        raise NotAcceptable(f"Expected Accept to allow {' or '.join(offered)}.")
    return best


_Model = TypeVar("_Model", bound=BaseModel)


def json_body(model: type[_Model]) -> Callable[[Request], Awaitable[_Model]]:
    """Return a dependency that reads a small JSON body. FastAPI's own would read the body before the key is checked."""

    async def read(request: Request) -> _Model:
        require_json(request)
        body = await read_body(request, SMALL_BODY)
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            raise invalid_body(error) from error

    return read
