"""Models: named series of immutable versions, and the aliases that point at them. Knows neither Keras nor HTTP."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.errors import Conflict, Corrupt, Invalid, NotFound
from app.learning.artifact import Artifact, read
from app.names import ALIAS, DEFAULT
from app.storage.blobs import ORPHAN_SECONDS, Blobs
from app.storage.database import Database
from app.storage.rows import now, page
from app.storage.tables import alias_moves, aliases, jobs, models, versions

#: by `optimize`: the validation figure that "if_better" compares, and whether more is better
_FIGURES = {
    "log_loss": ("log_loss", False),
    "accuracy": ("accuracy", True),
    "balanced_accuracy": ("balanced_accuracy", True),
    "macro_f1": ("macro_f1", True),
    "roc_auc": ("roc_auc_ovr", True),
}


@dataclass(frozen=True)
class Version:
    """One immutable version: its number, where its files are, and their digest.

    Args:
        document: the description that clients read, but for model, version, status and times.
    """

    model: str
    version: int
    job_id: str
    key: str
    sha256: str
    document: dict[str, Any]
    created_at: str


@dataclass(frozen=True)
class Model:
    """A model with its live versions, newest first, and its aliases."""

    name: str
    latest_version: int
    versions: tuple[Version, ...]
    aliases: dict[str, int]
    created_at: str

    @property
    def default_version(self) -> int | None:
        """The version that the bare name means."""
        return self.aliases.get(DEFAULT)


@dataclass(frozen=True)
class Ref:
    """What a caller calls a version: `iris`, `iris@3` or `iris@champion`."""

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


@dataclass(frozen=True)
class AliasChange:
    """One move of an alias; `version` is None where it was removed."""

    version: int | None
    reason: Literal["set", "promoted", "rollback", "deleted"]
    at: str
    id: int


def trail(moves: Sequence[AliasChange]) -> list[int]:
    """Give the versions that rollbacks walk back over, the present one last.

    Args:
        moves: oldest first. A rollback takes the versions after the one that it went to off the trail, so that two
            rollbacks go back twice.
    """
    steps: list[int] = []
    for move in moves:
        if move.version is None:
            continue
        if move.reason == "rollback" and move.version in steps:
            while steps[-1] != move.version:
                steps.pop()
        elif not steps or steps[-1] != move.version:
            steps.append(move.version)
    return steps


class Registry:
    """The room of models and versions."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    def store(self, folder: Path) -> str:
        """Store a version's files under a new key, all or nothing; durable on return, and not yet a version."""
        key = f"versions/{uuid.uuid4().hex}"
        self._blobs.publish(key, folder)
        return key

    def discard(self, key: str) -> None:
        """Remove stored files that became no version."""
        self._blobs.delete(key)

    def add(
        self, connection: Connection, model: str, job_id: str, key: str, sha256: str, document: dict[str, Any]
    ) -> int:
        """Add the next version of a model, in the caller's transaction, and promote it as its specification says.

        Returns:
            The version's number: one more than the last, deleted ones included.
        """
        number = _next_number(connection, model)
        entry = {"model": model, "version": number, "job_id": job_id, "key": key, "sha256": sha256}
        entry |= {"document": document, "is_deleted": False, "created_at": now()}
        connection.execute(sa.insert(versions).values(entry))
        if _is_promoted(connection, model, document):
            _point(connection, model, DEFAULT, number, "promoted")
        return number

    def load(self, version: Version) -> Artifact:
        """Read a version's files, checked against their digests, or raise `Corrupt`."""
        return read(self.folder(version), version.sha256)

    def folder(self, version: Version) -> Path:
        """Give the local folder of a version's files, or raise `Corrupt`."""
        try:
            return self._blobs.local(version.key)
        except NotFound as error:
            raise Corrupt("The version's files are gone.") from error

    def get(self, name: str) -> Model:
        """Give a model, or raise `NotFound`."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(models).where(models.c.name == name)).mappings().first()
            if row is None:
                raise NotFound("model", name)
            return _model(connection, row)

    def list(self, limit: int, after: str | None) -> tuple[Sequence[Model], str | None]:
        """Give a page of models by name, and the next cursor."""
        with self._database.read() as connection:
            rows, following = page(connection, sa.select(models), models.c.name, limit, after, descends=False)
            return [_model(connection, row) for row in rows], following

    def stamp(self) -> object:
        """Give what `resolve` says another thing only after a change of: quick, and asks nobody."""
        return self._database.stamp()

    def resolve(self, ref: Ref) -> Version:
        """Give the version that a reference means now, or raise `NotFound`."""
        with self._database.read() as connection:
            number = ref.version
            if number is None:
                query = sa.select(aliases.c.version).where(aliases.c.model == ref.model, aliases.c.alias == ref.alias)
                number = connection.execute(query).scalar()
            if number is None:
                is_known = connection.execute(sa.select(models.c.name).where(models.c.name == ref.model)).first()
                if is_known is None:
                    raise NotFound("model", ref.model)
                raise NotFound("alias", f"{ref.model}@{ref.alias}")
            return _version(connection, ref.model, number)

    def get_version(self, name: str, number: int) -> Version:
        """Give a version, or raise `NotFound`."""
        with self._database.read() as connection:
            return _version(connection, name, number)

    def set_alias(self, name: str, alias: str, number: int) -> Model:
        """Point an alias at a version.

        Raises:
            NotFound: there is no such model or version.
            Invalid: the alias does not start with a letter.
        """
        if not re.fullmatch(ALIAS, alias):
            raise Invalid.at(("alias",), "Expected an alias of at most 64 characters that starts with a letter.")
        with self._database.write() as connection:
            _hold(connection, name)
            _version(connection, name, number)
            _point(connection, name, alias, number, "set")
        return self.get(name)

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias, or raise `NotFound`; its history stays."""
        with self._database.write() as connection:
            _hold(connection, name)
            query = sa.delete(aliases).where(aliases.c.model == name, aliases.c.alias == alias)
            if connection.execute(query).rowcount == 0:
                raise NotFound("alias", f"{name}@{alias}")
            _note_move(connection, name, alias, None, "deleted")

    def history(self, name: str, alias: str, limit: int, after: int | None) -> tuple[Sequence[AliasChange], int | None]:
        """Give a page of an alias's moves, newest first, and the next cursor; `NotFound` where it never was."""
        with self._database.read() as connection:
            found = _moves(connection, name, alias)[::-1]
        if not found:
            raise NotFound("alias", f"{name}@{alias}")
        left = [move for move in found if after is None or move.id < after]
        return left[:limit], left[limit - 1].id if len(left) > limit else None

    def earlier(self, name: str, alias: str, passed: Collection[int] = ()) -> int:
        """Give the version that a rollback would go to.

        Raises:
            NotFound, Conflict: as `rollback`.
        """
        with self._database.read() as connection:
            return _earlier(connection, name, alias, passed)

    def rollback(self, name: str, alias: str, passed: Collection[int] = ()) -> Model:
        """Point an alias back at the version that it pointed at before, passing over deleted ones.

        Args:
            passed: versions that are passed over too.

        Raises:
            NotFound: there is no such alias now.
            Conflict: there is no earlier version left.
        """
        with self._database.write() as connection:
            _hold(connection, name)
            _point(connection, name, alias, _earlier(connection, name, alias, passed), "rollback")
        return self.get(name)

    def delete_version(self, name: str, number: int, *, force: bool) -> Version:
        """Remove a version and its files; with `force` its aliases too.

        Raises:
            NotFound, Conflict: an alias points at it.
        """
        with self._database.write() as connection:
            _hold(connection, name)
            version = _version(connection, name, number)
            at_it = (aliases.c.model == name) & (aliases.c.version == number)
            names = connection.execute(sa.select(aliases.c.alias).where(at_it)).scalars().all()
            if names and not force:
                listed = ", ".join(sorted(names))
                raise Conflict(f"Version {number} of {name!r} is {listed}; move the alias first, or say force=true.")
            connection.execute(sa.delete(aliases).where(at_it))
            for alias in names:
                _note_move(connection, name, alias, None, "deleted")
            _tombstone(connection, (versions.c.model == name) & (versions.c.version == number))
        self._blobs.delete(version.key)
        return version

    def delete(self, name: str) -> Sequence[Version]:
        """Remove a model with all its versions and aliases, and their history: a new model starts a new one.

        Raises:
            NotFound, Conflict: a queued or running job trains it.
        """
        with self._database.write() as connection:
            row = _hold(connection, name)
            busy = sa.select(jobs.c.id).where(jobs.c.model == name, jobs.c.status.in_(("queued", "running")))
            if connection.execute(busy).first() is not None:
                raise Conflict(f"A queued or running job trains model {name!r}; wait for it or cancel it.")
            gone = _model(connection, row).versions
            connection.execute(sa.delete(aliases).where(aliases.c.model == name))
            connection.execute(sa.delete(alias_moves).where(alias_moves.c.model == name))
            connection.execute(sa.delete(versions).where(versions.c.model == name))
            connection.execute(sa.delete(models).where(models.c.name == name))
        for version in gone:
            self._blobs.delete(version.key)
        return gone

    def sweep(self) -> None:
        """Remove stored files that became no version: what a crash between files and row leaves."""
        folders = {"/".join(key.split("/")[:2]) for key in self._blobs.keys("versions", ORPHAN_SECONDS)}
        with self._database.read() as connection:
            query = sa.select(versions.c.key).where(versions.c.is_deleted.is_(False))
            kept = set(connection.execute(query).scalars())
        for folder in folders - kept:
            self._blobs.delete(folder)


