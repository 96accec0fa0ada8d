"""API keys and what each may do. Stored are their hashes; a key itself is shown once, when it is made."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import sqlalchemy as sa

from app.errors import Conflict, NotFound
from app.names import new_id
from app.storage.database import Database
from app.storage.rows import now, page
from app.storage.tables import keys

Scope = Literal["predict", "train", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True)
class Key:
    """What is known of a stored key."""

    id: str
    name: str | None
    scopes: tuple[Scope, ...]
    created_at: str


class Keys:
    """The room of keys.

    Args:
        configured: the admin key of the settings, or None.
    """

    def __init__(self, database: Database, configured: str | None) -> None:
        self._database = database
        self._configured: dict[str, tuple[Scope, ...]] = {} if configured is None else {_sha256(configured): ("admin",)}
        #: hashes of keys, and what each may do; another object whenever they change
        self.known = self._configured
        self._changing = threading.Lock()

    def load(self) -> bool:
        """Read the stored keys; tells whether there is an admin key at all, the configured one included."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(keys.c.sha256, keys.c.scopes)).all()
        known = {row.sha256: tuple(row.scopes) for row in rows} | self._configured
        if known != self.known:
            self.known = known
        return any("admin" in scopes for scopes in self.known.values())

    def add(self, name: str | None, scopes: Iterable[Scope]) -> tuple[Key, str]:
        """Make a key of 256 random bits and store its hash; gives what is known of it, and the key itself."""
        secret = f"fs_{secrets.token_urlsafe(32)}"
        made = Key(new_id("key"), name, tuple(scope for scope in SCOPES if scope in set(scopes)), now())
        row = {"id": made.id, "name": name, "scopes": list(made.scopes), "created_at": made.created_at}
        with self._changing:
            with self._database.write() as connection:
                connection.execute(sa.insert(keys).values(sha256=_sha256(secret), **row))
            self.load()
        return made, secret

    def list(self, limit: int, after: str | None) -> tuple[Sequence[Key], str | None]:
        """Give a page of the stored keys, newest first, and the next cursor; the configured one is not among them."""
        with self._database.read() as connection:
            rows, following = page(connection, sa.select(keys), keys.c.id, limit, after)
        return [Key(row["id"], row["name"], tuple(row["scopes"]), row["created_at"]) for row in rows], following

    def delete(self, key_id: str) -> None:
        """Revoke a key at once.

        Raises:
            NotFound, Conflict: it is the last one that may manage keys.
        """
        with self._changing:
            with self._database.write() as connection:
                rows = {row.id: row.scopes for row in connection.execute(sa.select(keys.c.id, keys.c.scopes))}
                if key_id not in rows:
                    raise NotFound("key", key_id)
                admins = {other for other, scopes in rows.items() if "admin" in scopes}
                if not self._configured and admins == {key_id}:
                    raise Conflict(f"Key {key_id} is the last admin key; make another one first.")
                connection.execute(sa.delete(keys).where(keys.c.id == key_id))
            self.load()

    def scopes(self, key: str) -> tuple[Scope, ...] | None:
        """Give what a key may do, None where it is not known, in a time that says nothing about it."""
        digest = _sha256(key)
        found = None
        # every hash is compared, whichever matches
        for known, scopes in self.known.items():
            if hmac.compare_digest(digest, known):
                found = scopes
        return found


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
