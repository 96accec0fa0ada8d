"""Idempotency keys: for a day, the same key with the same body gives the job that the first request made."""

from __future__ import annotations

import hashlib
import time

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.errors import Conflict
from app.storage.tables import idempotency_keys

IDEMPOTENCY_SECONDS = 24 * 3600


def find_job_id(connection: Connection, key: str, body_sha256: str) -> str | None:
    """Return the job that a key belongs to, or None; raise `Conflict` where the key came with another body."""
    query = sa.select(idempotency_keys).where(idempotency_keys.c.key_sha256 == _sha256(key))
    row = connection.execute(query).first()
    if row is None or row.created < time.time() - IDEMPOTENCY_SECONDS:
        return None
    if row.body_sha256 != body_sha256:
        raise Conflict("This Idempotency-Key was used with another request before; use a new one.")
    return str(row.job_id)


def keep(connection: Connection, key: str, body_sha256: str, job_id: str) -> str:
    """Store a key for a job, and return the job that it belongs to: another one where the key came before.

    Raises:
        Conflict: the key came with another body.
    """
    stale = idempotency_keys.c.created < time.time() - IDEMPOTENCY_SECONDS
    connection.execute(sa.delete(idempotency_keys).where(stale))
    row = {"key_sha256": _sha256(key), "body_sha256": body_sha256, "job_id": job_id, "created": int(time.time())}
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(idempotency_keys).values(row))
    except sa.exc.IntegrityError:
        return str(find_job_id(connection, key, body_sha256))
    return job_id


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
