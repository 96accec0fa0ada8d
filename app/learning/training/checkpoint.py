"""A checkpoint: the state of a run between two of its steps, as a value and as one file. Knows neither Keras nor jobs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from app.learning.training.events import LoopMode

_FACTS = "facts"
_DIGEST = "sha256"


@dataclass(frozen=True)
class Position:
    """The number of epochs that are done, and of steps of the next epoch."""

    epoch: int
    step: int = 0


BEGINNING = Position(0)


@dataclass(frozen=True)
class StoppingState:
    """What `keras.callbacks.EarlyStopping` keeps between two epochs, beside its best weights."""

    wait: int
    best: float | None
    best_epoch: int
    stopped_epoch: int


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to continue as if it had never stopped.

    Args:
        learning_rate: of the run; a tenth of the specification's where the run started again after it diverged.
        history: the figures of each epoch by name.
        first_loss: the loss of the first batch, None before it.
        elapsed_seconds: the time that the run has taken.
        stopping: None where the run has no early stopping.
        arrays: every variable by name, of the network, its random streams, its optimizer and its metrics.
        plan: a digest of all that the outcome of the run depends on.
    """

    position: Position
    loop: LoopMode
    learning_rate: float
    history: Sequence[Mapping[str, float | None]]
    first_loss: float | None
    elapsed_seconds: float
    stopping: StoppingState | None
    arrays: Mapping[str, NDArray[Any]]
    plan: str = ""


class UnusableCheckpoint(Exception):
    """The file is damaged: the run has to begin at its first epoch."""


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint.

    Raises:
        OSError: the file cannot be written; no part of it is left.
    """
    facts = {
        **asdict(checkpoint.position),
        "loop": checkpoint.loop,
        "learning_rate": checkpoint.learning_rate,
        "history": checkpoint.history,
        "first_loss": checkpoint.first_loss,
        "elapsed_seconds": checkpoint.elapsed_seconds,
        "stopping": {} if checkpoint.stopping is None else asdict(checkpoint.stopping),
        "plan": checkpoint.plan,
    }
    document = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    arrays = {name: np.asarray(array, order="C") for name, array in checkpoint.arrays.items()} | {_FACTS: document}
    try:
        save_file({**arrays, _DIGEST: _digest(arrays)}, path)
    except (OSError, SafetensorError) as error:
        path.unlink(missing_ok=True)
        raise OSError(f"the checkpoint was not written: {error}") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UnusableCheckpoint: the file is damaged.
    """
    try:
        arrays = load_file(path)
        is_whole = np.array_equal(arrays.pop(_DIGEST), _digest(arrays))
        checkpoint = _parse(json.loads(arrays.pop(_FACTS).tobytes()), arrays)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UnusableCheckpoint("The checkpoint cannot be read.") from error
    if not is_whole:
        raise UnusableCheckpoint("The checkpoint cannot be read.")
    return checkpoint


def _parse(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Checkpoint:
    return Checkpoint(
        Position(facts["epoch"], facts["step"]),
        facts["loop"],
        facts["learning_rate"],
        facts["history"],
        facts["first_loss"],
        facts["elapsed_seconds"],
        StoppingState(**facts["stopping"]) if facts["stopping"] else None,
        arrays,
        facts["plan"],
    )


def _digest(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Return the SHA-256 of names, types, shapes and bytes: safetensors notices a file that is cut, but no wrong bit."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        digest.update(arrays[name].reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)
