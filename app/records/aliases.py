"""Aliases: names that point at a model's versions, with the history of each and a way back."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.errors import Conflict, Invalid, NotFound
from app.names import ALIAS
from app.records.model_rows import get_model, get_version, hold_model
from app.records.version import Model
from app.storage.database import Database
from app.storage.rows import now
from app.storage.tables import alias_moves, aliases, versions

Reason = Literal["set", "promoted", "rollback", "deleted"]


@dataclass(frozen=True)
class AliasChange:
    """One change of an alias.

    Args:
        version: the number of the version that it points at since; None where the alias was deleted.
    """

    version: int | None
    reason: Reason
    at: str
    id: int


def trail(changes: Sequence[AliasChange]) -> list[int]:
    """Return the versions that rollbacks walk back over, the present one last.

    Args:
        changes: oldest first. A rollback takes the versions after the one that it went to off the trail, so that two
            rollbacks go back twice.
    """
    steps: list[int] = []
    for change in changes:
        if change.version is None:
            continue
        if change.reason == "rollback" and change.version in steps:
            while steps[-1] != change.version:
                steps.pop()
        elif not steps or steps[-1] != change.version:
            steps.append(change.version)
    return steps


class Aliases:
    """The room of aliases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(self, name: str, alias: str, number: int) -> Model:
        """Point an alias at a version.

        Raises:
            NotFound: there is no such model or version.
            Invalid: the alias does not start with a letter.
        """
        if not re.fullmatch(ALIAS, alias):
            raise Invalid.at(("alias",), "Expected an alias of at most 64 characters that starts with a letter.")
        with self._database.write() as connection:
            hold_model(connection, name)
            get_version(connection, name, number)
            point(connection, name, alias, number, "set")
            return get_model(connection, name)

    def delete(self, name: str, alias: str) -> None:
        """Delete an alias, or raise `NotFound`; its history stays."""
        with self._database.write() as connection:
            hold_model(connection, name)
            query = sa.delete(aliases).where(aliases.c.model == name, aliases.c.alias == alias)
            if connection.execute(query).rowcount == 0:
                raise NotFound("alias", f"{name}@{alias}")
            add_change(connection, name, alias, None, "deleted")

    def history(self, name: str, alias: str, limit: int, after: int | None) -> tuple[Sequence[AliasChange], int | None]:
        """Return a page of an alias's changes, newest first, and the next cursor.

        Args:
            after: the cursor of the page before, None for the first page.

        Raises:
            NotFound: there never was such an alias.
        """
        with self._database.read() as connection:
            changes = _changes(connection, name, alias)[::-1]
        if not changes:
            raise NotFound("alias", f"{name}@{alias}")
        rest = [change for change in changes if after is None or change.id < after]
        return rest[:limit], rest[limit - 1].id if len(rest) > limit else None

    def previous_version(self, name: str, alias: str, skipped: Collection[int] = ()) -> int:
        """Return the number of the version that `rollback` would go to; raises as `rollback` does."""
        with self._database.read() as connection:
            return _previous_version(connection, name, alias, skipped)

    def rollback(self, name: str, alias: str, skipped: Collection[int] = ()) -> Model:
        """Point an alias back at the version that it pointed at before; deleted versions are skipped.

        Args:
            skipped: the numbers of versions to skip, too.

        Raises:
            NotFound: there is no such model, or no such alias now.
            Conflict: there is no earlier version left.
        """
        with self._database.write() as connection:
            hold_model(connection, name)
            number = _previous_version(connection, name, alias, skipped)
            point(connection, name, alias, number, "rollback")
            return get_model(connection, name)


def point(connection: Connection, model: str, alias: str, number: int, reason: Reason) -> None:
    """Point an alias at a version, and note that in its history."""
    connection.execute(sa.delete(aliases).where(aliases.c.model == model, aliases.c.alias == alias))
    row = {"model": model, "alias": alias, "version": number, "updated_at": now()}
    connection.execute(sa.insert(aliases).values(row))
    add_change(connection, model, alias, number, reason)


def add_change(connection: Connection, model: str, alias: str, number: int | None, reason: Reason) -> None:
    """Note a change in the history of an alias."""
    row = {"model": model, "alias": alias, "version": number, "reason": reason, "at": now()}
    connection.execute(sa.insert(alias_moves).values(row))


def _previous_version(connection: Connection, name: str, alias: str, skipped: Collection[int]) -> int:
    query = sa.select(aliases.c.version).where(aliases.c.model == name, aliases.c.alias == alias)
    current = connection.execute(query).scalar()
    if current is None:
        raise NotFound("alias", f"{name}@{alias}")
    is_live = (versions.c.model == name) & versions.c.is_deleted.is_(False)
    live = set(connection.execute(sa.select(versions.c.version).where(is_live)).scalars()) - {current, *skipped}
    earlier = [number for number in trail(_changes(connection, name, alias))[:-1] if number in live]
    if not earlier:
        raise Conflict(f"Expected an earlier version of {name}@{alias} to go back to; there is none left.")
    return earlier[-1]


def _changes(connection: Connection, model: str, alias: str) -> list[AliasChange]:
    """Return every change of an alias, oldest first."""
    query = sa.select(alias_moves).where(alias_moves.c.model == model, alias_moves.c.alias == alias)
    rows = connection.execute(query.order_by(alias_moves.c.id))
    return [AliasChange(row.version, row.reason, row.at, row.id) for row in rows]
