"""Serving versions: verified before they answer, kept by use, and served on while the database is away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.errors import Corrupt, NotFound, Unavailable
from app.learning.artifact.artifact import Artifact
from app.learning.artifact.artifact_files import FILES, MANIFEST
from app.learning.requests.prediction_rows import Rows
from app.records.ref import Ref
from app.records.rooms import Rooms
from app.serving.predictor import LoadedVersion
from app.serving.version_cache import GOLDEN_TOLERANCE, VersionCache
from app.settings import Settings
from app.wiring import open_rooms
from tests.stored_rows import add_dataset, make_artifact, train

GIB = 1024**3
ROWS = Rows({"a": [0.5, -1.0], "b": ["x", "z"]}, 2)


def serve(rooms: Rooms, max_bytes: int = GIB) -> VersionCache:
    return VersionCache(rooms.registry, "cpu", max_bytes)


def get(cache: VersionCache, ref: str = "m") -> LoadedVersion:
    return cache.get(Ref.parse(ref))


def held(cache: VersionCache) -> list[tuple[str, int]]:
    return sorted((each["model"], each["version"]) for each in cache.devices())


def away(rooms: Rooms) -> None:
    """Take the database away from everybody."""
    rooms.database.close()
    path = Path(rooms.database.url.removeprefix("sqlite:///"))
    path.rename(path.with_suffix(".away"))
    path.mkdir()


def back(rooms: Rooms) -> None:
    path = Path(rooms.database.url.removeprefix("sqlite:///"))
    path.rmdir()
    path.with_suffix(".away").rename(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("iris", Ref("iris", None, "default")),
        ("iris@3", Ref("iris", 3, "")),
        ("iris@champion", Ref("iris", None, "champion")),
        ("iris@v3", Ref("iris", None, "v3")),
        ("iris@1234567890", Ref("iris", None, "1234567890")),
        ("iris@٣", Ref("iris", None, "٣")),
    ],
)
def test_a_reference_is_a_name_a_number_or_an_alias(text: str, expected: Ref) -> None:
    assert expected == Ref.parse(text)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("place", [0, -1], ids=["first byte", "last byte"])
def test_one_changed_bit_in_any_file_is_refused(rooms: Rooms, name: str, place: int) -> None:
    train(rooms)
    path = rooms.registry.folder(rooms.registry.get_version("m", 1)) / name
    body = bytearray(path.read_bytes())
    body[place] ^= 1
    path.write_bytes(body)

    with pytest.raises(Corrupt):
        get(serve(rooms))


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_version_without_one_of_its_files_is_refused(rooms: Rooms, name: str) -> None:
    train(rooms)
    (rooms.registry.folder(rooms.registry.get_version("m", 1)) / name).unlink()

    with pytest.raises(Corrupt, match=name):
        get(serve(rooms))


def test_a_version_whose_files_are_gone_is_refused_by_name(rooms: Rooms) -> None:
    train(rooms)
    rooms.blobs.delete(rooms.registry.get_version("m", 1).key)

    with pytest.raises(Corrupt, match="m@1: The version's files are gone"):
        get(serve(rooms))


def with_golden(change: float) -> Artifact:
    made = make_artifact()
    changed = np.array(made.golden.probabilities) + change * np.array([1, -1])
    return replace(made, golden=replace(made.golden, probabilities=changed.tolist()))


def test_a_version_that_does_not_give_its_golden_predictions_is_refused(rooms: Rooms) -> None:
    train(rooms, artifact=with_golden(3 * GOLDEN_TOLERANCE))

    with pytest.raises(Corrupt, match="golden"):
        get(serve(rooms))


def test_another_machines_rounding_is_no_fault(rooms: Rooms) -> None:
    train(rooms, artifact=with_golden(GOLDEN_TOLERANCE / 3))

    assert 1 == get(serve(rooms)).version.version


def test_a_refused_version_leaves_the_others_served(rooms: Rooms) -> None:
    train(rooms, "good")
    train(rooms, "bad", artifact=with_golden(1))
    cache = serve(rooms)
    get(cache, "good")

    with pytest.raises(Corrupt):
        get(cache, "bad")

    assert [("good", 1)] == held(cache)
    assert 2 == len(get(cache, "good").predict(ROWS).labels)
    assert [False, True] == [cache.is_broken(rooms.registry.get_version(name, 1)) for name in ("good", "bad")]


def test_many_who_want_one_version_at_once_load_it_once(rooms: Rooms) -> None:
    train(rooms)
    cache, gate = serve(rooms), threading.Barrier(8)

    def run(_: int) -> LoadedVersion:
        gate.wait()
        return get(cache)

    with ThreadPoolExecutor(8) as pool:
        assert 1 == len({id(loaded) for loaded in pool.map(run, range(8))})


def test_the_least_recently_used_versions_make_room(rooms: Rooms) -> None:
    size = sum(weight.nbytes for weight in make_artifact().weights.values())
    for name in ("a", "b", "c"):
        train(rooms, name)
    cache = serve(rooms, max_bytes=2 * size)

    for name in ("a", "b", "a", "c"):
        get(cache, name)

    assert [("a", 1), ("c", 1)] == held(cache)
    assert size == get(cache, "a").size_bytes


def test_a_version_larger_than_the_bound_is_served_alone(rooms: Rooms) -> None:
    train(rooms, "small")
    train(rooms, "large", artifact=make_artifact(units=64))
    cache = serve(rooms, max_bytes=1)

    get(cache, "small")
    loaded = get(cache, "large")

    assert [("large", 1)] == held(cache)
    assert loaded is get(cache, "large")


def test_a_moved_default_is_followed_at_once(rooms: Rooms) -> None:
    train(rooms)
    cache = serve(rooms)
    first = get(cache)

    train(rooms)
    second = get(cache)
    rooms.aliases.set("m", "default", 1)

    assert (1, 2) == (first.version.version, second.version.version)
    assert first is get(cache)


def test_memory_alone_tells_what_a_reference_means_until_somebody_writes(rooms: Rooms, tmp_path: Path) -> None:
    train(rooms)
    cache, ref = serve(rooms), Ref.parse("m")
    assert cache.find_now(ref) is None

    loaded = get(cache)
    assert loaded is cache.find_now(ref)
    assert cache.find_now(Ref.parse("m@1")) is None

    # any commit of any process: another one's is seen in the file
    other = open_rooms(Settings(data_dir=tmp_path / "data"))
    add_dataset(other, b"a,y\n2,x\n")
    assert cache.find_now(ref) is None
    assert loaded is cache.find_last(ref) is get(cache) is cache.find_now(ref)
    other.aliases.set("m", "other", 1)
    assert cache.find_now(ref) is None
    other.close()


def test_what_was_put_out_of_memory_or_deleted_is_known_no_more(rooms: Rooms) -> None:
    train(rooms, "a")
    train(rooms, "b")
    cache = serve(rooms, max_bytes=1)

    get(cache, "a")
    get(cache, "b")
    assert cache.find_now(Ref.parse("a")) is cache.find_last(Ref.parse("a")) is None

    cache.forget(rooms.registry.delete("b"))
    assert cache.find_now(Ref.parse("b")) is cache.find_last(Ref.parse("b")) is None


def test_what_is_known_is_served_on_while_the_database_is_away(rooms: Rooms) -> None:
    train(rooms, "known")
    train(rooms, "evicted")
    train(rooms, "unknown")
    cache = serve(rooms, max_bytes=1)
    get(cache, "evicted")
    before = get(cache, "known").predict(ROWS).probabilities
    away(rooms)

    after = get(cache, "known").predict(ROWS).probabilities
    from_disk = get(cache, "evicted")
    with pytest.raises(Unavailable):
        get(cache, "unknown")
    back(rooms)

    assert before.tobytes() == after.tobytes()
    assert "evicted" == from_disk.version.model
    assert "unknown" == get(cache, "unknown").version.model


def test_a_deleted_version_is_gone_for_the_next_and_stays_for_whoever_holds_it(rooms: Rooms) -> None:
    train(rooms)
    cache = serve(rooms)
    loaded = get(cache)

    cache.forget(rooms.registry.delete("m"))

    assert [] == held(cache)
    assert 2 == len(loaded.predict(ROWS).labels)
    with pytest.raises(NotFound):
        get(cache)
    away(rooms)
    with pytest.raises(Unavailable):
        get(cache)
    back(rooms)


def test_versions_come_and_go_while_others_are_served(rooms: Rooms) -> None:
    train(rooms, "stays")
    for i in range(8):
        train(rooms, f"goes{i}")
    cache, gate = serve(rooms, max_bytes=500), threading.Barrier(5)

    def use() -> None:
        gate.wait()
        for i in range(40):
            assert 2 == len(get(cache, "stays").predict(ROWS).labels)
            with suppress(NotFound):
                get(cache, f"goes{i % 8}")

    def remove() -> None:
        gate.wait()
        for i in range(8):
            cache.forget(rooms.registry.delete(f"goes{i}"))

    tasks: list[Callable[[], None]] = [use] * 4 + [remove]
    with ThreadPoolExecutor(5) as pool:
        for future in [pool.submit(task) for task in tasks]:
            future.result()

    assert {"stays"} == {model for model, _ in held(cache)} - {f"goes{i}" for i in range(8)}
