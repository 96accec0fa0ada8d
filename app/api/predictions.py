"""Routes that put a version to work: evaluate and predict."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from app.api.auth import require
from app.api.datasets import FORMATS, UPLOAD_BODY, receive
from app.api.deps import ModelRef, ServicesDep, negotiate
from app.api.openapi import documented
from app.api.request_body import MULTIPART, media_type, read_body, staging
from app.api.schemas import Evaluation, PredictionOut, SliceFigures
from app.errors import Invalid, TooLarge, UnsupportedMedia
from app.http.answers import WRITERS
from app.http.media_types import ARROW_STREAM, NPZ
from app.learning.requests.read_rows import read_rows
from app.learning.tables.table_file import load_table
from app.metrics.version_usage import Stopwatch
from app.records.registry import Ref
from app.serving.predictor import LoadedVersion, Prediction
from app.wiring import Services

router = APIRouter(prefix="/api/v1/models", tags=["Predictions"])

_RECORDS = {"records": [{"length": 181, "weight": 3750}, {"length": 217, "weight": None}]}
PREDICT_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"type": "object"},
            "examples": {
                "records": {"value": _RECORDS},
                "columns": {"value": {"columns": {"length": [181, 217], "weight": [3750, 5200]}}},
                "rows": {"value": {"x": [[181, 3750], [217, 5200]]}},
            },
        },
        "text/csv": {"schema": {"type": "string"}, "examples": {"rows": {"value": "length,weight\n181,3750\n"}}},
        "text/tab-separated-values": {
            "schema": {"type": "string"},
            "examples": {"rows": {"value": "length\tweight\n181\t3750\n"}},
        },
        "application/x-ndjson": {
            "schema": {"type": "string"},
            "examples": {"lines": {"value": '{"length":181,"weight":3750}\n{"length":217}\n'}},
        },
        **{
            name: {"schema": {"type": "string", "format": "binary"}}
            for name in (
                "application/x-npy",
                NPZ,
                "application/octet-stream",
                "application/vnd.apache.parquet",
                ARROW_STREAM,
                "application/vnd.apache.arrow.file",
            )
        },
    },
}
#: media types that a prediction may come in → forms of `rows.decode`, or of `TRANSCODED`
PREDICT_FORMS = {**FORMATS, "application/x-npy": "npy", "application/octet-stream": "float32"}
#: what the ingest child turns into a frame first: polars lives there
TRANSCODED = frozenset({"parquet", "arrow_stream", "arrow_file"})
#: how much more than `max_predict_bytes` a file may be when it is unpacked
UNPACKED = 4
_BINARY = {"schema": {"type": "string", "format": "binary"}}
PREDICTIONS: dict[str, Any] = {
    "model": PredictionOut,
    "description": "Predictions, one for each row, in the form that `Accept` wants.",
    "content": {"text/csv": {"schema": {"type": "string"}}, NPZ: _BINARY, ARROW_STREAM: _BINARY},
}
EVALUATE_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"type": "object"},
            "examples": {
                "dataset": {"value": {"dataset": "ds_0193a5c2f1b07d2c9f1e3a5b7c9d"}},
                "inline": {
                    "value": {
                        "data": {
                            "columns": {"length": [181, 217], "weight": [3750, 5200], "species": ["Adelie", "Gentoo"]}
                        }
                    }
                },
            },
        },
        "text/csv": {
            "schema": {"type": "string"},
            "examples": {"table": {"value": "length,weight,species\n181,3750,Adelie\n217,5200,Gentoo\n"}},
        },
        **{name: content for name, content in UPLOAD_BODY["content"].items() if "examples" not in content},
        **{name: {"schema": {"type": "string"}} for name in ("text/tab-separated-values", "application/x-ndjson")},
    },
}


@router.post(
    "/{ref}/predict",
    response_class=Response,
    summary="Predict",
    responses=documented(
        *(400, 404, 406, 408, 413, 415, 422),
        ok=PREDICTIONS,
    ),
    openapi_extra={"requestBody": PREDICT_BODY},
)
async def predict(
    ref: ModelRef,
    request: Request,
    services: ServicesDep,
    top_k: Annotated[int | None, Query(ge=1, le=1000, description="Give the k best classes only.")] = None,
    on_error: Annotated[
        Literal["fail", "null"], Query(description="`null` answers null for rows that cannot be read, and the rest.")
    ] = "fail",
) -> Response:
    """Classify rows: JSON records, columns or rows in the order of the model's inputs; or a file of another type.

    Missing are `null`, absent values and, in arrays, NaN. Unseen categories and imputed values are named in `warnings`.
    NPY, NPZ (`x`) and `application/octet-stream` (little-endian float32, row after row) have a column for each input;
    the last is for models without categories.
    """
    answer_form = negotiate(request, WRITERS)
    form = PREDICT_FORMS.get(media_type(request))
    if form is None:
        came = media_type(request)[:80] or "none"
        raise UnsupportedMedia(f"Expected Content-Type {', '.join(PREDICT_FORMS)}; got {came!r}.")
    lane = services.lanes.predictions
    lane.check()
    # a place is for work: a client that sends slowly has none
    body = await read_body(request, services.settings.max_predict_bytes)
    async with lane.place():
        if form in TRANSCODED:
            body, form = await _transcode(services, form, body), "frame"
        ask = _Ask(Ref.parse(ref), form, body, on_error == "null", answer_form, top_k)
        found, answer = await lane.run(partial(_predict, services, ask, Stopwatch()))
        if answer_form == ARROW_STREAM:
            answer = await _to_arrow(services, answer)
    headers = {"X-Model": f"{found.loaded.version.model}@{found.loaded.version.version}"}
    if answer_form != "application/json":
        headers["X-Warnings-Total"] = str(len(found.notes))
    return Response(answer, media_type=answer_form, headers=headers)


@dataclass(frozen=True)
class _Ask:
    ref: Ref
    form: str
    body: bytes
    skips_bad: bool
    answer_form: str
    top_k: int | None


def _predict(services: Services, ask: _Ask, watch: Stopwatch) -> tuple[Prediction, bytes]:
    loaded = services.version_cache.get(ask.ref)
    watch.end("queue")
    with services.usage.measured(loaded.version.key, watch):
        inputs = loaded.artifact.encoder.inputs
        texts = next((each.name for each in inputs if each.kind == "categorical"), None)
        if ask.form == "float32" and texts is not None:
            # 0.1 as float32 is another number, and so another category
            raise Invalid.at((texts,), f"Expected another Content-Type: column {texts!r} has categories, not numbers.")
        rows = read_rows(ask.form, ask.body, [each.name for each in inputs], services.settings.max_predict_bytes)
        watch.rows = rows.count
        watch.end("input")
        found = loaded.predict(rows, skips_bad=ask.skips_bad)
        watch.end("infer")
        return found, WRITERS[ask.answer_form](found, ask.top_k)


async def _transcode(services: Services, form: str, body: bytes) -> bytes:
    with staging(services) as folder:
        (folder / "body").write_bytes(body)
        # a run of one value is a few bytes however long: unpacked, a cell takes two at least
        limit = services.settings.max_predict_bytes
        await services.prediction_parser.transcode(folder / "body", form, folder / "frame", limit // 2)
        if (folder / "frame").stat().st_size > UNPACKED * limit:
            raise TooLarge(f"Expected a file of at most {UNPACKED * limit} bytes unpacked, got a larger one.")
        return (folder / "frame").read_bytes()


async def _to_arrow(services: Services, columns: bytes) -> bytes:
    with staging(services) as folder:
        await asyncio.to_thread((folder / "columns").write_bytes, columns)
        await services.prediction_parser.to_arrow(folder / "columns", folder / "arrow")
        return await asyncio.to_thread((folder / "arrow").read_bytes)


@router.post(
    "/{ref}/evaluate",
    response_model=Evaluation,
    response_model_by_alias=True,
    response_model_exclude_unset=True,
    summary="Evaluate",
    responses=documented(400, 404, 408, 409, 413, 415, 422, 507),
    openapi_extra={"requestBody": EVALUATE_BODY},
)
async def evaluate(
    ref: ModelRef,
    request: Request,
    services: ServicesDep,
    by: Annotated[str | None, Query(max_length=200, description="Score the rows of each value of this column.")] = None,
) -> Any:
    """Score a version on labelled rows: a data set, data in the body, or a raw file. Nothing is stored.

    `by` adds `slices`, one for each value of a column, with the main figures of its rows. A stored data set takes a key
    that may read it, one with the scope `train`.
    """
    lane = services.lanes.evaluations
    async with lane.place():
        loaded = await lane.run(lambda: services.version_cache.get(Ref.parse(ref)))
        with staging(services) as folder:
            path = await _labelled(request, services, folder)
            return await lane.run(lambda: _evaluate(loaded, path, by))


async def _labelled(request: Request, services: Services, folder: Path) -> Path:
    """Give the table that a request is about: a data set's, or one in the folder that its body is parsed into."""
    raw = folder / "body"
    form, _ = await receive(request, services, raw)
    parser = services.parser_for(raw)
    dataset_id = None
    if form == "json" and media_type(request) != MULTIPART:
        reply = await parser.split(raw, folder / "data")
        dataset_id = reply["rest"].pop("dataset", None)
        if (dataset_id is not None) == reply["has_data"] or reply["rest"]:
            raise Invalid('Expected an object with one of "dataset" and "data".')
        raw = folder / "data"
    if dataset_id is None:
        await parser.parse(raw, form, folder / "table")
        return folder / "table"
    if not isinstance(dataset_id, str):
        raise Invalid.at(("dataset",), "Expected dataset to be an id.")
    # its slices and scores tell what is in it
    require(request, "train")
    dataset = await services.lanes.evaluations.run(lambda: services.rooms.datasets.get_ready(dataset_id))
    return services.rooms.datasets.path(dataset.table_key)


def _evaluate(loaded: LoadedVersion, path: Path, by: str | None) -> dict[str, Any]:
    found = loaded.evaluate(load_table(path), by)
    head = {"model": loaded.version.model, "version": loaded.version.version}
    slices = [
        {"value": value, **{name: getattr(scores, name) for name in SliceFigures.model_fields if name != "value"}}
        for value, scores in found.slices
    ]
    return head | found.overall.document(loaded.artifact.classes) | ({} if by is None else {"slices": slices})
