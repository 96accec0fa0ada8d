"""Workers: who beats is alive, who has not for a while is lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from app.records.rooms import Rooms
from app.records.workers import LOST_SECONDS
from app.storage.tables import workers

pytestmark = pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)


def test_a_worker_that_beats_is_listed_with_what_it_runs(rooms: Rooms) -> None:
    rooms.workers.beat("b", 1, [])
    rooms.workers.beat("a", 2, ["job_1"])
    rooms.workers.beat("b", 3, ["job_2", "job_3"])

    found = [(each["name"], each["slots"], each["running"], each["state"]) for each in rooms.workers.list()]

    assert [("a", 2, ["job_1"], "alive"), ("b", 3, ["job_2", "job_3"], "alive")] == found


def test_a_worker_that_stopped_beating_is_lost_until_it_beats_again(rooms: Rooms) -> None:
    rooms.workers.beat("a", 1, [])
    then = datetime.now(UTC) - timedelta(seconds=LOST_SECONDS + 1)
    with rooms.database.write() as connection:
        connection.execute(sa.update(workers).values(beat_at=then.isoformat()))

    before = [each["state"] for each in rooms.workers.list()]
    rooms.workers.beat("a", 1, [])

    assert ["lost"] == before
    assert ["alive"] == [each["state"] for each in rooms.workers.list()]
