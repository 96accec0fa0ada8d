"""JSON as Python, TensorFlow and RapidJSON write it: a bare NaN is read as null. Knows no protocol."""

from __future__ import annotations

import json
from typing import Any

from app.errors import FitserveError, Invalid, Malformed
from app.learning.tables.parse_text import parse_json


def parse_json_with_nan(text: bytes) -> dict[str, object]:
    """Parse a JSON object in which NaN may stand for a missing number.

    Raises:
        Malformed: the text is not JSON.
        Invalid: the JSON is no object, or a number in it is infinite.
    """
    document = _parse(text)
    if not isinstance(document, dict):
        raise Invalid("Expected a JSON object.")
    return document


def _parse(text: bytes) -> Any:
    try:
        return parse_json(text, "JSON")
    except FitserveError:
        if b"NaN" not in text and b"Infinity" not in text:
            raise
        return parse_json(_without_nan(text), "JSON")


def _without_nan(text: bytes) -> str:
    """Write the text again as strict JSON, which `parse_json` then reads by the same rules as any other."""
    try:
        document = json.loads(text, parse_constant=_null)
        return json.dumps(document, allow_nan=False)
    except RecursionError as error:
        raise Malformed("Expected JSON of less depth.") from error
    except UnicodeDecodeError as error:
        raise Malformed("Expected JSON in UTF-8.") from error
    except ValueError as error:
        # a number such as 1e999 became infinite, or has too many digits to be read
        kind = Malformed if isinstance(error, json.JSONDecodeError) else Invalid
        raise kind(f"Expected JSON with finite numbers: {error}.") from error


def _null(constant: str) -> None:
    if constant != "NaN":
        raise Invalid("Expected finite numbers, got an infinite one.")
