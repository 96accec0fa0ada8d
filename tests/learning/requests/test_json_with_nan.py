"""JSON with a bare NaN: read as null, and all else by the same rules as strict JSON."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import FitserveError, Invalid, Malformed
from app.learning.requests.json_with_nan import parse_json_with_nan

leaves = st.none() | st.booleans() | st.text() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_infinity=False)
documents = st.dictionaries(
    st.text(), st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
)


def without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if value != value else value


@given(documents)
def test_nan_is_null_and_every_other_value_is_as_it_was(document: dict[str, Any]) -> None:
    found = parse_json_with_nan(json.dumps(document).encode())

    # with orjson, as == knows no difference between 1, 1.0 and true
    assert orjson.dumps(without_nan(document)) == orjson.dumps(found)


@given(st.text(alphabet='{}[]",:NaInfity-0159.e \\ud8'), st.sampled_from(["NaN", "Infinity", ""]))
def test_any_text_is_a_document_or_a_fact(text: str, word: str) -> None:
    try:
        document = parse_json_with_nan(f'{{"a": {word}{text}}}'.encode())
    except FitserveError:
        return
    orjson.dumps(document)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b'{"a": Infinity}', Invalid),
        (b'{"a": [NaN, -Infinity]}', Invalid),
        (b'{"a": [NaN, 1e999]}', Invalid),
        (b'{"a": [NaN, %s]}' % (b"9" * 5000), Invalid),
        (b"[NaN]", Invalid),
        (b"NaN", Invalid),
        (b'{"a": nan}', Malformed),
        (b'{"a": NaN', Malformed),
        (b'{"NaN": "\xff"}', Malformed),
        (rb'{"NaN": "\ud800"}', Malformed),
        (b'{"a": NaN, "b": %s%s}' % (b"[" * 100_000, b"]" * 100_000), Malformed),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_none_is_a_fact(text: bytes, kind: type[FitserveError]) -> None:
    with pytest.raises(kind):
        parse_json_with_nan(text)


def test_a_text_that_says_nan_stays_a_text() -> None:
    assert {"a": "NaN", "b": None} == parse_json_with_nan(b'{"a": "NaN", "b": NaN}')
