"""The rows of models and versions: read, and kept from others until a transaction ends."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from app.errors import NotFound
from app.records.version import Model, Version
from app.storage.tables import aliases, models, versions


def get_model(connection: Connection, name: str) -> Model:
    """Return a model, or raise `NotFound`."""
    row = connection.execute(sa.select(models).where(models.c.name == name)).mappings().first()
    if row is None:
        raise NotFound("model", name)
    return read_model(connection, row)


def read_model(connection: Connection, row: RowMapping) -> Model:
    """Return the model of a row, with its versions and its aliases."""
    name = row["name"]
    query = sa.select(versions).where(versions.c.model == name, versions.c.is_deleted.is_(False))
    rows = connection.execute(query.order_by(versions.c.version.desc())).mappings()
    live = tuple(_read_version(row) for row in rows)
    pointers = connection.execute(sa.select(aliases).where(aliases.c.model == name)).all()
    return Model(name, row["latest_version"], live, {p.alias: p.version for p in pointers}, row["created_at"])


def get_version(connection: Connection, name: str, number: int) -> Version:
    """Return a version, or raise `NotFound`."""
    query = sa.select(versions).where(
        versions.c.model == name, versions.c.version == number, versions.c.is_deleted.is_(False)
    )
    row = connection.execute(query).mappings().first()
    if row is None:
        raise NotFound("version", f"{name}@{number}")
    return _read_version(row)


def hold_model(connection: Connection, name: str) -> None:
    """Keep others from changing a model until the transaction ends, or raise `NotFound`."""
    query = sa.select(models.c.name).where(models.c.name == name).with_for_update()
    if connection.execute(query).first() is None:
        raise NotFound("model", name)


def _read_version(row: RowMapping) -> Version:
    return Version(**{name: value for name, value in row.items() if name != "is_deleted"})
