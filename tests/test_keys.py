"""Keys: the configured one and the made one, stored as hashes."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from app.keys import Keys
from app.storage.db import keys
from app.training import Rooms

KEY = "0123456789abcdef"


def test_the_configured_key_is_accepted_and_no_other(rooms: Rooms) -> None:
    room = Keys(rooms.database, KEY)

    assert room.load()
    assert room.accepts(KEY)
    for other in ("", KEY[:-1], KEY + " ", KEY.upper(), "é" * 16, "\0" * 16):
        assert not room.accepts(other)


def test_without_any_key_none_is_accepted(rooms: Rooms) -> None:
    room = Keys(rooms.database, None)

    assert not room.load()
    assert not room.accepts("")


def test_a_made_key_is_accepted_from_then_on(rooms: Rooms) -> None:
    made = Keys(rooms.database, None).make()

    again = Keys(rooms.database, None)
    assert again.load()
    assert again.accepts(made)
    assert not again.accepts(made[:-1])


def test_only_the_hash_of_a_made_key_is_stored(rooms: Rooms) -> None:
    made = Keys(rooms.database, None).make()

    with rooms.database.read() as connection:
        stored = str(connection.execute(sa.select(keys)).all())
    assert made not in stored
    assert made.removeprefix("fs_") not in stored


def test_made_keys_are_long_and_differ(rooms: Rooms) -> None:
    room = Keys(rooms.database, None)

    made = {room.make() for _ in range(3)}

    assert 3 == len(made)
    # 256 bits in base64
    assert all(len(key.removeprefix("fs_")) >= 43 for key in made)
    assert all(room.accepts(key) for key in made)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_key_made_on_postgresql_is_accepted_too(rooms: Rooms) -> None:
    made = Keys(rooms.database, None).make()

    room = Keys(rooms.database, KEY)
    assert room.load()
    assert [True, True] == [room.accepts(made), room.accepts(KEY)]
