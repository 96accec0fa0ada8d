"""A run's state as a file: it comes back to the bit, or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from app.learning.training.checkpoint import (
    Checkpoint,
    Position,
    StoppingState,
    UnusableCheckpoint,
    load_checkpoint,
    write_checkpoint,
)
from tests.disks import fill, mounted

ARRAYS: dict[str, NDArray[Any]] = {
    "model/0": np.arange(12, dtype=np.float32).reshape(3, 4),
    # a column of another array, whose numbers do not lie together
    "model/1": np.arange(12, dtype=np.float32).reshape(3, 4).T[1:],
    "model/2": np.array([7, 2**32 - 1], np.uint32),
    "optimizer/0": np.array(2**40 + 1, np.int64),
    "optimizer/1": np.array(0.1, np.float32),
    "metrics/0": np.array([np.nan, -np.inf, -0.0, 1e-45], np.float32),
    "metrics/1": np.empty((0, 3), np.float32),
}
CHECKPOINT = Checkpoint(
    Position(3, 17),
    "xla",
    0.1,
    [{"epoch": 1, "loss": 0.1 + 0.2, "val_roc_auc": None}],
    1.0986123085021973,
    12.5,
    StoppingState(wait=2, best=-math.inf, best_epoch=0, stopped_epoch=0),
    ARRAYS,
    "a plan",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("written") / "checkpoint"
    write_checkpoint(CHECKPOINT, path)
    return path.read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "1m") as disk:
        yield disk


def test_what_is_written_comes_back_to_the_bit(tmp_path: Path) -> None:
    write_checkpoint(CHECKPOINT, tmp_path / "checkpoint")

    found = load_checkpoint(tmp_path / "checkpoint")

    assert replace(CHECKPOINT, arrays={}) == replace(found, arrays={})
    assert set(ARRAYS) == set(found.arrays)
    for name, array in ARRAYS.items():
        again = found.arrays[name]
        assert (array.dtype, array.shape, array.tobytes()) == (again.dtype, again.shape, again.tobytes())


def test_what_is_written_twice_is_the_newer(tmp_path: Path) -> None:
    write_checkpoint(CHECKPOINT, tmp_path / "checkpoint")
    later = replace(CHECKPOINT, position=Position(4), stopping=None, arrays={})
    write_checkpoint(later, tmp_path / "checkpoint")

    assert later == load_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_a_file_cut_short_is_of_no_use(tmp_path: Path, written: bytes, share: float) -> None:
    (tmp_path / "checkpoint").write_bytes(written[: int(share * len(written))])

    with pytest.raises(UnusableCheckpoint, match="cannot be read"):
        load_checkpoint(tmp_path / "checkpoint")


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_file_with_one_wrong_bit_is_of_no_use(
    tmp_path_factory: pytest.TempPathFactory, written: bytes, at: float, bit: int
) -> None:
    damaged = bytearray(written)
    damaged[int(at * len(written))] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)

    with pytest.raises(UnusableCheckpoint, match="cannot be read"):
        load_checkpoint(path)


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}"])
def test_another_file_is_of_no_use(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "checkpoint").write_bytes(body)

    with pytest.raises(UnusableCheckpoint):
        load_checkpoint(tmp_path / "checkpoint")


def test_arrays_alone_are_of_no_use(tmp_path: Path) -> None:
    save_file({"model/0": ARRAYS["model/0"]}, tmp_path / "checkpoint")

    with pytest.raises(UnusableCheckpoint):
        load_checkpoint(tmp_path / "checkpoint")


def test_a_file_that_is_not_there_is_of_no_use(tmp_path: Path) -> None:
    with pytest.raises(UnusableCheckpoint):
        load_checkpoint(tmp_path / "checkpoint")


def test_a_full_disk_is_an_error_and_nothing_is_left_of_the_file(small_disk: Path) -> None:
    fill(small_disk, 64 * 1024)
    large = replace(CHECKPOINT, arrays={"model/0": np.zeros(256 * 1024, np.float32)})

    with pytest.raises(OSError, match="the checkpoint was not written"):
        write_checkpoint(large, small_disk / "checkpoint")

    assert ["ballast"] == [file.name for file in small_disk.iterdir()]
    write_checkpoint(CHECKPOINT, small_disk / "checkpoint")
    assert CHECKPOINT.position == load_checkpoint(small_disk / "checkpoint").position


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the checkpoint was not written"):
        write_checkpoint(CHECKPOINT, tmp_path / "none" / "checkpoint")
