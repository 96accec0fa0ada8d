"""Responses in typed formats: labels that are large integers keep their type, or become texts where no type holds them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from app.http.answers import to_columns, to_npz
from app.learning.requests.prediction_rows import Rows
from app.learning.tables.label import Label
from app.learning.tables.transcode_arrow import write_arrow
from app.records.ref import Ref
from app.records.rooms import Rooms
from app.serving.version_cache import VersionCache
from tests.stored_rows import make_artifact, train


@pytest.mark.parametrize(
    ("classes", "expected", "kind"),
    [
        ((-1, 2**63 - 1), [-1, 2**63 - 1], pl.Int64),
        ((1, 2**64 - 1), [1, 2**64 - 1], pl.UInt64),
        ((-1, 2**64 - 1), ["-1", "18446744073709551615"], pl.String),
    ],
)
@pytest.mark.parametrize("top_k", [None, 2])
def test_large_integers_are_themselves_or_texts(
    rooms: Rooms,
    tmp_path: Path,
    classes: tuple[Label, ...],
    expected: list[Label],
    kind: pl.DataType,
    top_k: int | None,
) -> None:
    train(rooms, artifact=replace(make_artifact(), classes=classes))
    loaded = VersionCache(rooms.registry, "cpu", 1024**3).get(Ref.parse("m"))
    found = loaded.predict(Rows({"a": [-5.0, 5.0, 0.1], "b": ["x", "z", "z"]}, 3))

    (tmp_path / "columns").write_bytes(to_columns(found, top_k))
    write_arrow((tmp_path / "columns").read_bytes(), tmp_path / "arrow")
    frame = pl.read_ipc_stream(tmp_path / "arrow")
    with np.load(io.BytesIO(to_npz(found, top_k))) as file:
        arrays = {name: file[name].tolist() for name in file.files}

    predicted = [expected[classes.index(label)] for label in found.labels if label is not None]
    assert (predicted, kind) == (frame["prediction"].to_list(), frame["prediction"].dtype)
    assert (predicted, expected) == (arrays["predictions"], arrays["classes"])
    if top_k is not None:
        assert arrays["top_classes"] == frame.select("class_1", "class_2").to_numpy().tolist()
        assert kind == frame["class_2"].dtype
