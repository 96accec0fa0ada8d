"""Encoding on the fast path: a float32 is the same number as a float64. `test_handler` compares it with the encoder of the route."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from app.fast_path.encode import MatrixEncoder
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.inputs import Input


@settings(max_examples=300, deadline=None)
@given(st.floats(-1e39, 1e39), st.floats(-1e39, 1e39), st.booleans(), st.data())
def test_a_float32_is_in_and_out_of_a_range_as_the_same_number_as_float64(
    low: float, high: float, is_scaled: bool, data: st.DataObject
) -> None:
    low, high = min(low, high), max(low, high)
    mean, scale = (0.5, 3.0) if is_scaled else (0.0, 1.0)
    column = Input("a", "numeric", "impute", marks_missing=False, low=low, high=high, mean=mean, scale=scale)
    quick = MatrixEncoder.of(Encoder((column,)))
    assert quick is not None
    with np.errstate(over="ignore"):
        near = [np.float32(end) for end in (low, high)]
        near += [np.nextafter(end, np.float32(way)) for end in near for way in (-np.inf, np.inf)]
    values = data.draw(st.lists(st.sampled_from(near) | st.floats(width=32), min_size=1, max_size=5))
    narrow = np.array(values, np.float32).reshape(-1, 1)
    parts = [narrow[:1], narrow[1:]] if len(narrow) > 1 else [narrow]

    x, found = quick.encode(parts)
    wide, expected = quick.encode([part.astype(np.float64) for part in parts])

    assert (wide.tobytes(), expected) == (x.tobytes(), found)
