"""Routes that put a version to work: evaluate and predict."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response

from app.api.datasets import body_limit, format_of
from app.api.deps import Given, ModelRef, media_type, read_body, require_acceptable, spool, staging
from app.api.problems import documented
from app.api.schemas import Evaluation, PredictionOut
from app.errors import Invalid, Malformed, UnsupportedMedia
from app.inference import Inference, Loaded, shown_notes
from app.learning.table import load
from app.registry import Ref
from app.wiring import Services

router = APIRouter(prefix="/api/v1/models", tags=["Predictions"])

#: those of uploaded CSV
DELIMITERS = ",;\t|"

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
    },
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
        "application/x-npz": {"schema": {"type": "string", "format": "binary"}},
    },
}


@dataclass(frozen=True)
class Rows:
    """Posted rows by column."""

    columns: Mapping[str, Sequence[Any]]
    count: int


@router.post(
    "/{ref}/predict",
    response_class=Response,
    summary="Predict",
    responses=documented(
        *(400, 404, 406, 408, 413, 415, 422),
        ok={"model": PredictionOut, "description": "Predictions, one for each row."},
    ),
    openapi_extra={"requestBody": PREDICT_BODY},
)
async def predict(
    ref: ModelRef,
    request: Request,
    given: Given,
    top_k: Annotated[int | None, Query(ge=1, le=1000, description="Give the k best classes only.")] = None,
) -> Response:
    """Classify rows given as records, columns, rows in the order of the model's inputs, or CSV with a header.

    `null` and absent values are missing; unseen categories and imputed values are named in `warnings`.
    """
    require_acceptable(request, "application/json")
    form = media_type(request)
    if form not in ("application/json", "text/csv"):
        raise UnsupportedMedia(f"Expected Content-Type application/json or text/csv, got {form[:80] or 'none'!r}.")
    body = await read_body(request, given.settings.max_predict_bytes)
    answer = await asyncio.to_thread(_predict, given.inference, Ref.parse(ref), form, body, top_k)
    return Response(answer, media_type="application/json")


def _predict(inference: Inference, ref: Ref, form: str, body: bytes, top_k: int | None) -> bytes:
    loaded = inference.get(ref)
    rows = _read_json(body, loaded) if form == "application/json" else _read_csv(body)
    found = inference.predict(loaded, rows.columns, rows.count)
    warnings, total = shown_notes(found.notes)
    document: dict[str, Any] = {
        "model": loaded.version.model,
        "version": loaded.version.version,
        "classes": loaded.artifact.classes,
        "predictions": found.labels,
    }
    document |= {"probabilities": found.probabilities} if top_k is None else {"top": found.top(top_k)}
    document |= {"warnings": warnings, "warnings_total": total}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _read_json(body: bytes, loaded: Loaded) -> Rows:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "infinity" in str(error):
            raise Invalid(f"Expected finite numbers: {error}.") from error
        raise Malformed(f"Expected JSON: {error}.") from error
    given = set(document) if isinstance(document, dict) else set()
    names = [each.name for each in loaded.artifact.encoder.inputs]
    if given == {"records"}:
        return _records(document["records"], names)
    if given == {"columns"}:
        return _columns(document["columns"])
    if given == {"x"}:
        return _rows(document["x"], names)
    raise Invalid('Expected an object with one of "records", "columns" and "x".')


def _records(records: Any, inputs: list[str]) -> Rows:
    if not isinstance(records, list) or not records:
        raise Invalid.at(("records",), "Expected records to be a list of at least one object.")
    names: dict[str, None] = {}
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            raise Invalid.at(("records", i), f"Expected record {i} to be an object.")
        names.update(dict.fromkeys(record))
    # of the others only the names matter: their cells could be as many as records times records
    cells = {name: [record.get(name) for record in records] for name in inputs if name in names}
    return Rows({**dict.fromkeys(names, ()), **cells}, len(records))


def _columns(columns: Any) -> Rows:
    if not isinstance(columns, dict) or not columns:
        raise Invalid.at(("columns",), "Expected columns to be an object of lists.")
    lengths = set()
    for name, cells in columns.items():
        if not isinstance(cells, list):
            raise Invalid.at(("columns", name), f"Expected column {name[:80]!r} to be a list.")
        lengths.add(len(cells))
    if len(lengths) > 1 or lengths == {0}:
        raise Invalid.at(("columns",), f"Expected columns of one length of at least 1, got {sorted(lengths)[:5]}.")
    return Rows(columns, lengths.pop())


def _rows(rows: Any, names: list[str]) -> Rows:
    if not isinstance(rows, list) or not rows:
        raise Invalid.at(("x",), "Expected x to be a list of at least one row.")
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(names):
            came = len(row) if isinstance(row, list) else "something else"
            raise Invalid.at(("x", i), f"Expected {len(names)} values, one for each input, got {came} in row {i}.")
    return Rows(dict(zip(names, zip(*rows, strict=True), strict=True)), len(rows))


def _delimiter(text: str) -> str:
    header = "".join(text.partition("\n")[0].split('"')[::2])
    return max(DELIMITERS, key=header.count)


def _read_csv(body: bytes) -> Rows:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"Expected UTF-8 text, got byte 0x{body[error.start]:02x} at offset {error.start}.") from error
    try:
        file = io.StringIO(text, newline="")
        lines = [line for line in csv.reader(file, delimiter=_delimiter(text), strict=True) if line]
    except csv.Error as error:
        raise Malformed(f"Expected CSV: {error}.") from error
    if len(lines) < 2:
        raise Invalid("Expected a header row and at least one data row.")
    header = [name.strip() for name in lines[0]]
    if len(set(header)) != len(header):
        raise Invalid("Expected different column names in the header.")
    for i, line in enumerate(lines[1:]):
        if len(line) != len(header):
            raise Invalid.at(("rows", i), f"Expected {len(header)} cells as in the header, got {len(line)} in row {i}.")
    return Rows(dict(zip(header, zip(*lines[1:], strict=True), strict=True)), len(lines) - 1)


@router.post(
    "/{ref}/evaluate",
    response_model=Evaluation,
    response_model_by_alias=True,
    summary="Evaluate",
    responses=documented(400, 404, 408, 413, 415, 422, 507),
    openapi_extra={"requestBody": EVALUATE_BODY},
)
async def evaluate(ref: ModelRef, request: Request, given: Given) -> Any:
    """Score a version on labelled rows: a data set, data in the body, or a raw file. Nothing is stored."""
    loaded = await asyncio.to_thread(given.inference.get, Ref.parse(ref))
    with staging(given) as folder:
        form = format_of(request)
        await spool(request, folder / "body", body_limit(given, form))
        raw, table_path = folder / "body", folder / "table"
        dataset_id = None
        if form == "json":
            reply = await given.ingest.split(folder / "body", folder / "data")
            dataset_id = reply["rest"].pop("dataset", None)
            if reply["has_data"]:
                raw = folder / "data"
            if (dataset_id is not None) == reply["has_data"] or reply["rest"]:
                raise Invalid('Expected an object with one of "dataset" and "data".')
        if dataset_id is None:
            await given.ingest.parse(raw, form, table_path)
        elif isinstance(dataset_id, str):
            dataset = await asyncio.to_thread(given.rooms.datasets.get, dataset_id)
            table_path = given.rooms.datasets.path(dataset.table_key)
        else:
            raise Invalid.at(("dataset",), "Expected dataset to be an id.")
        return await asyncio.to_thread(lambda: _evaluate(given, loaded, table_path))


def _evaluate(given: Services, loaded: Loaded, path: Path) -> dict[str, Any]:
    found = given.inference.evaluate(loaded, load(path))
    head = {"model": loaded.version.model, "version": loaded.version.version}
    return head | found.document(loaded.artifact.classes)
