"""API keys: the configured one, or one that was made and is stored hashed. Scopes and key management come later."""

from __future__ import annotations

import hashlib
import hmac
import secrets

import sqlalchemy as sa

from app.storage.db import Database, keys, new_id, now


class Keys:
    """The room of keys.

    Args:
        configured: the admin key of the settings, or None.
    """

    def __init__(self, database: Database, configured: str | None) -> None:
        self._database = database
        self._hashes = frozenset({_sha256(configured)} if configured is not None else ())

    def load(self) -> bool:
        """Read the stored keys' hashes; tells whether there is any key at all, the configured one included."""
        with self._database.read() as connection:
            stored = connection.execute(sa.select(keys.c.sha256)).scalars().all()
        self._hashes |= frozenset(stored)
        return bool(self._hashes)

    def make(self) -> str:
        """Make an admin key of 256 random bits, store its hash, and give it: it is shown this once."""
        key = f"fs_{secrets.token_urlsafe(32)}"
        row = {"id": new_id("key"), "sha256": _sha256(key), "scopes": ["admin"], "created_at": now()}
        with self._database.write() as connection:
            connection.execute(sa.insert(keys).values(row))
        self._hashes |= {_sha256(key)}
        return key

    def accepts(self, key: str) -> bool:
        """Tell whether a key is known, in a time that says nothing about it."""
        digest = _sha256(key)
        # every hash is compared, whichever matches
        return sum(hmac.compare_digest(digest, known) for known in self._hashes) > 0


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