def _next_number(connection: Connection, model: str) -> int:
    """Take a model's next number; its row is then the caller's until the transaction ends."""
    named = models.c.name == model
    taken = sa.update(models).where(named).values(latest_version=models.c.latest_version + 1)
    taken = taken.returning(models.c.latest_version)
    number = connection.execute(taken).scalar()
    if number is not None:
        return int(number)
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(models).values({"name": model, "latest_version": 1, "created_at": now()}))
    except sa.exc.IntegrityError:
        # another worker published the first version between the two
        return int(connection.execute(taken).scalar_one())
    return 1


def _hold(connection: Connection, name: str) -> Any:
    """Give a model's row and keep others from changing the model until the transaction ends, or raise `NotFound`."""
    row = connection.execute(sa.select(models).where(models.c.name == name).with_for_update()).mappings().first()
    if row is None:
        raise NotFound("model", name)
    return row


def _is_promoted(connection: Connection, model: str, document: dict[str, Any]) -> bool:
    how = document["spec"]["promote"]
    query = sa.select(aliases.c.version).where(aliases.c.model == model, aliases.c.alias == DEFAULT)
    current = connection.execute(query).scalar()
    if how != "if_better" or current is None:
        return bool(how != "never")
    figure, more = _FIGURES[document["spec"]["optimize"]]
    champion = _version(connection, model, current).document["metrics"]["validation"] or {}
    challenger = document["metrics"]["validation"] or {}
    ours, theirs = challenger.get(figure), champion.get(figure)
    if ours is None or theirs is None:
        return theirs is None
    return bool(ours > theirs) if more else bool(ours < theirs)


