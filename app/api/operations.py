"""Routes for operators: whether the process is alive, whether it serves, its metrics, and what this system is."""

from __future__ import annotations

import asyncio
import platform
from contextlib import suppress
from importlib import metadata
from typing import Annotated

from fastapi import APIRouter, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from app import __version__
from app.api.auth import PUBLIC
from app.api.deps import ServicesDep
from app.api.examples.media import TEXT, media
from app.api.openapi import UNCHECKED, documented
from app.api.schemas.operations import Readiness, System
from app.errors import NotReady, Unavailable
from app.records.job_status import JobStatus
from app.wiring import Services

router = APIRouter(tags=["Operations"])

LIBRARIES = ("fastapi", "jax", "keras", "numpy", "onnxruntime", "tensorflow", "torch", "uvicorn")


@router.get("/livez", summary="Is the process alive?", openapi_extra=PUBLIC, responses=documented(is_public=True))
async def livez() -> dict[str, str]:
    """Answer as long as the event loop runs; nothing else is checked."""
    return {"status": "alive"}


@router.get(
    "/readyz",
    response_model=UNCHECKED,
    summary="Does it serve?",
    openapi_extra=PUBLIC,
    responses=documented(422, is_public=True),
)
async def readyz(
    services: ServicesDep,
    verbose: Annotated[bool, Query(description="Also return the state of the database and of the workers.")] = False,
) -> Readiness:
    """Answer 200 from the end of start-up until shutdown begins."""
    if services.is_draining:
        raise NotReady("The service is stopping.")
    answer: Readiness = {"status": "ready"}
    if services.settings.insecure_no_auth and not services.settings.needs_key:
        answer["warning"] = "served without keys: insecure_no_auth"
    if verbose:
        answer["checks"] = await asyncio.to_thread(_checks, services)
    return answer


def _checks(services: Services) -> dict[str, str]:
    try:
        services.rooms.database.ping()
    except Unavailable:
        return {"database": "unavailable"}
    states = {worker["state"] for worker in services.rooms.workers.list()}
    return {"database": "ok", "workers": "ok" if "alive" in states else "none"}


@router.get(
    "/metrics",
    response_class=Response,
    summary="Prometheus metrics",
    responses=documented(ok={"content": {"text/plain": media(TEXT)}}),
)
async def get_metrics(services: ServicesDep) -> Response:
    """Return all metrics in Prometheus's text format. If several processes serve, the figures are those of all."""
    page = await asyncio.to_thread(own_page) if services.totals is None else await services.totals.page()
    return Response(page, headers={"Content-Type": CONTENT_TYPE_LATEST})


def own_page() -> bytes:
    """Return this process's metrics in Prometheus's text format."""
    return generate_latest(REGISTRY)


@router.get("/api/v1/system", response_model=UNCHECKED, summary="What this system is", responses=documented())
def get_system(services: ServicesDep) -> System:
    """Return versions of libraries, devices, limits, the queue, the workers, and the device of each loaded version."""
    settings = services.settings
    counts = services.rooms.jobs.counts()
    limits = {name: getattr(settings, name) for name in type(settings).model_fields if name.startswith("max_")}
    return {
        "version": __version__,
        "python": platform.python_version(),
        "libraries": _installed_libraries(),
        "devices": [{"id": "cpu", "name": platform.machine(), "memory_bytes": None}, *services.version_cache.gpus],
        "serves_on": "gpu:0" if services.version_cache.serves_on_gpu else "cpu",
        "loaded": services.version_cache.devices(),
        "processes": settings.processes,
        "queue": {"queued": counts.get(JobStatus.QUEUED, 0), "running": counts.get(JobStatus.RUNNING, 0)},
        "workers": services.rooms.workers.list(),
        "limits": limits,
    }


def _installed_libraries() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        # only one of Keras's backends has to be installed
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
