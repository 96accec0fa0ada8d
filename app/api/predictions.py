"""The native route that predicts: rows in, classes and probabilities out, each in several formats."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from app.api.deps import ModelRef, ServicesDep, negotiate
from app.api.examples.predictions import PREDICT, PREDICTIONS
from app.api.openapi import documented, takes
from app.api.request_body import media_type
from app.api.run_prediction import TimedVersion, admit
from app.api.schemas.predictions import PredictionOut
from app.api.spool import settled, staging
from app.api.uploads import FORMATS
from app.errors import Invalid, TooLarge, UnsupportedMedia
from app.http.answers import WRITERS
from app.http.media_types import ARROW_STREAM, BINARY, JSON, NPY
from app.learning.requests.read_rows import read_rows
from app.records.ref import Ref
from app.serving.predictor import Prediction
from app.wiring import Services

router = APIRouter(prefix="/api/v1/models", tags=["Predictions"])

#: media types of a request → formats that `read_rows` reads, or one of `TRANSCODED`
PREDICT_FORMS = {**FORMATS, NPY: "npy", BINARY: "float32"}
#: formats that the parser process first turns into a frame, which `read_rows` reads: only that process has polars
TRANSCODED = frozenset({"parquet", "arrow_stream", "arrow_file"})
#: a file may unpack to this many times `max_predict_bytes`
UNPACKED = 4


@router.post(
    "/{ref}/predict",
    response_class=Response,
    summary="Predict",
    responses=documented(
        *(400, 404, 406, 408, 413, 415, 422),
        ok={
            "model": PredictionOut,
            "description": "Predictions, one for each row, in the format that `Accept` names.",
            "content": PREDICTIONS,
        },
    ),
    openapi_extra=takes(PREDICT),
)
async def predict(
    ref: ModelRef,
    request: Request,
    services: ServicesDep,
    top_k: Annotated[int | None, Query(ge=1, le=1000, description="Return only the k most probable classes.")] = None,
    on_error: Annotated[
        Literal["fail", "null"],
        Query(description="With `null`, rows that cannot be read are answered with null, and all others as usual."),
    ] = "fail",
) -> Response:
    """Predict the class of each row. JSON has records, columns, or rows in the order of the model's inputs.

    Missing values are `null`, absent values and, in arrays, NaN. `warnings` names categories that training did not see,
    and values that were imputed. NPY, NPZ (`x`) and `application/octet-stream` (little-endian float32, row after row)
    have one column for each input; the last is for models without categories.
    """
    answer_form = negotiate(request, WRITERS)
    form = PREDICT_FORMS.get(media_type(request))
    if form is None:
        came = media_type(request)[:80] or "none"
        raise UnsupportedMedia(f"Expected Content-Type {', '.join(PREDICT_FORMS)}; got {came!r}.")
    async with admit(request, services) as admitted:
        body = admitted.body
        if form in TRANSCODED:
            body, form = await _transcode(services, form, body), "frame"
            admitted.stopwatch.end("input")
        options = _Options(form, on_error == "null", answer_form, top_k)
        work = partial(_predict, services, options, body)
        prediction, answer = await admitted.run(Ref.parse(ref), work)
        if answer_form == ARROW_STREAM:
            answer = await _to_arrow(services, answer)
    version = prediction.loaded.version
    headers = {"X-Model": f"{version.model}@{version.version}"}
    if answer_form != JSON:
        headers["X-Warnings-Total"] = str(len(prediction.warnings))
    return Response(answer, media_type=answer_form, headers=headers)


@dataclass(frozen=True)
class _Options:
    form: str
    skips_bad: bool
    answer_form: str
    top_k: int | None


def _predict(services: Services, options: _Options, body: bytes, version: TimedVersion) -> tuple[Prediction, bytes]:
    inputs = version.loaded.artifact.encoder.inputs
    texts = next((column.name for column in inputs if column.kind == "categorical"), None)
    if options.form == "float32" and texts is not None:
        # 0.1 as float32 is another number, and so another category
        raise Invalid.at((texts,), f"Expected another Content-Type: column {texts!r} has categories, not numbers.")
    rows = read_rows(options.form, body, version.columns, services.settings.max_predict_bytes)
    prediction = version.predict(rows, skips_bad=options.skips_bad)
    return prediction, WRITERS[options.answer_form](prediction, options.top_k)


async def _transcode(services: Services, form: str, body: bytes) -> bytes:
    # a column of equal values is compressed to a few bytes; unpacked, each cell takes at least two bytes
    limit = services.settings.max_predict_bytes
    lane = services.lanes.predictions
    async with staging(services) as folder:
        raw, frame = folder / "body", folder / "frame"
        await settled(lane.run(partial(raw.write_bytes, body)))
        await services.prediction_parser.transcode(raw, form, frame, limit // 2)
        return await lane.run(partial(_read_frame, frame, UNPACKED * limit))


def _read_frame(frame: Path, limit: int) -> bytes:
    if frame.stat().st_size > limit:
        raise TooLarge(f"Expected a file of at most {limit} bytes unpacked, got a larger one.")
    return frame.read_bytes()


async def _to_arrow(services: Services, columns: bytes) -> bytes:
    lane = services.lanes.predictions
    async with staging(services) as folder:
        raw, arrow = folder / "columns", folder / "arrow"
        await settled(lane.run(partial(raw.write_bytes, columns)))
        await services.prediction_parser.to_arrow(raw, arrow)
        return await lane.run(arrow.read_bytes)
