"""Models and versions as values. Knows no SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from app.learning.tables.label import Label
from app.names import DEFAULT


class InputDescription(TypedDict):
    """A column that a version takes.

    Args:
        kind: "numeric", "boolean" or "categorical".
        missing: "error" where a missing value is refused, "impute" where one is filled in.
        categories: of a categorical column, those of the training data.
        min, max: of a numeric column, the range of the training data.
    """

    name: str
    kind: str
    missing: str
    categories: NotRequired[Sequence[Label]]
    min: NotRequired[float]
    max: NotRequired[float]


class VersionSpec(TypedDict):
    """The specification that a version was trained by, as far as the service itself reads it."""

    target: str
    optimize: str
    promote: str


class VersionScores(TypedDict):
    """The scores of a version by name, None where one is not finite; `validation` is None without validation data."""

    train: Mapping[str, float | None]
    validation: Mapping[str, float | None] | None


class VersionSource(TypedDict):
    """The data set that a version was trained on, which may be deleted by now."""

    id: str
    sha256: str
    rows: int


class VersionDocument(TypedDict):
    """What clients read of a version, as plain JSON, except its name, status and times.

    Args:
        history: the scores of each epoch.
        stopped: why the run ended before its last epoch; None where it did not.
        features: encoded ones, d.
        rows: of "train" and of "validation".
        environment: the versions of the libraries that trained it, by name, and on what they ran.
    """

    weights_sha256: str
    inputs: Sequence[InputDescription]
    classes: Sequence[Label]
    spec: VersionSpec
    metrics: VersionScores
    history: Sequence[Mapping[str, float | None]]
    stopped: str | None
    parameters: int
    features: int
    rows: Mapping[str, int]
    size_bytes: int
    environment: Mapping[str, str]
    dataset: VersionSource
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Version:
    """One immutable version.

    Args:
        version: its number, from 1. A number is never used again.
        key: where the store has the version's files.
        sha256: the digest of all of them, in hexadecimal.
    """

    model: str
    version: int
    job_id: str
    key: str
    sha256: str
    document: VersionDocument
    created_at: str


@dataclass(frozen=True)
class Model:
    """A model with its versions that are not deleted, newest first, and its aliases.

    Args:
        latest_version: the last number that was given to a version, deleted ones included.
        aliases: the number of the version that each points at.
    """

    name: str
    latest_version: int
    versions: tuple[Version, ...]
    aliases: Mapping[str, int]
    created_at: str

    @property
    def default_version(self) -> int | None:
        """The number of the version that the bare name means."""
        return self.aliases.get(DEFAULT)
