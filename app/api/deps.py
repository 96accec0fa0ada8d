"""What routes are given: the services, small JSON bodies, and the form of the answer."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, TypeVar

from fastapi import Depends, Query, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel, ValidationError

from app.api.error_handlers import invalid
from app.api.request_body import media_type, read_body
from app.errors import NotAcceptable, UnsupportedMedia
from app.http.media_types import JSON
from app.names import ALIAS, MODEL, REF
from app.wiring import Services

#: largest body of a request that carries no data
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


# these two are asynchronous though they await nothing: a plain function would need a thread of every request,
# and a busy database could take them all from /livez
async def get_services(request: Request) -> Services:
    """Give the process's services."""
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(get_services)]


def require_json(request: Request) -> None:
    """Refuse a body that does not say it is JSON: a page elsewhere cannot send that header unasked."""
    if media_type(request) != JSON:
        raise UnsupportedMedia(f"Expected Content-Type application/json, got {media_type(request)[:80] or 'none'!r}.")


def negotiate(request: Request, offered: Iterable[str]) -> str:
    """Give the media type to answer in: the one that the request's Accept wants most, the first of equals.

    Raises:
        NotAcceptable: it wants none of these.

    Source: RFC 9110, section 12.5.1.
    """
    wishes: dict[str, float] = {}
    # a list may come as several headers; one that names nothing wants anything
    for part in (",".join(request.headers.getlist("accept")).lower().strip(", ") or "*/*").split(","):
        name, _, parameters = part.partition(";")
        quality = next((p.strip()[2:] for p in parameters.split(";") if p.strip().startswith("q=")), "1")
        wishes[name.strip()] = float(quality) if _QUALITY.fullmatch(quality) else 0.0
    best, most = "", (0.0, 0)
    for each in offered:
        # the closer a range names the type, the more it says
        names = (each, each.partition("/")[0] + "/*", "*/*")
        want = next(((wishes[name], -i) for i, name in enumerate(names) if name in wishes), (0.0, 0))
        if want[0] > 0 and (not best or want > most):
            best, most = each, want
    if not best:
        raise NotAcceptable(f"Expected Accept to allow {' or '.join(offered)}.")
    return best


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
