"""Bodies of the routes of API keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.records.keys import Scope


class KeyIn(BaseModel):
    """A key to make."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "shop front end", "scopes": ["predict"]}]}
    )
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="A name to show; it need not be unique."
    )
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3)]


class KeyOut(BaseModel):
    """A stored key, without the key itself."""

    model_config = ConfigDict(from_attributes=True)
    id: str
    name: str | None
    scopes: list[Scope]
    created_at: str


class KeyMade(KeyOut):
    """A new key. Only this answer shows the key itself."""

    key: str


class KeyPage(BaseModel):
    """A page of the stored keys, newest first."""

    items: list[KeyOut]
    next: str | None
