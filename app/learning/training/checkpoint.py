"""The state of a run between two of its steps, as one file. Knows neither Keras nor jobs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

_FACTS = "facts"
_DIGEST = "sha256"


@dataclass(frozen=True)
class State:
    """All that a run needs to go on as if it had never stopped.

    Args:
        facts: plain JSON: the position, the history, the mode and the device that must be kept.
        arrays: every variable by name, of the network, its random streams, its optimizer and its metrics.
    """

    facts: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


class Unusable(Exception):
    """The file is damaged; the run begins anew."""


def write(state: State, path: Path) -> None:
    """Write a state.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    document = np.frombuffer(json.dumps(state.facts).encode(), np.uint8)
    arrays = {name: np.asarray(array, order="C") for name, array in state.arrays.items()} | {_FACTS: document}
    try:
        save_file({**arrays, _DIGEST: _digest(arrays)}, path)
    except (OSError, SafetensorError) as error:
        path.unlink(missing_ok=True)
        raise OSError(f"the checkpoint was not written: {error}") from error


def read(path: Path) -> State:
    """Read a state.

    Raises:
        Unusable: the file is damaged.
    """
    try:
        arrays = load_file(path)
        is_whole = np.array_equal(arrays.pop(_DIGEST), _digest(arrays))
        state = State(json.loads(arrays.pop(_FACTS).tobytes()), arrays)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise Unusable("The checkpoint cannot be read.") from error
    if not is_whole:
        raise Unusable("The checkpoint cannot be read.")
    return state


def _digest(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Give the SHA-256 of names, types, shapes and bytes: safetensors tells a file that is cut, but no wrong bit in it."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        digest.update(arrays[name].reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)
