"""The room of checkpoints: of each job the newest, whatever happens to the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import StorageFull
from app.records.checkpoints import Checkpoints
from app.storage.blobs import LocalBlobs
from tests.disks import mounted, set_writable

Room = tuple[Checkpoints, LocalBlobs]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    blobs = LocalBlobs(tmp_path / "store")
    return Checkpoints(blobs), blobs


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "1m") as disk:
        yield disk


def keep(room: Room, job_id: str, body: bytes) -> None:
    checkpoints, blobs = room
    with blobs.staging("test") as folder:
        file = folder / "checkpoint"
        file.write_bytes(body)
        checkpoints.add(job_id, file)
        assert [] == list(folder.iterdir())


def latest(room: Room, job_id: str) -> bytes | None:
    file = room[0].find(job_id)
    return None if file is None else file.read_bytes()


def files(room: Room) -> list[str]:
    return sorted(room[1].keys("checkpoints"))


def test_there_is_nothing_at_first(room: Room) -> None:
    assert room[0].find("job_a") is None
    assert set() == room[0].job_ids()


def test_only_the_newest_is_kept(room: Room) -> None:
    for number in range(12):
        keep(room, "job_a", b"%d" % number)

        assert b"%d" % number == latest(room, "job_a")
        assert 1 == len(files(room))


def test_jobs_keep_their_own(room: Room) -> None:
    for job_id in ("job_a", "job_ab", "job_b"):
        keep(room, job_id, job_id.encode())

    room[0].delete("job_a")
    room[0].delete("job_none")

    assert {"job_ab", "job_b"} == room[0].job_ids()
    assert [None, b"job_ab", b"job_b"] == [latest(room, job_id) for job_id in ("job_a", "job_ab", "job_b")]


def test_a_job_that_was_forgotten_can_keep_again(room: Room) -> None:
    keep(room, "job_a", b"first")
    room[0].delete("job_a")
    keep(room, "job_a", b"second")

    assert b"second" == latest(room, "job_a")


@pytest.mark.parametrize("asked", [[], ["job_a"], ["job_a", "job_c"]])
def test_the_checkpoints_of_many_are_forgotten_at_once(room: Room, asked: list[str]) -> None:
    for job_id in ("job_a", "job_b", "job_c"):
        keep(room, job_id, b"x")

    assert len(asked) == room[0].delete_all(asked)

    assert {"job_a", "job_b", "job_c"} - set(asked) == room[0].job_ids()


def test_of_two_that_a_crash_left_the_newer_counts_and_the_next_one_replaces_both(room: Room) -> None:
    keep(room, "job_a", b"first")
    (older,) = files(room)
    keep(room, "job_a", b"second")
    # as it is between storing the newer one and removing the older
    (room[1].root / older).write_bytes(b"first")

    assert b"second" == latest(room, "job_a")
    keep(room, "job_a", b"third")

    assert b"third" == latest(room, "job_a")
    assert 1 == len(files(room))


def test_a_disk_that_takes_no_writes_leaves_the_older_one(small_disk: Path, tmp_path: Path) -> None:
    blobs = LocalBlobs(small_disk / "store")
    room = Checkpoints(blobs), blobs
    keep(room, "job_a", b"first")
    with blobs.staging("test") as folder:
        (folder / "checkpoint").write_bytes(b"second")
        set_writable(small_disk, is_writable=False)

        with pytest.raises(OSError):
            room[0].add("job_a", folder / "checkpoint")
        with pytest.raises(OSError):
            room[0].add("job_b", folder / "checkpoint")

        assert b"first" == latest(room, "job_a")
        assert {"job_a"} == room[0].job_ids()
        set_writable(small_disk, is_writable=True)

    keep(room, "job_a", b"third")
    assert b"third" == latest(room, "job_a")


def test_a_full_disk_leaves_the_older_one_and_consumes_the_file(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "1m,nr_inodes=8") as disk:
        blobs = LocalBlobs(disk / "store")
        room = Checkpoints(blobs), blobs
        keep(room, "job_a", b"first")
        with blobs.staging("test") as folder:
            (folder / "checkpoint").write_bytes(b"second")

            # there is no room for another job's folder
            with pytest.raises(StorageFull):
                room[0].add("job_b", folder / "checkpoint")

            assert [] == list(folder.iterdir())
        assert b"first" == latest(room, "job_a")
        assert {"job_a"} == room[0].job_ids()


def test_a_file_that_is_not_there_leaves_the_older_one(room: Room, tmp_path: Path) -> None:
    keep(room, "job_a", b"first")

    with pytest.raises(OSError):
        room[0].add("job_a", tmp_path / "none")

    assert b"first" == latest(room, "job_a")
