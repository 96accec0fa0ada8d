"""Bodies of the routes of data sets."""

from __future__ import annotations

from pydantic.config import JsonDict

from app.api.examples.media import BYTES, OBJECT, TEXT, RequestBody, media
from app.http.media_types import ARROW_FILE, ARROW_STREAM, CSV, JSON, MULTIPART, NDJSON, NPZ, PARQUET, TSV

_CSV = "species,length,weight\nAdelie,181,3750\nGentoo,217,5200\nAdelie,186,3800\n"
UPLOAD: RequestBody = {
    "required": True,
    "content": {
        CSV: media(TEXT, table=_CSV),
        TSV: media(TEXT, table=_CSV.replace(",", "\t")),
        JSON: media(
            OBJECT,
            columns={"columns": {"length": [181, 217, 186], "species": ["Adelie", "Gentoo", "Adelie"]}},
            records={"records": [{"length": 181, "species": "Adelie"}, {"length": 217, "species": "Gentoo"}]},
            matrix={"x": [[0.1, 2.0], [1.5, 0.3]], "y": [0, 1]},
        ),
        NDJSON: media(TEXT, lines='{"length":181,"species":"Adelie"}\n{"length":217,"species":"Gentoo"}\n'),
        NPZ: media(BYTES),
        PARQUET: media(BYTES),
        ARROW_STREAM: media(BYTES),
        ARROW_FILE: media(BYTES),
        MULTIPART: media({"type": "object", "required": ["file"], "properties": {"file": BYTES}}),
    },
}
DATASET: JsonDict = {
    "id": "ds_0193a5c2f1b07d2c9f1e3a5b7c9d",
    "name": "penguins.csv",
    "status": "ready",
    "format": "csv",
    "rows": 344,
    "size_bytes": 13478,
    "sha256": "9f2c" * 16,
    "columns": [
        {
            "name": "island",
            "kind": "categorical",
            "missing": 0,
            "unique": 3,
            "min": None,
            "max": None,
            "mean": None,
            "std": None,
            "top": [["Biscoe", 168], ["Dream", 124], ["Torgersen", 52]],
            "warnings": [],
        }
    ],
    "warnings": [],
    "error": None,
    "created_at": "2026-11-24T09:29:58.120Z",
}
