"""How other servers' protocols name a version: by its model alone, by a number, or by a label, each a route."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request
from starlette.convertors import Convertor, register_url_convertor

from app.api.deps import Alias, ModelName, Number
from app.names import DEFAULT
from app.records.ref import Ref
from app.records.registry import Registry
from app.records.version import Model

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class _Word(Convertor[str]):
    """A name in a path, where what follows a colon is a verb and no part of it."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("word", _Word())


# asynchronous for the reason of `deps.get_services`
async def _by_model(request: Request, name: ModelName) -> None:
    request.state.ref = Ref(name, None, DEFAULT)


async def _by_number(request: Request, name: ModelName, n: Number) -> None:
    request.state.ref = Ref(name, n, "")


async def _by_label(request: Request, name: ModelName, alias: Alias) -> None:
    request.state.ref = Ref(name, None, alias)


MODEL = ("", _by_model)
NUMBER = ("/versions/{n:word}", _by_number)
LABEL = ("/labels/{alias:word}", _by_label)
Way = tuple[str, Callable[..., Any]]


def each_way(
    router: APIRouter, method: str, end: str, ways: Sequence[Way], **how: Any
) -> Callable[[Endpoint], Endpoint]:
    """Make a route for each way to name a version; the endpoint finds what was named by `named`.

    Args:
        end: what follows the name.
        how: what FastAPI is told of each route.
    """

    def register(endpoint: Endpoint) -> Endpoint:
        for place, depends in ways:
            path = f"/models/{{name:word}}{place}{end}"
            router.add_api_route(path, endpoint, methods=[method], dependencies=[Depends(depends)], **how)
        return endpoint

    return register


def named(request: Request) -> Ref:
    """Give the reference that a request's path makes."""
    ref: Ref = request.state.ref
    return ref


def every_model(registry: Registry) -> Iterator[Model]:
    """Give all models by name."""
    after: str | None = None
    while True:
        found, after = registry.list(500, after)
        yield from found
        if after is None:
            return
