"""The OpenAPI document of one version: its real columns, categories and classes, and an example that works."""

from __future__ import annotations

from app import __version__
from app.http.media_types import JSON
from app.learning.tables.label import Label
from app.records.version import InputDescription, Version

#: an OpenAPI document, or a part of one
Document = dict[str, object]


def build_version_document(version: Version) -> Document:
    """Return an OpenAPI 3.1 document of how to predict with this version.

    The example is made of statistics of the training data; it is not one of the rows.
    """
    ref = f"{version.model}@{version.version}"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{ref}: {version.document['spec']['target']}",
            "version": str(version.version),
            "description": _text(version),
        },
        "servers": [{"url": "../../../../../../"}],
        "security": [{"bearer": []}],
        "paths": {f"/api/v1/models/{ref}/predict": {"post": _predict(version)}},
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(version),
        },
    }


def _predict(version: Version) -> Document:
    records = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Row"}}
    body: Document = {
        "schema": {"type": "object", "required": ["records"], "properties": {"records": records}},
        "example": {"records": [{column["name"]: _value(column) for column in version.document["inputs"]}]},
    }
    return {
        "operationId": "predict",
        "summary": f"Predict {version.document['spec']['target']}",
        "requestBody": {"required": True, "content": {JSON: body}},
        "responses": {
            "200": {
                "description": "One prediction for each record.",
                "content": {JSON: {"schema": {"$ref": "#/components/schemas/Prediction"}}},
            },
            "422": {"description": "A value is of the wrong type; the answer names row and column."},
        },
    }


def _schemas(version: Version) -> Document:
    classes = list(version.document["classes"])
    probabilities = {
        "type": "array",
        "minItems": len(classes),
        "maxItems": len(classes),
        "items": {"type": "number", "minimum": 0, "maximum": 1},
    }
    return {
        "Row": {
            "type": "object",
            "properties": {column["name"]: _cell(column) for column in version.document["inputs"]},
            "required": [column["name"] for column in version.document["inputs"] if column["missing"] == "error"],
        },
        "Label": {"enum": classes},
        "Prediction": {
            "type": "object",
            "required": ["model", "version", "classes", "predictions", "probabilities", "warnings"],
            "properties": {
                "model": {"const": version.model},
                "version": {"const": version.version},
                "classes": {"const": classes},
                "predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Label"}},
                "probabilities": {"type": "array", "items": probabilities},
                "warnings": {"type": "array", "items": {"type": "object"}},
            },
        },
    }


def _text(version: Version) -> str:
    validation = (version.document["metrics"]["validation"] or {}).get("accuracy")
    figure = "" if validation is None else f" Its accuracy on held-out rows was {validation:.4f}."
    return f"Made {version.created_at} by job {version.job_id}; it never changes.{figure} Served by fitserve {__version__}."


def _cell(column: InputDescription) -> Document:
    """Return the schema of a cell. A category that is not listed is allowed: the prediction has a warning."""
    missing = [{"type": "null"}] if column["missing"] == "impute" else []
    if column["kind"] == "categorical":
        other = {"type": ["string", "number", "boolean"], "description": "Any other is answered too, with a warning."}
        return {"anyOf": [{"enum": column["categories"]}, other, *missing]}
    if column["kind"] == "boolean":
        return {"anyOf": [{"type": "boolean"}, *missing]}
    return {
        "anyOf": [{"type": "number"}, *missing],
        "description": f"Seen in training: {column['min']:g} to {column['max']:g}.",
    }


def _value(column: InputDescription) -> Label | None:
    if column["kind"] == "categorical":
        return next(iter(column["categories"]), None)
    return True if column["kind"] == "boolean" else column["min"] / 2 + column["max"] / 2
