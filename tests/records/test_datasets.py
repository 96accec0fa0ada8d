"""The room of data sets: content-addressed, blobs before rows, and kept while a job reads them."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from app.errors import Conflict, NotFound
from app.learning.tables.column import Column
from app.learning.tables.describe_column import describe
from app.records.dataset import Dataset, ParsedTable, RawFile
from app.records.job import Job, JobSpec, NewJob
from app.records.rooms import Rooms
from app.storage.blobs import ORPHAN_SECONDS

pytestmark = pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)

COLUMNS = [
    describe(Column("a", "numeric", np.array([1.0, 2.0]))),
    describe(Column("é", "categorical", np.array([0, 0], np.int32), ("x",), posted="str")),
]


def add(
    rooms: Rooms, raw: bytes = b"a,y\n1,x\n", table: bytes = b"table", form: str = "csv", name: str | None = None
) -> tuple[Dataset, bool]:
    with rooms.blobs.staging("test") as folder:
        (folder / "raw").write_bytes(raw)
        return rooms.datasets.add(name, RawFile.of(folder / "raw", form), parsed(folder, table))


def parsed(folder: Path, table: bytes) -> ParsedTable:
    (folder / "table").write_bytes(table)
    return ParsedTable(folder / "table", 2, COLUMNS, ["one warning"], "y")


def correct(rooms: Rooms, dataset_id: str, table: bytes) -> Dataset:
    with rooms.blobs.staging("test") as folder:
        return rooms.datasets.replace_table(dataset_id, parsed(folder, table))


def submit(rooms: Rooms, dataset: Dataset, validation: Dataset | None = None) -> Job:
    other = None if validation is None else validation.table_key
    return rooms.jobs.submit(NewJob("m", dataset.id, dataset.table_key, other, cast(JobSpec, {})), None, "body")


def stored(rooms: Rooms) -> set[str]:
    return {key for prefix in ("datasets", "tables") for key in rooms.blobs.keys(prefix)}


def age(rooms: Rooms, key: str) -> None:
    path = rooms.blobs.local(key)
    then = path.stat().st_mtime - ORPHAN_SECONDS - 10
    os.utime(path, (then, then))


def test_an_upload_is_found_by_its_id_and_by_its_bytes(rooms: Rooms) -> None:
    raw = b"a,y\n1,x\n2,x\n"

    dataset, is_new = add(rooms, raw, b"table", name="mine")

    assert is_new
    assert dataset == rooms.datasets.get(dataset.id) == rooms.datasets.find(dataset.sha256, "csv")
    assert ("mine", "ready", "csv", 2, len(raw)) == (
        dataset.name,
        dataset.status,
        dataset.format,
        dataset.rows,
        dataset.size_bytes,
    )
    assert (COLUMNS, ["one warning"], "y") == (dataset.columns, dataset.warnings, dataset.default_target)
    assert hashlib.sha256(raw).hexdigest() == dataset.sha256
    assert raw == rooms.datasets.raw_path(dataset).read_bytes()
    assert b"table" == rooms.datasets.path(dataset.table_key).read_bytes()


def test_the_same_bytes_are_the_same_data_set(rooms: Rooms) -> None:
    first, _ = add(rooms, name="first")

    second, is_new = add(rooms, name="second")

    assert (first, False) == (second, is_new)


def test_the_same_bytes_in_another_format_are_another_data_set(rooms: Rooms) -> None:
    first, _ = add(rooms, form="csv")

    second, is_new = add(rooms, form="tsv")

    assert is_new
    assert first.id != second.id
    assert rooms.datasets.find(first.sha256, "npz") is None


def test_the_same_upload_many_times_at_once_is_one_data_set(rooms: Rooms) -> None:
    gate = threading.Barrier(6)

    def run(_: int) -> tuple[Dataset, bool]:
        gate.wait()
        return add(rooms)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(run, range(6)))

    assert 1 == len({dataset.id for dataset, _ in found})
    assert 1 == sum(is_new for _, is_new in found)


def test_data_sets_are_listed_newest_first_page_by_page(rooms: Rooms) -> None:
    ids = [add(rooms, b"a,y\n%d,x\n" % i)[0].id for i in range(5)]

    first, cursor = rooms.datasets.list(3, None)
    second, end = rooms.datasets.list(3, cursor)

    assert sorted(ids, reverse=True) == [dataset.id for dataset in (*first, *second)]
    assert end is None


def test_a_corrected_data_set_has_another_table_and_jobs_keep_theirs(rooms: Rooms) -> None:
    dataset, _ = add(rooms, table=b"first")
    job = submit(rooms, dataset)

    corrected = correct(rooms, dataset.id, b"second")

    assert replace(dataset, table_key=corrected.table_key) == corrected
    assert b"second" == rooms.datasets.path(corrected.table_key).read_bytes()
    assert b"first" == rooms.datasets.path(rooms.jobs.get(job.id).table_key).read_bytes()


def test_what_is_unknown_is_not_found_and_nothing_is_stored_for_it(rooms: Rooms) -> None:
    with pytest.raises(NotFound, match="ds_none"):
        rooms.datasets.get("ds_none")
    with pytest.raises(NotFound, match="ds_none"):
        correct(rooms, "ds_none", b"table")
    with pytest.raises(NotFound, match="ds_none"):
        rooms.datasets.delete("ds_none", rooms.jobs)

    assert set() == stored(rooms)


def test_deleting_a_data_set_removes_its_files(rooms: Rooms) -> None:
    dataset, _ = add(rooms)
    other, _ = add(rooms, b"a,y\n9,z\n", b"another table")

    rooms.datasets.delete(dataset.id, rooms.jobs)

    assert rooms.datasets.find(dataset.sha256, "csv") is None
    assert {other.raw_key, other.table_key} == stored(rooms)


def test_a_table_that_two_data_sets_share_stays_until_the_last_goes(rooms: Rooms) -> None:
    first, _ = add(rooms, b"a,y\n1,x\n", b"shared")
    second, _ = add(rooms, b"a,y\n1,x", b"shared")

    rooms.datasets.delete(first.id, rooms.jobs)
    left = stored(rooms)
    rooms.datasets.delete(second.id, rooms.jobs)

    assert {second.raw_key, second.table_key} == left
    assert set() == stored(rooms)


def test_a_data_set_stays_while_a_job_needs_it(rooms: Rooms) -> None:
    dataset, _ = add(rooms)
    validation, _ = add(rooms, b"a,y\n2,x\n", b"validation")
    job = submit(rooms, dataset, validation)

    for each in (dataset, validation):
        with pytest.raises(Conflict, match=each.id):
            rooms.datasets.delete(each.id, rooms.jobs)
    rooms.jobs.cancel(job.id)
    for each in (dataset, validation):
        rooms.datasets.delete(each.id, rooms.jobs)

    assert set() == stored(rooms)


def test_a_table_that_a_job_reads_stays_when_another_data_set_with_it_goes(rooms: Rooms) -> None:
    dataset, _ = add(rooms, table=b"shared")
    job = submit(rooms, dataset)
    correct(rooms, dataset.id, b"corrected")
    other, _ = add(rooms, b"a,y\n1,x", b"shared")

    with pytest.raises(Conflict, match=other.id):
        rooms.datasets.delete(other.id, rooms.jobs)

    assert b"shared" == rooms.datasets.path(job.table_key).read_bytes()


def test_uploads_and_deletions_at_once_leave_no_row_without_its_files(rooms: Rooms) -> None:
    with ThreadPoolExecutor(3) as pool:
        for _ in range(15):
            dataset, _ = add(rooms)
            gate = threading.Barrier(3)

            def upload(gate: threading.Barrier = gate) -> None:
                gate.wait()
                add(rooms)

            def delete(gate: threading.Barrier = gate, dataset_id: str = dataset.id) -> None:
                gate.wait()
                rooms.datasets.delete(dataset_id, rooms.jobs)

            for future in [pool.submit(each) for each in (upload, delete, upload)]:
                future.result()

            left = rooms.datasets.find(dataset.sha256, "csv")
            assert (set() if left is None else {left.raw_key, left.table_key}) == stored(rooms)


def test_sweeping_removes_what_a_crash_left_before_the_row(rooms: Rooms) -> None:
    dataset, _ = add(rooms)
    with rooms.blobs.staging("test") as folder:
        for key in ("datasets/old.csv", "tables/old", "tables/young"):
            (folder / "file").write_bytes(b"orphan")
            rooms.blobs.put(key, folder / "file")
    for key in (dataset.raw_key, dataset.table_key, "datasets/old.csv", "tables/old"):
        age(rooms, key)

    rooms.datasets.sweep(rooms.jobs)

    assert {dataset.raw_key, dataset.table_key, "tables/young"} == stored(rooms)


def test_sweeping_keeps_an_earlier_reading_while_a_job_may_need_it(rooms: Rooms) -> None:
    dataset, _ = add(rooms, table=b"first")
    job = submit(rooms, dataset)
    rooms.jobs.cancel(job.id)
    corrected = correct(rooms, dataset.id, b"second")
    age(rooms, job.table_key)

    rooms.datasets.sweep(rooms.jobs)
    kept = stored(rooms)
    rooms.jobs.delete(job.id)
    rooms.datasets.sweep(rooms.jobs)

    assert {dataset.raw_key, dataset.table_key, corrected.table_key} == kept
    assert {dataset.raw_key, corrected.table_key} == stored(rooms)


def test_of_two_corrections_at_once_the_second_is_told_so(rooms: Rooms) -> None:
    dataset, _ = add(rooms)
    correct(rooms, dataset.id, b"first correction")

    with rooms.blobs.staging("test") as folder, pytest.raises(Conflict, match="meanwhile"):
        rooms.datasets.replace_table(dataset.id, parsed(folder, b"second correction"), dataset.table_key)

    assert rooms.datasets.path(rooms.datasets.get(dataset.id).table_key).read_bytes() == b"first correction"
