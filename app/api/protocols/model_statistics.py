"""Triton's statistics extension of the Open Inference Protocol: the requests of each version, and the time that they took.

Source: Triton, docs/protocol/extension_statistics.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, Request

from app.api.deps import ServicesDep
from app.api.openapi import UNCHECKED, documented_plainly
from app.api.protocols.version_paths import MODEL, NUMBER, all_models, each_path, ref_of
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
    """Return the requests of all versions that this process has answered, and the time that each part took."""
    return _statistics(services, (v for model in all_models(services.rooms.registry) for v in reversed(model.versions)))


@each_path(
    router,
    "GET",
    "/stats",
    (MODEL,),
    response_model=UNCHECKED,
    summary="Get a model's statistics",
    responses=documented_plainly(400, 404),
)
def get_model_statistics(request: Request, services: ServicesDep) -> Statistics:
    """Return the same figures for each version of a model."""
    return _statistics(services, reversed(services.rooms.registry.get(ref_of(request).model).versions))


@each_path(
    router,
    "GET",
    "/stats",
    (NUMBER,),
    response_model=UNCHECKED,
    summary="Get a version's statistics",
    responses=documented_plainly(400, 404),
)
def get_version_statistics(request: Request, services: ServicesDep) -> Statistics:
    """Return the same figures for one version."""
    return _statistics(services, [services.rooms.registry.resolve(ref_of(request))])


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
