"""The contract of `Blobs`, for every implementation; what only a local disk can be asked follows it."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from app.errors import NotFound
from app.storage.blobs import Blobs, LocalBlobs, sha256_of

FILES = {"a.json": b"{}", "weights.bin": bytes(range(256)) * 64, "manifest.json": b'{"files": 2}'}


@pytest.fixture(params=["local"])
def blobs(tmp_path: Path) -> Blobs:
    """An empty store, by each implementation."""
    return LocalBlobs(tmp_path / "store")


def put(blobs: Blobs, key: str, body: bytes) -> None:
    with blobs.staging("test") as folder:
        (folder / "file").write_bytes(body)
        blobs.put(key, folder / "file")


def publish(blobs: Blobs, prefix: str, files: dict[str, bytes] = FILES) -> None:
    with blobs.staging("test") as folder:
        (folder / "version").mkdir()
        for name, body in files.items():
            (folder / "version" / name).write_bytes(body)
        blobs.publish(prefix, folder / "version")


@pytest.mark.parametrize("body", [b"", b"x", bytes(range(256)) * 9000], ids=["empty", "byte", "2 MB"])
def test_what_is_put_comes_back(blobs: Blobs, body: bytes) -> None:
    put(blobs, "datasets/one.csv", body)

    assert body == blobs.get("datasets/one.csv")
    assert body == blobs.local("datasets/one.csv").read_bytes()
    assert ["datasets/one.csv"] == list(blobs.keys("datasets"))


def test_a_key_that_exists_stays_as_it_is_and_the_file_is_consumed(blobs: Blobs) -> None:
    put(blobs, "datasets/one.csv", b"first")

    with blobs.staging("test") as folder:
        (folder / "file").write_bytes(b"second")
        blobs.put("datasets/one.csv", folder / "file")
        left = list(folder.iterdir())

    assert b"first" == blobs.get("datasets/one.csv")
    assert [] == left


def test_a_folder_is_published_whole_and_consumed(blobs: Blobs) -> None:
    with blobs.staging("test") as folder:
        (folder / "version").mkdir()
        for name, body in FILES.items():
            (folder / "version" / name).write_bytes(body)
        blobs.publish("versions/one", folder / "version")
        left = list(folder.iterdir())

    assert FILES == {name: blobs.get(f"versions/one/{name}") for name in FILES}
    assert FILES == {file.name: file.read_bytes() for file in blobs.local("versions/one").iterdir()}
    assert {f"versions/one/{name}" for name in FILES} == set(blobs.keys("versions"))
    assert [] == left


def test_nothing_is_published_over_what_is_there(blobs: Blobs) -> None:
    publish(blobs, "versions/one")

    with pytest.raises(OSError):
        publish(blobs, "versions/one", {"a.json": b"other"})

    assert FILES == {name: blobs.get(f"versions/one/{name}") for name in FILES}


@pytest.mark.parametrize("key", ["datasets/none.csv", "none", "versions/one", "versions/one/none.json"])
def test_a_blob_that_is_not_there_is_not_found(blobs: Blobs, key: str) -> None:
    publish(blobs, "versions/one")

    with pytest.raises(NotFound, match=key):
        blobs.get(key)


@pytest.mark.parametrize("key", ["datasets/none.csv", "versions/two", "versions/one/none.json"])
def test_there_is_no_path_of_what_is_not_there(blobs: Blobs, key: str) -> None:
    publish(blobs, "versions/one")

    with pytest.raises(NotFound, match=key):
        blobs.local(key)


def test_deleting_removes_a_blob_or_a_folder_and_nothing_else(blobs: Blobs) -> None:
    for key in ("datasets/one.csv", "datasets/one.csv.more", "tables/one"):
        put(blobs, key, b"x")
    publish(blobs, "versions/one")
    publish(blobs, "versions/one-more")

    for key in ("datasets/one.csv", "versions/one", "versions/none", "nothing/at/all"):
        blobs.delete(key)

    assert ["datasets/one.csv.more"] == list(blobs.keys("datasets"))
    assert {f"versions/one-more/{name}" for name in FILES} == set(blobs.keys("versions"))
    assert ["tables/one"] == list(blobs.keys("tables"))


def test_a_deleted_key_can_be_put_again(blobs: Blobs) -> None:
    put(blobs, "datasets/one.csv", b"first")
    blobs.delete("datasets/one.csv")
    put(blobs, "datasets/one.csv", b"second")

    assert b"second" == blobs.get("datasets/one.csv")


def test_keys_are_listed_under_their_folder_only(blobs: Blobs) -> None:
    for key in ("tables/one", "tables2/two", "datasets/three.csv"):
        put(blobs, key, b"x")

    assert ["tables/one"] == list(blobs.keys("tables"))
    assert [] == list(blobs.keys("none"))


def test_a_staging_folder_is_empty_and_goes_whatever_happens(blobs: Blobs) -> None:
    def fail() -> None:
        with blobs.staging("test") as folder:
            assert [] == list(folder.iterdir())
            (folder / "half").write_bytes(b"x")
            seen.append(folder)
            raise RuntimeError("expected")

    seen: list[Path] = []
    with pytest.raises(RuntimeError, match="expected"):
        fail()

    assert [False] == [folder.exists() for folder in seen]


def test_sweeping_removes_what_one_label_left_and_nothing_of_another(blobs: Blobs) -> None:
    with blobs.staging("train-a") as mine, blobs.staging("train-a-b") as other, blobs.staging("train") as third:
        blobs.sweep("train-a")

        assert [False, True, True] == [folder.exists() for folder in (mine, other, third)]


def test_the_same_key_put_by_many_at_once_is_whole(blobs: Blobs) -> None:
    body, gate = bytes(range(256)) * 4096, threading.Barrier(8)

    def run(_: int) -> bytes:
        gate.wait()
        put(blobs, "datasets/one.csv", body)
        return blobs.get("datasets/one.csv")

    with ThreadPoolExecutor(8) as pool:
        assert [body] * 8 == list(pool.map(run, range(8)))


def test_a_folder_deleted_by_many_at_once_goes_once(blobs: Blobs) -> None:
    publish(blobs, "versions/one")
    gate = threading.Barrier(8)

    def run(_: int) -> None:
        gate.wait()
        blobs.delete("versions/one")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))

    assert [] == list(blobs.keys("versions"))


def test_nobody_sees_half_a_folder(blobs: Blobs) -> None:
    stop, seen = threading.Event(), set()

    def look() -> None:
        while not stop.is_set():
            for i in range(20):
                try:
                    seen.add(len(list(blobs.local(f"versions/{i}").iterdir())))
                except NotFound:
                    seen.add(0)

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        for i in range(20):
            publish(blobs, f"versions/{i}")
        stop.set()
        looking.result()

    assert seen <= {0, len(FILES)}


def test_the_digest_is_sha_256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")

    # FIPS 180-2, appendix B.1
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" == sha256_of(tmp_path / "abc")


@contextmanager
def recorded() -> Iterator[list[tuple[str, str]]]:
    """Note, in order, what is made durable and what is renamed to what."""
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and function is os.fsync:
            calls.append(("fsync", str(Path(f"/proc/self/fd/{frame.f_locals['descriptor']}").readlink())))
        elif event == "c_call" and function is os.rename:
            calls.append(("rename", str(frame.f_locals["target"])))

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def test_a_file_is_durable_before_it_has_its_name_and_its_name_before_put_returns(tmp_path: Path) -> None:
    root = tmp_path / "store"
    blobs = LocalBlobs(root)
    with blobs.staging("test") as folder:
        source = folder / "file"
        source.write_bytes(b"x")
        with recorded() as calls:
            blobs.put("datasets/one.csv", source)

    expected = [
        ("fsync", str(source)),
        ("fsync", str(root)),
        ("rename", str(root / "datasets/one.csv")),
        ("fsync", str(root / "datasets")),
    ]
    assert expected == calls


def test_the_folders_of_a_new_store_are_durable_and_its_owners_alone(tmp_path: Path) -> None:
    root = tmp_path / "new" / "store"

    with recorded() as calls:
        LocalBlobs(root)

    assert [("fsync", str(folder)) for folder in (tmp_path, tmp_path / "new", root)] == calls
    assert {0o700} == {stat.S_IMODE(folder.stat().st_mode) for folder in (root.parent, root, root / "staging")}


def test_a_folders_files_are_durable_before_it_has_its_name(tmp_path: Path) -> None:
    root = tmp_path / "store"
    blobs = LocalBlobs(root)
    with blobs.staging("test") as folder:
        version = folder / "version"
        version.mkdir()
        for name, body in FILES.items():
            (version / name).write_bytes(body)
        with recorded() as calls:
            blobs.publish("versions/one", version)

    at = calls.index(("rename", str(root / "versions/one")))
    assert {str(version / name) for name in FILES} == {path for _, path in calls[: len(FILES)]}
    assert ("fsync", str(version)) in calls[len(FILES) : at]
    assert [("fsync", str(root / "versions"))] == calls[at + 1 :]


def test_what_a_killed_deletion_left_is_swept(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "store")
    left = tmp_path / "store" / "staging" / "deleted-0123456789abcdef"
    left.mkdir()

    blobs.sweep("train-worker")

    assert not left.exists()


def test_only_their_owner_reads_the_files(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "store")
    put(blobs, "datasets/one.csv", b"x")

    folders = [blobs.root, blobs.root / "staging", blobs.root / "datasets"]

    assert [0o700] * 3 == [folder.stat().st_mode & 0o777 for folder in folders]
