"""Paths by which other servers' protocols name a version: the model alone, a number, or a label."""

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
    """A name in a path. A colon ends it: the part behind the colon is a verb, as in `iris:predict`."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("word", _Word())


# asynchronous for the same reason as `deps.get_services`
async def _by_model(request: Request, name: ModelName) -> None:
    request.state.ref = Ref(name, None, DEFAULT)


async def _by_number(request: Request, name: ModelName, n: Number) -> None:
    request.state.ref = Ref(name, n, "")


async def _by_label(request: Request, name: ModelName, alias: Alias) -> None:
    request.state.ref = Ref(name, None, alias)


MODEL = ("", _by_model)
NUMBER = ("/versions/{n:word}", _by_number)
LABEL = ("/labels/{alias:word}", _by_label)
#: a part of a path, and the dependency that makes a reference of that part
VersionPath = tuple[str, Callable[..., Any]]


def each_path(
    router: APIRouter, method: str, suffix: str, paths: Sequence[VersionPath], **options: Any
) -> Callable[[Endpoint], Endpoint]:
    """Return a decorator that adds a route for each path by which a version is named; `ref_of` returns the reference.

    Args:
        suffix: the end of each path.
        options: of each route, as in `APIRouter.add_api_route`.
    """

    def register(endpoint: Endpoint) -> Endpoint:
        for part, dependency in paths:
            path = f"/models/{{name:word}}{part}{suffix}"
            router.add_api_route(path, endpoint, methods=[method], dependencies=[Depends(dependency)], **options)
        return endpoint

    return register


def ref_of(request: Request) -> Ref:
    """Return the reference that a request's path makes."""
    ref: Ref = request.state.ref
    return ref


def all_models(registry: Registry) -> Iterator[Model]:
    """Yield all models, in the order of their names."""
    after: str | None = None
    while True:
        models, after = registry.list(500, after)
        yield from models
        if after is None:
            return
