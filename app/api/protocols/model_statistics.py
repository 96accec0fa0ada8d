"""Triton's extension of the Open Inference Protocol for statistics: what each version has answered, and what it took.

Source: Triton, docs/protocol/extension_statistics.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, Request

from app.api.deps import ServicesDep
from app.api.openapi import UNCHECKED, documented_plainly
from app.api.protocols.version_paths import MODEL, NUMBER, each_way, every_model, named
from app.api.schemas.open_inference import Statistics, VersionStatistics
from app.http.protocol_errors import OPEN_INFERENCE
from app.metrics.version_usage import Counts
from app.records.version import Version
from app.wiring import Services

router = APIRouter(prefix=OPEN_INFERENCE, tags=["Open Inference Protocol"])


@router.get(
    "/models/stats",
    response_model=UNCHECKED,
    summary="Get the statistics of all versions",
    responses=documented_plainly(),
)
def get_all_statistics(services: ServicesDep) -> Statistics:
    """Give what every version has answered in this process, and what the time went to."""
    return _statistics(
        services, (v for model in every_model(services.rooms.registry) for v in reversed(model.versions))
    )


@each_way(
    router,
    "GET",
    "/stats",
    (MODEL,),
    response_model=UNCHECKED,
    summary="Get a model's statistics",
    responses=documented_plainly(400, 404),
)
def get_model_statistics(request: Request, services: ServicesDep) -> Statistics:
    """Give what each version of a model has answered."""
    return _statistics(services, reversed(services.rooms.registry.get(named(request).model).versions))


@each_way(
    router,
    "GET",
    "/stats",
    (NUMBER,),
    response_model=UNCHECKED,
    summary="Get a version's statistics",
    responses=documented_plainly(400, 404),
)
def get_version_statistics(request: Request, services: ServicesDep) -> Statistics:
    """Give what a version has answered."""
    return _statistics(services, [services.rooms.registry.resolve(named(request))])


def _statistics(services: Services, versions: Iterable[Version]) -> Statistics:
    return {"model_stats": [_figures(version, services.usage.get(version.key)) for version in versions]}


def _figures(version: Version, counts: Counts) -> VersionStatistics:
    times = {"success": counts.total_ns, "queue": counts.ns["queue"]}
    times |= {f"compute_{part}": counts.ns[part] for part in ("input", "infer", "output")}
    return {
        "name": version.model,
        "version": str(version.version),
        "last_inference": counts.last_at_ms,
        "inference_count": counts.rows,
        "execution_count": counts.executions,
        "inference_stats": {
            **{name: {"count": counts.requests, "ns": ns} for name, ns in times.items()},
            "fail": {"count": counts.failures, "ns": counts.failed_ns},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [],
    }
