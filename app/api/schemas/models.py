"""Bodies of the routes of models, versions and aliases."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from app.api.examples.models import MODEL
from app.learning.tables.label import Label
from app.records.version import Model, Version


class VersionSource(BaseModel):
    """The data set that a version was trained on."""

    id: str
    sha256: str
    rows: int


class VersionOut(BaseModel):
    """An immutable version."""

    model: str
    version: int
    job: str
    dataset: VersionSource
    status: Literal["ready", "failed_load"]
    weights_sha256: str
    inputs: list[dict[str, object]]
    classes: list[Label]
    spec: dict[str, object]
    metrics: dict[str, dict[str, float | None] | None]
    history: list[dict[str, float | None]]
    parameters: int
    size_bytes: int
    sha256: str
    environment: dict[str, str]
    tags: dict[str, str]
    created_at: str

    @classmethod
    def of(cls, version: Version, *, is_broken: bool) -> Self:
        """Return the body for a version; `is_broken` means that its files could not be loaded."""
        own = {
            "model": version.model,
            "version": version.version,
            "job": version.job_id,
            "status": "failed_load" if is_broken else "ready",
            "sha256": version.sha256,
            "created_at": version.created_at,
        }
        return cls.model_validate({**version.document, **own})


class VersionBrief(BaseModel):
    """A version in a model's list."""

    version: int
    job: str
    metrics: dict[str, dict[str, float | None] | None]
    parameters: int
    created_at: str

    @classmethod
    def of(cls, version: Version) -> Self:
        """Return the entry for a version."""
        return cls(
            version=version.version,
            job=version.job_id,
            metrics=version.document["metrics"],
            parameters=version.document["parameters"],
            created_at=version.created_at,
        )


class ModelOut(BaseModel):
    """A model: its versions, newest first, and its aliases."""

    model_config = ConfigDict(json_schema_extra={"examples": [MODEL]})
    name: str
    default_version: int | None
    latest_version: int
    versions: list[VersionBrief]
    aliases: dict[str, int]
    created_at: str

    @classmethod
    def of(cls, model: Model) -> Self:
        """Return the body for a model."""
        return cls(
            name=model.name,
            default_version=model.default_version,
            latest_version=model.latest_version,
            versions=[VersionBrief.of(version) for version in model.versions],
            aliases=model.aliases,
            created_at=model.created_at,
        )


class ModelPage(BaseModel):
    """A page of models."""

    items: list[ModelOut]
    next: str | None


class AliasIn(BaseModel):
    """Where an alias points."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"version": 1}]})
    version: int = Field(ge=1, le=2**31 - 1)


class AliasMove(BaseModel):
    """One move of an alias; the version is null where the alias was removed."""

    version: int | None
    reason: Literal["set", "promoted", "rollback", "deleted"]
    at: str


class AliasHistory(BaseModel):
    """A page of an alias's moves, newest first."""

    items: list[AliasMove]
    next: str | None