def _point(
    connection: Connection, model: str, alias: str, number: int, reason: Literal["set", "promoted", "rollback"]
) -> None:
    connection.execute(sa.delete(aliases).where(aliases.c.model == model, aliases.c.alias == alias))
    row = {"model": model, "alias": alias, "version": number, "updated_at": now()}
    connection.execute(sa.insert(aliases).values(row))
    _note_move(connection, model, alias, number, reason)


def _note_move(connection: Connection, model: str, alias: str, number: int | None, reason: str) -> None:
    row = {"model": model, "alias": alias, "version": number, "reason": reason, "at": now()}
    connection.execute(sa.insert(alias_moves).values(row))


def _earlier(connection: Connection, name: str, alias: str, passed: Collection[int]) -> int:
    query = sa.select(aliases.c.version).where(aliases.c.model == name, aliases.c.alias == alias)
    current = connection.execute(query).scalar()
    if current is None:
        raise NotFound("alias", f"{name}@{alias}")
    is_live = (versions.c.model == name) & versions.c.is_deleted.is_(False)
    live = set(connection.execute(sa.select(versions.c.version).where(is_live)).scalars()) - {current, *passed}
    found = [version for version in trail(_moves(connection, name, alias))[:-1] if version in live]
    if not found:
        raise Conflict(f"Expected an earlier version of {name}@{alias} to go back to; there is none left.")
    return found[-1]


def _moves(connection: Connection, model: str, alias: str) -> list[AliasChange]:
    """Give every move of an alias, oldest first."""
    query = sa.select(alias_moves).where(alias_moves.c.model == model, alias_moves.c.alias == alias)
    rows = connection.execute(query.order_by(alias_moves.c.id))
    return [AliasChange(row.version, row.reason, row.at, row.id) for row in rows]


def _tombstone(connection: Connection, where: sa.ColumnElement[bool]) -> None:
    connection.execute(sa.update(versions).where(where).values(is_deleted=True))


def _version(connection: Connection, name: str, number: int) -> Version:
    query = sa.select(versions).where(
        versions.c.model == name, versions.c.version == number, versions.c.is_deleted.is_(False)
    )
    row = connection.execute(query).mappings().first()
    if row is None:
        raise NotFound("version", f"{name}@{number}")
    return Version(**{k: v for k, v in row.items() if k != "is_deleted"})


def _model(connection: Connection, row: Any) -> Model:
    name = row["name"]
    live = sa.select(versions).where(versions.c.model == name, versions.c.is_deleted.is_(False))
    rows = connection.execute(live.order_by(versions.c.version.desc())).mappings()
    found = tuple(Version(**{k: v for k, v in each.items() if k != "is_deleted"}) for each in rows)
    pointers = connection.execute(sa.select(aliases).where(aliases.c.model == name)).all()
    return Model(name, row["latest_version"], found, {p.alias: p.version for p in pointers}, row["created_at"])
