"""Models: named series of immutable versions, and the aliases that point at them. Knows neither Keras nor HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.errors import Conflict, Corrupt, Invalid, NotFound
from app.learning.artifact import Artifact, read
from app.storage.blobs import ORPHAN_SECONDS, Blobs
from app.storage.db import Database, aliases, jobs, models, now, page, versions

DEFAULT = "default"
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
            _point(connection, model, DEFAULT, number)
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
        """Give a page of models, last name first, and the next cursor."""
        with self._database.read() as connection:
            rows, following = page(connection, sa.select(models), models.c.name, limit, after)
            return [_model(connection, row) for row in rows], following

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
        if not (alias[:1].isascii() and alias[:1].isalpha() and len(alias) <= 64 and "@" not in alias):
            raise Invalid.at(("alias",), "Expected an alias of at most 64 characters that starts with a letter.")
        with self._database.write() as connection:
            _hold(connection, name)
            _version(connection, name, number)
            _point(connection, name, alias, number)
        return self.get(name)

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias, or raise `NotFound`."""
        with self._database.write() as connection:
            query = sa.delete(aliases).where(aliases.c.model == name, aliases.c.alias == alias)
            if connection.execute(query).rowcount == 0:
                raise NotFound("alias", f"{name}@{alias}")

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
            _tombstone(connection, (versions.c.model == name) & (versions.c.version == number))
        self._blobs.delete(version.key)
        return version

    def delete(self, name: str) -> Sequence[Version]:
        """Remove a model with all its versions and aliases.

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


def _point(connection: Connection, model: str, alias: str, number: int) -> None:
    connection.execute(sa.delete(aliases).where(aliases.c.model == model, aliases.c.alias == alias))
    row = {"model": model, "alias": alias, "version": number, "updated_at": now()}
    connection.execute(sa.insert(aliases).values(row))


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
