"""The application of one serving process: all routes in their order, key checks, error handlers and documentation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache, partial
from typing import Any

from fastapi import Depends, FastAPI

from app import __version__
from app.api import (
    datasets,
    docs,
    evaluations,
    jobs,
    keys,
    models,
    operations,
    predictions,
    training,
)
from app.api.auth import PUBLIC, authorize
from app.api.error_handlers import add_error_handlers
from app.api.gauges import open_meter
from app.api.openapi import build_document
from app.api.protocols import (
    model_configuration,
    model_repository,
    model_statistics,
    open_inference,
    tensorflow_serving,
)
from app.http.gate import LOOPBACK_HOSTS, RequestGate
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


def create_app(services: Services, lifespan: Lifespan | None = None, tally: Tally | None = None) -> RequestGate:
    """Make the ASGI application of one process.

    Args:
        lifespan: runs from start-up to shutdown.
        tally: the counts of requests that the fast path answers, for `/metrics`.
    """
    telemetry: Any = {
        "tracing": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "meter_provider": open_meter(services, tally or Tally()),
    }
    app = FastAPI(
        title="fitserve",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(authorize)],
        lifespan=lifespan or _no_lifespan,
        telemetry=telemetry,
        redirect_slashes=False,
        # a relative address, with which "Try it out" works behind a proxy that strips a prefix
        servers=[{"url": "."}],
    )
    app.state.services = services
    # the statistics come before the models: `/v2/models/stats` is also the path of a model named stats
    protocols = (tensorflow_serving, model_repository, model_statistics, model_configuration, open_inference)
    for module in (datasets, models, training, jobs, predictions, evaluations, *protocols, keys, operations, docs):
        app.include_router(module.router)
    add_error_handlers(app)
    document = cache(partial(build_document, app))

    @app.get("/openapi.json", include_in_schema=False, openapi_extra=PUBLIC)
    async def openapi_document() -> dict[str, Any]:
        return document()

    return RequestGate(app, _hosts(services), services.settings.body_seconds)


def _hosts(services: Services) -> frozenset[str] | None:
    if services.settings.needs_key or not services.settings.is_loopback:
        return None
    more = {name.strip() for name in services.settings.allowed_hosts.split(",") if name.strip()}
    return LOOPBACK_HOSTS | more


@asynccontextmanager
async def _no_lifespan(_app: FastAPI) -> AsyncIterator[None]:
    yield
