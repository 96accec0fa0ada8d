"""The room of models: numbers without a gap, promotion, aliases, deletion, and what a crash may leave."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.errors import Conflict, Invalid, NotFound
from app.jobs.publish import publish
from app.learning.artifact.artifact_files import write_artifact
from app.names import DEFAULT
from app.records.ref import Ref
from app.records.registry import Registry
from app.records.rooms import Rooms
from app.storage.blobs import ORPHAN_SECONDS, Blobs
from tests.stored_rows import make_artifact, make_done, submit, train

pytestmark = pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)


def folders(rooms: Rooms) -> set[str]:
    return {"/".join(key.split("/")[:2]) for key in rooms.blobs.keys("versions")}


def age(rooms: Rooms, folder: str) -> None:
    for path in rooms.blobs.local(folder).iterdir():
        then = path.stat().st_mtime - ORPHAN_SECONDS - 10
        os.utime(path, (then, then))


def store(rooms: Rooms) -> str:
    with rooms.blobs.staging("test") as folder:
        (folder / "version").mkdir()
        write_artifact(make_artifact(), folder / "version")
        return rooms.registry.store(folder / "version")


def test_a_trained_version_is_what_was_trained_and_the_default(rooms: Rooms) -> None:
    made = make_artifact(seed=3)

    assert 1 == train(rooms, "m", made)

    version = rooms.registry.resolve(Ref.parse("m"))
    loaded = rooms.registry.load(version)
    assert ("m", 1) == (version.model, version.version)
    assert version == rooms.registry.get_version("m", 1)
    assert (made.architecture, made.encoder, made.classes) == (loaded.architecture, loaded.encoder, loaded.classes)
    assert [w.tobytes() for w in made.weights.values()] == [loaded.weights[name].tobytes() for name in made.weights]
    dataset = rooms.datasets.get(version.document["dataset"]["id"])
    assert (dataset.sha256, dataset.rows) == (
        version.document["dataset"]["sha256"],
        version.document["dataset"]["rows"],
    )


def test_versions_published_at_once_are_numbered_without_a_gap(rooms: Rooms) -> None:
    gate = threading.Barrier(6)

    def run(_: int) -> int | None:
        gate.wait()
        return train(rooms, "m")

    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(run, range(6)))

    model = rooms.registry.get("m")
    assert [1, 2, 3, 4, 5, 6] == sorted(n for n in numbers if n is not None)
    assert [6, 5, 4, 3, 2, 1] == [version.version for version in model.versions]
    assert (6, 6) == (model.latest_version, model.default_version)
    assert {version.key for version in model.versions} == folders(rooms)


def test_a_number_is_never_used_again(rooms: Rooms) -> None:
    numbers = [train(rooms), train(rooms)]
    rooms.registry.delete_version("m", 2, force=True)

    numbers.append(train(rooms))

    assert [1, 2, 3] == numbers
    assert [3, 1] == [version.version for version in rooms.registry.get("m").versions]


def test_a_job_that_was_cancelled_publishes_nothing(rooms: Rooms) -> None:
    job = submit(rooms)
    claim = rooms.claims.take(job.id, job.workflow_id)
    assert claim is not None
    rooms.jobs.cancel(job.id)

    with rooms.blobs.staging("test") as folder:
        (folder / "version").mkdir()
        write_artifact(make_artifact(), folder / "version")
        publish(rooms, job, claim, folder / "version", make_done())

    assert "cancelled" == rooms.jobs.get(job.id).status
    assert set() == folders(rooms)
    with pytest.raises(NotFound, match="model 'm'"):
        rooms.registry.get("m")


def test_a_job_publishes_once_however_often_it_is_told_to(rooms: Rooms) -> None:
    job = submit(rooms)
    claims = [rooms.claims.take(job.id, job.workflow_id) for _ in range(2)]

    for claim in (*claims, *claims):
        assert claim is not None
        with rooms.blobs.staging("test") as folder:
            (folder / "version").mkdir()
            publish(rooms, job, claim, folder / "version", make_done())

    assert [1] == [version.version for version in rooms.registry.get("m").versions]


#: what "promote" and "optimize" say, the champion's and the challenger's figures, and the default after both
PROMOTIONS: list[tuple[str, str, Any, Any, int]] = [
    ("always", "log_loss", {"log_loss": 0.1}, {"log_loss": 0.9}, 2),
    ("never", "log_loss", {"log_loss": 0.9}, {"log_loss": 0.1}, 1),
    ("if_better", "log_loss", {"log_loss": 0.9}, {"log_loss": 0.1}, 2),
    ("if_better", "log_loss", {"log_loss": 0.1}, {"log_loss": 0.9}, 1),
    ("if_better", "accuracy", {"accuracy": 0.8}, {"accuracy": 0.9}, 2),
    ("if_better", "accuracy", {"accuracy": 0.9}, {"accuracy": 0.8}, 1),
    ("if_better", "balanced_accuracy", {"balanced_accuracy": 0.8}, {"balanced_accuracy": 0.8}, 1),
    ("if_better", "macro_f1", {"macro_f1": 0.8}, {"macro_f1": 0.81}, 2),
    ("if_better", "roc_auc", {"roc_auc_ovr": 0.8}, {"roc_auc_ovr": 0.7}, 1),
    ("if_better", "roc_auc", {"roc_auc_ovr": None}, {"roc_auc_ovr": 0.7}, 2),
    ("if_better", "accuracy", {"accuracy": 0.1}, None, 1),
    ("if_better", "accuracy", None, {"accuracy": 0.1}, 2),
]


def test_the_default_moves_as_the_specification_says(rooms: Rooms) -> None:
    for i, (promote, optimize, champion, challenger, _) in enumerate(PROMOTIONS):
        train(rooms, f"m{i}", validation=champion)
        train(rooms, f"m{i}", promote=promote, optimize=optimize, validation=challenger)

    defaults = [rooms.registry.get(f"m{i}").default_version for i in range(len(PROMOTIONS))]

    assert [default for *_, default in PROMOTIONS] == defaults


def test_the_first_version_is_the_default_unless_it_is_not_to_be(rooms: Rooms) -> None:
    for promote in ("always", "if_better", "never"):
        train(rooms, promote, promote=promote)

    defaults = [rooms.registry.get(name).default_version for name in ("always", "if_better", "never")]

    assert [1, 1, None] == defaults


def test_an_alias_is_a_movable_name(rooms: Rooms) -> None:
    for _ in range(2):
        train(rooms)

    first = rooms.aliases.set("m", "champion", 1)
    second = rooms.aliases.set("m", "champion", 2)

    assert {DEFAULT: 2, "champion": 1} == first.aliases
    assert {DEFAULT: 2, "champion": 2} == second.aliases
    assert 2 == rooms.registry.resolve(Ref.parse("m@champion")).version
    assert 1 == rooms.registry.resolve(Ref.parse("m@1")).version
    rooms.aliases.delete("m", "champion")
    assert {DEFAULT: 2} == rooms.registry.get("m").aliases


@pytest.mark.parametrize("alias", ["", "1", "1st", "_a", "é", "a@b", "a" * 65])
def test_an_alias_starts_with_a_letter(rooms: Rooms, alias: str) -> None:
    train(rooms)

    with pytest.raises(Invalid, match="starts with a letter"):
        rooms.aliases.set("m", alias, 1)


@pytest.mark.parametrize(
    ("ref", "missing"),
    [("n", "model 'n'"), ("n@1", "n@1"), ("m@2", "version 'm@2'"), ("m@champion", "alias 'm@champion'")],
)
def test_what_a_reference_does_not_mean_is_not_found(rooms: Rooms, ref: str, missing: str) -> None:
    train(rooms)

    with pytest.raises(NotFound, match=missing):
        rooms.registry.resolve(Ref.parse(ref))


def test_an_alias_of_nothing_is_not_found(rooms: Rooms) -> None:
    train(rooms)

    with pytest.raises(NotFound, match="model 'n'"):
        rooms.aliases.set("n", "champion", 1)
    with pytest.raises(NotFound, match="version 'm@2'"):
        rooms.aliases.set("m", "champion", 2)
    with pytest.raises(NotFound, match="alias 'm@champion'"):
        rooms.aliases.delete("m", "champion")


def test_one_alias_moved_by_many_at_once_points_at_one_version(rooms: Rooms) -> None:
    train(rooms)
    train(rooms)
    gate = threading.Barrier(6)

    def run(i: int) -> None:
        gate.wait()
        rooms.aliases.set("m", "champion", 1 + i % 2)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(6)))

    assert rooms.registry.resolve(Ref.parse("m@champion")).version in (1, 2)


def test_an_aliased_version_goes_only_by_force_and_its_aliases_go_with_it(rooms: Rooms) -> None:
    train(rooms)
    train(rooms)
    rooms.aliases.set("m", "champion", 2)

    with pytest.raises(Conflict, match="champion, default"):
        rooms.registry.delete_version("m", 2, force=False)
    gone = rooms.registry.delete_version("m", 2, force=True)

    assert {} == rooms.registry.get("m").aliases
    assert gone.key not in folders(rooms)
    with pytest.raises(NotFound, match="m@2"):
        rooms.registry.get_version("m", 2)
    with pytest.raises(NotFound, match="alias"):
        rooms.registry.resolve(Ref.parse("m"))


def test_an_alias_never_points_at_a_deleted_version(rooms: Rooms) -> None:
    train(rooms)
    with ThreadPoolExecutor(2) as pool:
        for number in range(2, 8):
            train(rooms, promote="never")
            gate = threading.Barrier(2)

            def move(gate: threading.Barrier = gate, number: int = number) -> None:
                gate.wait()
                with suppress(NotFound):
                    rooms.aliases.set("m", "champion", number)

            def remove(gate: threading.Barrier = gate, number: int = number) -> None:
                gate.wait()
                with suppress(Conflict):
                    rooms.registry.delete_version("m", number, force=False)

            for future in [pool.submit(each) for each in (move, remove)]:
                future.result()
            model = rooms.registry.get("m")
            assert set(model.aliases.values()) <= {version.version for version in model.versions}


def test_a_model_goes_with_all_it_has_once_nobody_trains_it(rooms: Rooms) -> None:
    train(rooms, "m")
    train(rooms, "m")
    train(rooms, "other")
    job = submit(rooms, "m")

    with pytest.raises(Conflict, match="trains model 'm'"):
        rooms.registry.delete("m")
    rooms.jobs.cancel(job.id)
    gone = rooms.registry.delete("m")

    assert {1, 2} == {version.version for version in gone}
    assert {rooms.registry.get_version("other", 1).key} == folders(rooms)
    for act in (rooms.registry.get, rooms.registry.delete):
        with pytest.raises(NotFound, match="model 'm'"):
            act("m")


def told(rooms: Rooms, alias: str = DEFAULT) -> list[tuple[int | None, str]]:
    """Give the history of an alias of the model `m`, oldest first: version and reason."""
    return [(move.version, move.reason) for move in rooms.aliases.history("m", alias, 100, None)[0][::-1]]


def rolled_back(rooms: Rooms, alias: str = DEFAULT) -> int | None:
    """Roll an alias of the model `m` back; gives where it points now."""
    return rooms.aliases.rollback("m", alias).aliases[alias]


def test_every_move_of_an_alias_is_told_with_its_reason(rooms: Rooms) -> None:
    train(rooms)
    train(rooms)
    train(rooms, promote="never")
    rooms.aliases.set("m", DEFAULT, 3)
    rooms.aliases.rollback("m", DEFAULT)
    rooms.aliases.set("m", "champion", 1)
    rooms.aliases.delete("m", "champion")

    moves, following = rooms.aliases.history("m", DEFAULT, 100, None)

    assert [(1, "promoted"), (2, "promoted"), (3, "set"), (2, "rollback")] == told(rooms)
    assert [(1, "set"), (None, "deleted")] == told(rooms, "champion")
    assert sorted((move.at for move in moves), reverse=True) == [move.at for move in moves]
    assert following is None
    for name, alias in (("m", "nobody"), ("n", DEFAULT)):
        with pytest.raises(NotFound, match=f"alias '{name}@{alias}'"):
            rooms.aliases.history(name, alias, 100, None)


def test_a_history_only_grows(rooms: Rooms) -> None:
    train(rooms)
    train(rooms)
    before = rooms.aliases.history("m", DEFAULT, 100, None)[0]

    rooms.aliases.rollback("m", DEFAULT)
    rooms.registry.delete_version("m", 2, force=True)
    rooms.aliases.delete("m", DEFAULT)

    after = rooms.aliases.history("m", DEFAULT, 100, None)[0]
    assert before == after[-len(before) :]
    assert [(1, "rollback"), (None, "deleted")] == told(rooms)[len(before) :]


def test_a_history_is_told_page_by_page(rooms: Rooms) -> None:
    train(rooms)
    for _ in range(4):
        rooms.aliases.set("m", "champion", 1)
    whole = rooms.aliases.history("m", "champion", 100, None)[0]

    first, cursor = rooms.aliases.history("m", "champion", 3, None)
    second, end = rooms.aliases.history("m", "champion", 3, cursor)

    assert ([3, 1], None) == ([len(first), len(second)], end)
    assert whole == [*first, *second]


def test_two_rollbacks_go_back_twice_and_then_none_is_left(rooms: Rooms) -> None:
    for _ in range(3):
        train(rooms)

    assert [2, 1] == [rolled_back(rooms), rolled_back(rooms)]

    with pytest.raises(Conflict, match="earlier version of m@default"):
        rooms.aliases.rollback("m", DEFAULT)
    assert 1 == rooms.registry.get("m").default_version
    # and what is published from then on has this one before it
    train(rooms)
    assert 1 == rolled_back(rooms)


def test_a_rollback_passes_over_versions_that_are_gone(rooms: Rooms) -> None:
    for _ in range(4):
        train(rooms)
    rooms.registry.delete_version("m", 3, force=False)
    rooms.registry.delete_version("m", 1, force=False)

    assert 2 == rolled_back(rooms)

    with pytest.raises(Conflict, match="none left"):
        rooms.aliases.rollback("m", DEFAULT)


def test_a_version_that_was_set_again_is_gone_back_to_in_the_order_of_the_moves(rooms: Rooms) -> None:
    for _ in range(3):
        train(rooms, promote="never")
    for number in (1, 2, 2, 1, 3):
        rooms.aliases.set("m", "champion", number)

    assert [1, 2, 1] == [rolled_back(rooms, "champion") for _ in range(3)]

    with pytest.raises(Conflict, match="none left"):
        rooms.aliases.rollback("m", "champion")


def test_an_alias_that_was_removed_has_nothing_to_go_back_to_until_it_is_set_again(rooms: Rooms) -> None:
    for _ in range(3):
        train(rooms, promote="never")
    rooms.aliases.set("m", "champion", 1)
    rooms.aliases.set("m", "champion", 2)
    rooms.aliases.delete("m", "champion")

    for name, alias in (("m", "champion"), ("m", DEFAULT)):
        with pytest.raises(NotFound, match=f"alias '{name}@{alias}'"):
            rooms.aliases.rollback(name, alias)
    with pytest.raises(NotFound, match="model 'n'"):
        rooms.aliases.rollback("n", DEFAULT)
    rooms.aliases.set("m", "champion", 3)
    assert [2, 1] == [rolled_back(rooms, "champion") for _ in range(2)]


def test_aliases_that_go_with_their_version_are_noted(rooms: Rooms) -> None:
    train(rooms)
    train(rooms)
    rooms.aliases.set("m", "champion", 2)

    rooms.registry.delete_version("m", 2, force=True)

    assert [(1, "promoted"), (2, "promoted"), (None, "deleted")] == told(rooms)
    assert [(2, "set"), (None, "deleted")] == told(rooms, "champion")
    rooms.aliases.set("m", DEFAULT, 1)
    with pytest.raises(Conflict, match="none left"):
        rooms.aliases.rollback("m", DEFAULT)


def test_a_model_of_the_same_name_has_a_history_of_its_own(rooms: Rooms) -> None:
    for _ in range(3):
        train(rooms)
    train(rooms, "other")
    rooms.registry.delete("m")
    with pytest.raises(NotFound, match="alias 'm@default'"):
        rooms.aliases.history("m", DEFAULT, 100, None)

    train(rooms)

    assert [(1, "promoted")] == told(rooms)
    with pytest.raises(Conflict, match="none left"):
        rooms.aliases.rollback("m", DEFAULT)
    assert 1 == len(rooms.aliases.history("other", DEFAULT, 100, None)[0])


def test_rollbacks_at_once_go_back_one_after_the_other(rooms: Rooms) -> None:
    for _ in range(5):
        train(rooms)
    gate = threading.Barrier(4)

    def run(_: int) -> None:
        gate.wait()
        rooms.aliases.rollback("m", DEFAULT)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))

    assert [(n, "rollback") for n in (4, 3, 2, 1)] == told(rooms)[5:]
    assert 1 == rooms.registry.get("m").default_version


def test_models_are_listed_by_name_page_by_page(rooms: Rooms) -> None:
    for name in ("a", "b", "c"):
        train(rooms, name)

    first, cursor = rooms.registry.list(2, None)
    second, end = rooms.registry.list(2, cursor)

    assert (["a", "b"], ["c"], None) == ([m.name for m in first], [m.name for m in second], end)


def test_files_that_a_crash_left_without_a_row_are_swept_when_they_are_old(rooms: Rooms) -> None:
    train(rooms)
    kept = rooms.registry.get_version("m", 1).key
    old, young = store(rooms), store(rooms)
    for folder in (kept, old):
        age(rooms, folder)

    rooms.registry.sweep()

    assert {kept, young} == folders(rooms)


class Undeletable(Blobs):
    """A store whose deletions do not happen: what a crash between row and files leaves."""

    def __init__(self, real: Blobs) -> None:
        self._real = real

    def put(self, key: str, source: Path) -> None:
        self._real.put(key, source)

    def publish(self, prefix: str, folder: Path) -> None:
        self._real.publish(prefix, folder)

    def get(self, key: str) -> bytes:
        return self._real.get(key)

    def local(self, key: str) -> Path:
        return self._real.local(key)

    def delete(self, prefix: str) -> None:
        raise OSError("expected")

    def keys(self, prefix: str, older_than_seconds: float = 0) -> Iterator[str]:
        return self._real.keys(prefix, older_than_seconds)

    def staging(self, label: str) -> AbstractContextManager[Path]:
        return self._real.staging(label)

    def sweep(self, label: str) -> None:
        self._real.sweep(label)


def test_files_of_a_version_whose_deletion_was_cut_off_are_swept(rooms: Rooms) -> None:
    train(rooms)
    train(rooms)
    cut_off = Registry(rooms.database, Undeletable(rooms.blobs))

    with pytest.raises(OSError, match="expected"):
        cut_off.delete_version("m", 1, force=False)

    left = folders(rooms)
    with pytest.raises(NotFound):
        rooms.registry.get_version("m", 1)
    for folder in left:
        age(rooms, folder)
    rooms.registry.sweep()
    assert 2 == len(left)
    assert {rooms.registry.get_version("m", 2).key} == folders(rooms)


def test_a_version_never_changes(rooms: Rooms) -> None:
    train(rooms, artifact=make_artifact(seed=1))
    before = rooms.registry.get_version("m", 1)

    train(rooms, artifact=make_artifact(seed=2))
    rooms.aliases.set("m", "champion", 1)

    assert before == rooms.registry.get_version("m", 1)
    weights = rooms.registry.load(before).weights
    assert all(np.array_equal(weights[name], value) for name, value in make_artifact(seed=1).weights.items())


def test_a_rollback_passes_over_versions_that_it_is_told_of(rooms: Rooms) -> None:
    for _ in range(3):
        train(rooms)

    assert (2, 1) == (rooms.aliases.previous_version("m", DEFAULT), rooms.aliases.previous_version("m", DEFAULT, {2}))
    assert 1 == rooms.aliases.rollback("m", DEFAULT, {2}).default_version
    with pytest.raises(Conflict):
        rooms.aliases.previous_version("m", DEFAULT)
