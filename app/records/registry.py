"""Models: named series of immutable versions. Knows neither Keras nor HTTP.

`aliases` has the names that point at versions, `version` and `ref` the values.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.errors import Conflict, Corrupt, NotFound
from app.learning.artifact.artifact import Artifact
from app.learning.artifact.artifact_files import load_artifact
from app.names import DEFAULT
from app.records.aliases import add_change, point
from app.records.job_status import ACTIVE
from app.records.model_rows import get_model, get_version, hold_model, read_model
from app.records.ref import Ref
from app.records.version import Model, Version, VersionDocument
from app.storage.blobs import ORPHAN_SECONDS, Blobs
from app.storage.database import Database
from app.storage.rows import now, page
from app.storage.tables import alias_moves, aliases, jobs, models, versions

#: by `optimize`: the validation score that "if_better" compares, and whether more is better
_SCORES = {
    "log_loss": ("log_loss", False),
    "accuracy": ("accuracy", True),
    "balanced_accuracy": ("balanced_accuracy", True),
    "macro_f1": ("macro_f1", True),
    "roc_auc": ("roc_auc_ovr", True),
}


class Registry:
    """The room of models and versions."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database, self._blobs = database, blobs

    def store(self, folder: Path) -> str:
        """Store a version's files under a new key, all or nothing. They are durable on return, and no version yet."""
        key = f"versions/{uuid.uuid4().hex}"
        self._blobs.publish(key, folder)
        return key

    def discard(self, key: str) -> None:
        """Delete stored files that became no version."""
        self._blobs.delete(key)

    def add(
        self, connection: Connection, model: str, job_id: str, key: str, sha256: str, document: VersionDocument
    ) -> int:
        """Add the next version of a model, in the caller's transaction, and promote it as its specification says.

        Returns:
            The version's number: one more than the last, deleted ones included.
        """
        number = _next_number(connection, model)
        row = {"model": model, "version": number, "job_id": job_id, "key": key, "sha256": sha256}
        row |= {"document": document, "is_deleted": False, "created_at": now()}
        connection.execute(sa.insert(versions).values(row))
        if _is_promoted(connection, model, document):
            point(connection, model, DEFAULT, number, "promoted")
        return number

    def load(self, version: Version) -> Artifact:
        """Read a version's files, checked against their digests, or raise `Corrupt`."""
        return load_artifact(self.folder(version), version.sha256)

    def folder(self, version: Version) -> Path:
        """Return the local folder of a version's files, or raise `Corrupt`."""
        try:
            return self._blobs.local(version.key)
        except NotFound as error:
            raise Corrupt("The version's files are gone.") from error

    def get(self, name: str) -> Model:
        """Return a model, or raise `NotFound`."""
        with self._database.read() as connection:
            return get_model(connection, name)

    def list(self, limit: int, after: str | None) -> tuple[Sequence[Model], str | None]:
        """Return a page of models by name, and the next cursor."""
        with self._database.read() as connection:
            rows, following = page(connection, sa.select(models), models.c.name, limit, after, descends=False)
            return [read_model(connection, row) for row in rows], following

    def get_version(self, name: str, number: int) -> Version:
        """Return a version, or raise `NotFound`."""
        with self._database.read() as connection:
            return get_version(connection, name, number)

    def resolve(self, ref: Ref) -> Version:
        """Return the version that a reference means now, or raise `NotFound`."""
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
            return get_version(connection, ref.model, number)

    def stamp(self) -> object:
        """Return the database's stamp: while it is the same, `resolve` returns the same. Quick, and asks for no lock."""
        return self._database.stamp()

    def delete_version(self, name: str, number: int, *, force: bool) -> Version:
        """Delete a version and its files; with `force` its aliases, too.

        Raises:
            NotFound: there is no such version.
            Conflict: an alias points at it.
        """
        with self._database.write() as connection:
            hold_model(connection, name)
            version = get_version(connection, name, number)
            points_at_it = (aliases.c.model == name) & (aliases.c.version == number)
            names = connection.execute(sa.select(aliases.c.alias).where(points_at_it)).scalars().all()
            if names and not force:
                listed = ", ".join(sorted(names))
                raise Conflict(f"Version {number} of {name!r} is {listed}; move the alias first, or say force=true.")
            connection.execute(sa.delete(aliases).where(points_at_it))
            for alias in names:
                add_change(connection, name, alias, None, "deleted")
            is_it = (versions.c.model == name) & (versions.c.version == number)
            connection.execute(sa.update(versions).where(is_it).values(is_deleted=True))
        self._blobs.delete(version.key)
        return version

    def delete(self, name: str) -> Sequence[Version]:
        """Delete a model with its versions, its aliases and their history, and return the versions.

        A later model of the same name starts with version 1.

        Raises:
            NotFound: there is no such model.
            Conflict: a queued or running job trains it.
        """
        with self._database.write() as connection:
            hold_model(connection, name)
            busy = sa.select(jobs.c.id).where(jobs.c.model == name, jobs.c.status.in_(ACTIVE))
            if connection.execute(busy).first() is not None:
                raise Conflict(f"A queued or running job trains model {name!r}; wait for it or cancel it.")
            deleted = get_model(connection, name).versions
            for table in (aliases, alias_moves, versions):
                connection.execute(sa.delete(table).where(table.c.model == name))
            connection.execute(sa.delete(models).where(models.c.name == name))
        for version in deleted:
            self._blobs.delete(version.key)
        return deleted

    def sweep(self) -> None:
        """Delete stored files that became no version: a crash between the files and the row leaves some."""
        folders = {"/".join(key.split("/")[:2]) for key in self._blobs.keys("versions", ORPHAN_SECONDS)}
        query = sa.select(versions.c.key).where(versions.c.is_deleted.is_(False))
        with self._database.read() as connection:
            kept = set(connection.execute(query).scalars())
        for folder in folders - kept:
            self._blobs.delete(folder)


def _next_number(connection: Connection, model: str) -> int:
    """Take a model's next number; nobody else changes the model's row until the transaction ends."""
    take = sa.update(models).where(models.c.name == model).values(latest_version=models.c.latest_version + 1)
    take = take.returning(models.c.latest_version)
    number = connection.execute(take).scalar()
    if number is not None:
        return int(number)
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(models).values({"name": model, "latest_version": 1, "created_at": now()}))
    except sa.exc.IntegrityError:
        # another worker published the first version between the two
        return int(connection.execute(take).scalar_one())
    return 1


def _is_promoted(connection: Connection, model: str, document: VersionDocument) -> bool:
    """Return whether a new version becomes the model's default."""
    promote = document["spec"]["promote"]
    query = sa.select(aliases.c.version).where(aliases.c.model == model, aliases.c.alias == DEFAULT)
    current = connection.execute(query).scalar()
    if promote != "if_better" or current is None:
        return promote != "never"
    name, is_more_better = _SCORES[document["spec"]["optimize"]]
    champion = get_version(connection, model, current).document["metrics"]["validation"] or {}
    challenger = document["metrics"]["validation"] or {}
    new, present = challenger.get(name), champion.get(name)
    if new is None or present is None:
        return present is None
    return new > present if is_more_better else new < present
