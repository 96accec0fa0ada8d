"""Keys: the configured one and the made one, stored as hashes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import sqlalchemy as sa

from app.errors import Conflict, NotFound
from app.records.keys import Key, Keys
from app.records.rooms import Rooms
from app.storage.tables import keys

pytestmark = pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)

KEY = "0123456789abcdef"


def test_the_configured_key_is_accepted_and_no_other(rooms: Rooms) -> None:
    room = Keys(rooms.database, KEY)

    assert room.load()
    assert ("admin",) == room.scopes(KEY)
    for other in ("", KEY[:-1], KEY + " ", KEY.upper(), "é" * 16, "\0" * 16):
        assert room.scopes(other) is None


def test_without_any_key_none_is_accepted(rooms: Rooms) -> None:
    room = Keys(rooms.database, None)

    assert not room.load()
    assert room.scopes("") is None


def test_a_made_key_is_accepted_from_then_on(rooms: Rooms) -> None:
    made = Keys(rooms.database, None).add("ci", ["train", "predict"])[1]

    again = Keys(rooms.database, None)
    assert not again.load()
    assert ("predict", "train") == again.scopes(made)
    assert again.scopes(made[:-1]) is None


def test_only_the_hash_of_a_made_key_is_stored(rooms: Rooms) -> None:
    made = Keys(rooms.database, None).add("ci", ["train", "predict"])[1]

    with rooms.database.read() as connection:
        stored = str(connection.execute(sa.select(keys)).all())
    assert made not in stored
    assert made.removeprefix("fs_") not in stored


def test_made_keys_are_long_and_differ(rooms: Rooms) -> None:
    room = Keys(rooms.database, None)

    made = {room.add(None, ["admin"])[1] for _ in range(3)}

    assert 3 == len(made)
    # 256 bits in base64
    assert all(len(key.removeprefix("fs_")) >= 43 for key in made)
    assert all(room.scopes(key) for key in made)


def test_a_made_key_is_accepted_beside_the_configured_one(rooms: Rooms) -> None:
    made = Keys(rooms.database, None).add("ci", ["train", "predict"])[1]

    room = Keys(rooms.database, KEY)
    assert room.load()
    assert [("predict", "train"), ("admin",)] == [room.scopes(made), room.scopes(KEY)]


def test_keys_are_listed_without_themselves_and_revoked_at_once(rooms: Rooms) -> None:
    room = Keys(rooms.database, KEY)
    made, secret = room.add("shop", ["predict"])

    assert ([made], None) == room.list(10, None)
    room.delete(made.id)

    assert ([], None) == room.list(10, None)
    assert room.scopes(secret) is None
    assert not Keys(rooms.database, None).load()
    with pytest.raises(NotFound, match=f"key '{made.id}'"):
        room.delete(made.id)


def test_keys_are_listed_newest_first_page_by_page(rooms: Rooms) -> None:
    room = Keys(rooms.database, KEY)
    made = sorted((room.add(name, ["predict"])[0] for name in "abc"), key=lambda key: key.id, reverse=True)

    first, cursor = room.list(2, None)
    second, end = room.list(2, cursor)

    assert (made, None) == ([*first, *second], end)


def test_scopes_are_kept_once_each_and_in_one_order(rooms: Rooms) -> None:
    made, secret = Keys(rooms.database, KEY).add(None, ["admin", "predict", "admin"])

    assert ("predict", "admin") == made.scopes
    room = Keys(rooms.database, KEY)
    room.load()
    assert ("predict", "admin") == room.scopes(secret)


def test_the_last_admin_key_stays(rooms: Rooms) -> None:
    room = Keys(rooms.database, None)
    first, _ = room.add("first", ["admin"])
    other, _ = room.add("other", ["train"])

    with pytest.raises(Conflict, match=f"{first.id} is the last admin key"):
        room.delete(first.id)

    second, _ = room.add("second", ["predict", "admin"])
    room.delete(first.id)
    with pytest.raises(Conflict):
        room.delete(second.id)
    room.delete(other.id)
    # the configured one is an admin key too
    Keys(rooms.database, KEY).delete(second.id)


def test_a_key_that_manages_none_goes_where_there_is_no_admin_key(rooms: Rooms) -> None:
    room = Keys(rooms.database, None)
    made, secret = room.add("shop", ["predict", "train"])

    room.delete(made.id)

    assert room.scopes(secret) is None


def test_of_admin_keys_that_are_revoked_at_once_one_stays(rooms: Rooms) -> None:
    room = Keys(rooms.database, None)
    made = [room.add(None, ["admin"])[0] for _ in range(4)]
    gate = threading.Barrier(len(made))

    def revoke(key: Key) -> None:
        gate.wait()
        with suppress(Conflict):
            room.delete(key.id)

    with ThreadPoolExecutor(len(made)) as pool:
        list(pool.map(revoke, made))

    assert 1 == len(room.list(10, None)[0])
    assert room.load()
