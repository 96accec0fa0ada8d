"""The application: routes, their right of way, and their documentation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts

from app import __version__
from app.api import datasets, docs, jobs, keys, models, operations, predictions
from app.api.auth import PUBLIC, authorize, is_public, needed
from app.api.protocols import model_repository, open_inference, tensorflow_serving
from app.api.schemas import AliasIn, DatasetOut, DatasetPatch, JobOut, KeyIn, ModelOut, PredictionOut
from app.http import problems
from app.http.gate import LOOPBACK_HOSTS, Edge
from app.http.protocol_errors import PlainError, is_plain
from app.learning.spec import TrainSpec
from app.metrics.request_durations import Tally
from app.wiring import Services

DESCRIPTION = """
Post a table, get a classifier behind a REST API.

1. **Upload** a table: `POST /api/v1/datasets` with CSV, JSON, NDJSON, NPZ, Parquet or Arrow as the body.
2. **Train**: `POST /api/v1/models/{name}/train`; follow the job's events.
3. **Evaluate** and **predict**: the new version serves at once.

Errors are `application/problem+json` (RFC 9457) with a stable `code`, what was expected and what came.
Off loopback every request carries `Authorization: Bearer KEY`.
"""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(given: Services, lifespan: Lifespan | None = None, tally: Tally | None = None) -> Edge:
    """Make the ASGI application of one process.

    Args:
        lifespan: what runs beside it while it serves.
        tally: what is answered another way, to be counted with it.
    """
    telemetry: Any = {
        "tracing": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "meter_provider": operations.open_meter(given, tally or Tally()),
    }
    app = FastAPI(
        title="fitserve",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(authorize)],
        lifespan=lifespan or _nothing,
        telemetry=telemetry,
        redirect_slashes=False,
        # relative: "Try it out" works behind a proxy that strips a prefix
        servers=[{"url": "."}],
    )
    app.state.services = given
    # the address of all statistics is that of a model, too
    protocols = (tensorflow_serving, model_repository, open_inference)
    for rooms in (datasets, models, jobs, predictions, *protocols, keys, operations, docs):
        app.include_router(rooms.router)
    problems.install(app)
    document = _openapi(app)

    @app.get("/openapi.json", include_in_schema=False, openapi_extra=PUBLIC)
    async def openapi() -> dict[str, Any]:
        return document()

    return Edge(app, _hosts(given), given.settings.body_seconds)


def _hosts(given: Services) -> frozenset[str] | None:
    if given.settings.needs_key or not given.settings.is_loopback:
        return None
    more = {name.strip() for name in given.settings.allowed_hosts.split(",") if name.strip()}
    return LOOPBACK_HOSTS | more


@asynccontextmanager
async def _nothing(_app: FastAPI) -> AsyncIterator[None]:
    yield


def _openapi(app: FastAPI) -> Callable[[], dict[str, Any]]:
    made: dict[str, Any] = {}

    def document() -> dict[str, Any]:
        if not made:
            made.update(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    description=app.description,
                    routes=app.routes,
                    servers=app.servers,
                )
            )
            schemas = made["components"]["schemas"]
            for extra in (TrainSpec, AliasIn, DatasetPatch, KeyIn, problems.Problem, PlainError):
                schema = extra.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= schema.pop("$defs", {})
                schemas[extra.__name__] = schema
            for shown in (DatasetOut, JobOut, ModelOut, PredictionOut):
                # FastAPI leaves null out of examples
                schemas[shown.__name__]["examples"] = shown.model_json_schema()["examples"]
            for route in iter_route_contexts(app.routes):
                for method in route.methods or () if route.include_in_schema else ():
                    operation = made["paths"][route.path_format][method.lower()]
                    if is_plain(str(route.path_format)):
                        # FastAPI's own, which is answered as 400
                        operation["responses"].pop("422", None)
                    elif method != "GET":
                        # what changes something, or works in a file, needs a place to write to
                        operation["responses"] |= {str(status): each for status, each in problems.DISK_FULL.items()}
                    if is_public(route):
                        # FastAPI adds an empty list to the one that it has
                        operation["security"] = []
                    else:
                        scope = needed(route)
                        asks = "any key" if scope == "any" else f"a key with the scope `{scope}`"
                        operation["description"] += f"\n\nWhere keys are asked for: {asks}."
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
        return made

    return document
