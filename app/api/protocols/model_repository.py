"""Triton's extensions of the Open Inference Protocol that are no inference: repository, statistics, configuration.

Source: Triton, docs/protocol: extension_model_repository.md, extension_statistics.md, extension_model_configuration.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from app.api.deps import SMALL_BODY, ModelName, ServicesDep
from app.api.examples.media import OBJECT, json_body
from app.api.openapi import documented_plainly, takes
from app.api.protocols.open_inference import DATATYPES, WAYS
from app.api.protocols.version_paths import MODEL, NUMBER, each_way, every_model, named
from app.api.request_body import read_body
from app.errors import Invalid
from app.http.protocol_errors import OPEN_INFERENCE
from app.learning.requests.json_with_nan import parse_json_with_nan
from app.learning.requests.open_inference import LABEL, PROBABILITIES
from app.metrics.version_usage import Counts
from app.names import DEFAULT
from app.records.ref import Ref
from app.records.version import Version
from app.wiring import Services

router = APIRouter(prefix=OPEN_INFERENCE, tags=["Open Inference Protocol"])

_ASKED = (400, 408, 413, 415)
_TYPES = {"FP64": "TYPE_FP64", "BOOL": "TYPE_BOOL", "BYTES": "TYPE_STRING"}


async def _small(request: Request) -> dict[str, Any]:
    """Read an object that may be absent."""
    body = await read_body(request, SMALL_BODY)
    return parse_json_with_nan(body) if body.strip() else {}


Small = Annotated[dict[str, Any], Depends(_small)]


@router.post(
    "/repository/index",
    summary="List versions and their states",
    responses=documented_plainly(*_ASKED),
    openapi_extra=takes(json_body(OBJECT, required=False, one={"ready": True})),
)
def list_repository(services: ServicesDep, asked: Small) -> list[dict[str, str]]:
    """Give every version: READY, as it is loaded when it is first asked, or UNAVAILABLE where its files are damaged.

    `{"ready": true}` in the body leaves the others out.
    """
    is_ready_only = asked.get("ready", False)
    if not isinstance(is_ready_only, bool):
        raise Invalid.at(("ready",), "Expected ready to be true or false.")
    found = []
    for model in every_model(services.rooms.registry):
        for version in reversed(model.versions):
            is_broken = services.version_cache.is_broken(version)
            if is_broken and is_ready_only:
                continue
            state, reason = ("UNAVAILABLE", "Its files are damaged.") if is_broken else ("READY", "")
            found.append({"name": model.name, "version": str(version.version), "state": state, "reason": reason})
    return found


@router.post(
    "/repository/models/{name}/load",
    summary="Load a model",
    responses=documented_plainly(404, *_ASKED),
    openapi_extra=takes(json_body(OBJECT, required=False, one={})),
)
def load_model(name: ModelName, services: ServicesDep, asked: Small) -> dict[str, Any]:
    """Load a model's default version into memory and check it, so that the first request need not wait.

    A configuration or files in the body are refused: versions are made by training.
    """
    if asked.get("parameters"):
        raise Invalid.at(("parameters",), "Expected no parameters: versions are made by training.")
    services.version_cache.get(Ref(name, None, DEFAULT))
    return {"name": name, "load": True}


@router.post(
    "/repository/models/{name}/unload",
    summary="Unload a model",
    responses=documented_plainly(400, 404),
)
def unload_model(name: ModelName, services: ServicesDep) -> dict[str, Any]:
    """Free the memory of a model's versions; the next request loads what it needs again. Nothing is deleted."""
    services.rooms.registry.get(name)
    services.version_cache.unload(name)
    return {"name": name, "unload": True}


@router.get("/models/stats", summary="Get the statistics of all versions", responses=documented_plainly())
def get_all_statistics(services: ServicesDep) -> dict[str, Any]:
    """Give what every version has answered in this process, and what the time went to."""
    return _statistics(
        services, (v for model in every_model(services.rooms.registry) for v in reversed(model.versions))
    )


@each_way(router, "GET", "/stats", (MODEL,), summary="Get a model's statistics", responses=documented_plainly(400, 404))
def get_model_statistics(request: Request, services: ServicesDep) -> dict[str, Any]:
    """Give what each version of a model has answered."""
    return _statistics(services, reversed(services.rooms.registry.get(named(request).model).versions))


@each_way(
    router, "GET", "/stats", (NUMBER,), summary="Get a version's statistics", responses=documented_plainly(400, 404)
)
def get_version_statistics(request: Request, services: ServicesDep) -> dict[str, Any]:
    """Give what a version has answered."""
    return _statistics(services, [services.rooms.registry.resolve(named(request))])


def _statistics(services: Services, versions: Iterable[Version]) -> dict[str, Any]:
    return {"model_stats": [_figures(version, services.usage.get(version.key)) for version in versions]}


def _figures(version: Version, counts: Counts) -> dict[str, Any]:
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


@each_way(router, "GET", "/config", WAYS, summary="Get a model's configuration", responses=documented_plainly(400, 404))
def get_configuration(request: Request, services: ServicesDep) -> dict[str, Any]:
    """Give the inputs and outputs of a version as Triton's configuration has them; the first dimension is the rows."""
    version = services.rooms.registry.resolve(named(request))
    columns = [(each["name"], _TYPES[DATATYPES[each["kind"]]], [-1]) for each in version.document["inputs"]]
    classes = len(version.document["classes"])
    outputs = [(LABEL, "TYPE_STRING", [-1]), (PROBABILITIES, "TYPE_FP32", [-1, classes])]
    return {
        "name": version.model,
        "platform": "",
        "backend": "keras",
        "version_policy": {"all": {}},
        "max_batch_size": 0,
        "input": [{"name": name, "data_type": kind, "dims": dims} for name, kind, dims in columns],
        "output": [{"name": name, "data_type": kind, "dims": dims} for name, kind, dims in outputs],
    }
