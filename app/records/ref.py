"""References: what a caller calls a version."""

from __future__ import annotations

from dataclasses import dataclass

from app.names import DEFAULT


@dataclass(frozen=True)
class Ref:
    """A reference to a version: `iris`, `iris@3` or `iris@champion`.

    Args:
        version: its number, or None where the alias says which.
        alias: empty where there is a number.
    """

    model: str
    version: int | None
    alias: str

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Read a reference; a part after `@` that is a number is a version, else an alias."""
        model, at, rest = text.partition("@")
        if at and rest.isascii() and rest.isdigit() and len(rest) < 10:
            return cls(model, int(rest), "")
        return cls(model, None, rest if at else DEFAULT)
