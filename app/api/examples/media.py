"""The shape of a body in the OpenAPI document: its media types, each with a schema and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from app.http.media_types import JSON

Schema = Mapping[str, object]
TEXT: Schema = {"type": "string"}
OBJECT: Schema = {"type": "object"}
BYTES: Schema = {"type": "string", "format": "binary"}


class Example(TypedDict):
    """One example value of a body."""

    summary: NotRequired[str]
    value: object


class Media(TypedDict):
    """What a body of one media type looks like."""

    schema: Schema
    examples: NotRequired[Mapping[str, Example]]


class RequestBody(TypedDict):
    """The bodies that a route reads, by media type."""

    required: bool
    content: Mapping[str, Media]


def media(schema: Schema, **examples: object) -> Media:
    """Describe a body by its schema and example values, by their names."""
    if not examples:
        return {"schema": schema}
    return {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}


def json_body(schema: Schema, *, required: bool = True, **examples: object) -> RequestBody:
    """Describe a JSON body by its schema and example values, by their names."""
    return {"required": required, "content": {JSON: media(schema, **examples)}}
