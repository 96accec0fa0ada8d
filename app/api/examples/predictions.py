"""Bodies of the routes that predict and evaluate."""

from __future__ import annotations

from pydantic.config import JsonDict

from app.api.examples.datasets import UPLOAD
from app.api.examples.media import BYTES, OBJECT, TEXT, Media, RequestBody, media
from app.http.media_types import ARROW_FILE, ARROW_STREAM, BINARY, CSV, JSON, NDJSON, NPY, NPZ, PARQUET, TSV

PREDICT: RequestBody = {
    "required": True,
    "content": {
        JSON: media(
            OBJECT,
            records={"records": [{"length": 181, "weight": 3750}, {"length": 217, "weight": None}]},
            columns={"columns": {"length": [181, 217], "weight": [3750, 5200]}},
            rows={"x": [[181, 3750], [217, 5200]]},
        ),
        CSV: media(TEXT, rows="length,weight\n181,3750\n"),
        TSV: media(TEXT, rows="length\tweight\n181\t3750\n"),
        NDJSON: media(TEXT, lines='{"length":181,"weight":3750}\n{"length":217}\n'),
        NPY: media(BYTES),
        NPZ: media(BYTES),
        BINARY: media(BYTES),
        PARQUET: media(BYTES),
        ARROW_STREAM: media(BYTES),
        ARROW_FILE: media(BYTES),
    },
}
#: the forms of an answer beside JSON
PREDICTIONS: dict[str, Media] = {
    CSV: media(TEXT),
    NPZ: media(BYTES),
    ARROW_STREAM: media(BYTES),
}
EVALUATE: RequestBody = {
    "required": True,
    "content": {
        JSON: media(
            OBJECT,
            dataset={"dataset": "ds_0193a5c2f1b07d2c9f1e3a5b7c9d"},
            inline={
                "data": {"columns": {"length": [181, 217], "weight": [3750, 5200], "species": ["Adelie", "Gentoo"]}}
            },
        ),
        CSV: media(TEXT, table="length,weight,species\n181,3750,Adelie\n217,5200,Gentoo\n"),
        **{name: body for name, body in UPLOAD["content"].items() if "examples" not in body},
        **{name: media(TEXT) for name in (TSV, NDJSON)},
    },
}
PREDICTION: JsonDict = {
    "model": "penguins",
    "version": 1,
    "classes": ["Adelie", "Gentoo"],
    "predictions": ["Adelie", "Gentoo"],
    "probabilities": [[0.97, 0.03], [0.01, 0.99]],
    "warnings": [{"row": 1, "column": "weight", "code": "imputed"}],
    "warnings_total": 1,
}
#: tensors for the Open Inference Protocol
INFER: RequestBody = {
    "required": True,
    "content": {
        JSON: media(
            OBJECT,
            columns={
                "inputs": [
                    {"name": "length", "datatype": "FP64", "shape": [2], "data": [181, 217]},
                    {"name": "weight", "datatype": "FP64", "shape": [2], "data": [3750, None]},
                ]
            },
            matrix={
                "id": "1",
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [[181, 3750]]}],
                "outputs": [{"name": "probabilities", "parameters": {"classification": 1}}],
            },
        ),
        BINARY: media(BYTES),
    },
}
