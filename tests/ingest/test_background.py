"""Large uploads: answered at once and parsed afterwards, through crashes, deletions and files that are no tables."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.ingest.background import BackgroundParser
from app.ingest.parser_process import ParserProcess
from app.learning.tables.column import Column
from app.learning.tables.describe_column import describe
from app.records.dataset import Dataset, ParsedTable, RawFile
from app.records.rooms import Rooms
from app.settings import Settings
from app.wiring import open_rooms
from tests import stored_rows
from tests.service import Service
from tests.wire import CSV, check_problem

#: the largest file in bytes that is parsed before the answer
AT_ONCE = 200
UPLOAD = "/api/v1/datasets"
PARQUET = {"Content-Type": "application/vnd.apache.parquet"}


@dataclass
class Intake:
    """A service that parses files of up to 200 bytes before it answers; it has one model, `m`."""

    service: Service

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        return httpx.request(method, self.service.url + path, timeout=60, **content)

    def upload(self, body: bytes, headers: dict[str, str] = CSV) -> httpx.Response:
        return self.request("POST", UPLOAD, content=body, headers=headers)

    def get(self, dataset_id: str) -> dict[str, Any]:
        document: dict[str, Any] = self.request("GET", f"{UPLOAD}/{dataset_id}").raise_for_status().json()
        return document

    def settled(self, dataset_id: str) -> dict[str, Any]:
        """Wait until a data set is parsed, or cannot be, and return it."""
        deadline = time.monotonic() + 15
        while (found := self.get(dataset_id))["status"] == "processing":
            assert time.monotonic() < deadline, "the data set is not parsed"
            time.sleep(0.02)
        return found

    @contextmanager
    def held(self) -> Iterator[int]:
        """Stop the parser process, so that uploads stay unparsed, and return its id."""
        # the parsers of small uploads and of JSON bodies started before the one of large files
        child = max(self.service.find("app.ingest.parser_child"))
        os.kill(child, signal.SIGSTOP)
        try:
            yield child
        finally:
            for pid in {child} & set(self.service.processes()):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def intake(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Intake]:
    """The service of this module, whose parser of large files has started."""
    data_dir = tmp_path_factory.mktemp("intake") / "data"
    data_dir.mkdir()
    shutil.copy(migrated, data_dir / "fitserve.db")
    rooms = open_rooms(Settings(data_dir=data_dir))
    stored_rows.train(rooms, "m")
    rooms.close()
    running = Intake(Service(data_dir, {"workers": "0", "max_parsed_at_once_bytes": str(AT_ONCE)}).start())
    check_problem(running.request("POST", "/api/v1/models/m/evaluate", json={"dataset": "ds_0"}), 404)
    running.settled(running.upload(table("first")).json()["id"])
    yield running
    assert running.service.stop() == 0


def table(name: str, size: int = 2000) -> bytes:
    """Return a CSV of this many bytes whose first column has this name."""
    head, row = f"{name},y\n".encode(), b"1,p\n2,q\n"
    body = head + row * ((size - len(head)) // len(row))
    return body + b"\n" * (size - len(body))


def test_a_file_that_is_larger_by_a_byte_is_parsed_afterwards(intake: Intake) -> None:
    at_once = intake.upload(table("edge", AT_ONCE))
    later = intake.upload(table("edge", AT_ONCE + 1))

    assert (201, "ready") == (at_once.status_code, at_once.json()["status"])
    document = later.json()
    assert (202, "processing", None, [], None) == (
        later.status_code,
        *(document[name] for name in ("status", "rows", "columns", "error")),
    )
    assert f"{UPLOAD}/{document['id']}" == later.headers["location"]
    ready = intake.settled(document["id"])
    assert ("ready", at_once.json()["rows"], at_once.json()["columns"], None) == tuple(
        ready[name] for name in ("status", "rows", "columns", "error")
    )
    assert [1, "p"] == intake.request("GET", f"{UPLOAD}/{document['id']}/rows").json()["rows"][0]
    again = intake.upload(table("edge", AT_ONCE + 1))
    assert (200, ready) == (again.status_code, again.json())


@pytest.mark.parametrize(
    ("body", "headers", "code", "words"),
    [
        (b"PAR1" + bytes(1000) + b"PAR1", PARQUET, "malformed", "Parquet"),
        (b"a,b\n" + b"1,2\n" * 100 + b"3\n", CSV, "invalid", "got 1 in row 100"),
        (b"a,b\n" + b"1,2\n" * 100 + b"\xff,3\n", CSV, "malformed", "UTF-8"),
        (b",".join(b"c%d" % i for i in range(10_001)) + b"\n", CSV, "too_large", "10001"),
    ],
)
def test_a_file_that_is_no_table_fails_and_can_be_sent_again(
    intake: Intake, body: bytes, headers: dict[str, str], code: str, words: str
) -> None:
    first = intake.upload(body, headers)

    failed = intake.settled(first.json()["id"])

    assert (202, "failed", None, []) == (first.status_code, *(failed[n] for n in ("status", "rows", "columns")))
    assert code == failed["error"]["code"]
    assert words in failed["error"]["message"]
    assert_unusable(intake, failed["id"])
    again = intake.upload(body, headers)
    assert (202, "processing") == (again.status_code, again.json()["status"])
    assert failed["error"] == intake.settled(again.json()["id"])["error"]
    assert 204 == intake.request("DELETE", f"{UPLOAD}/{again.json()['id']}").status_code


def assert_unusable(intake: Intake, dataset_id: str) -> None:
    """Assert that every request that needs the table is answered 409."""
    other = intake.upload(b"a,y\n" + b"1,p\n2,q\n" * 5).json()["id"]
    patch = {"columns": {"a": {"kind": "categorical"}}}
    answers = [
        intake.request("GET", f"{UPLOAD}/{dataset_id}/rows"),
        intake.request("PATCH", f"{UPLOAD}/{dataset_id}", json=patch),
        intake.request("POST", "/api/v1/models/m/evaluate", json={"dataset": dataset_id}),
        intake.request("POST", "/api/v1/models/new/train", json={"dataset": dataset_id}),
        intake.request("POST", "/api/v1/models/new/train?dry_run=true", json={"dataset": dataset_id}),
        intake.request(
            "POST", "/api/v1/models/new/train", json={"dataset": other, "validation": {"dataset": dataset_id}}
        ),
    ]

    for answer in answers:
        assert "Expected a data set that is ready" in check_problem(answer, 409, "conflict")["detail"]


def test_a_data_set_that_is_not_parsed_yet_cannot_be_used(intake: Intake) -> None:
    with intake.held():
        dataset = intake.upload(table("unread")).json()

        assert dataset == intake.get(dataset["id"])
        assert dataset["id"] in [item["id"] for item in intake.request("GET", UPLOAD).json()["items"]]
        assert_unusable(intake, dataset["id"])

    assert "ready" == intake.settled(dataset["id"])["status"]
    patch = {"columns": {"unread": {"kind": "categorical"}}}
    assert intake.request("PATCH", f"{UPLOAD}/{dataset['id']}", json=patch).is_success


def test_equal_bytes_that_come_before_the_first_are_parsed_are_one_set(intake: Intake) -> None:
    with intake.held():
        first, again = intake.upload(table("same")), intake.upload(table("same"))
        other = intake.upload(table("same"), {"Content-Type": "text/tab-separated-values"})

        assert [202, 202, 202] == [answer.status_code for answer in (first, again, other)]
        assert first.json() == again.json()
        assert first.json()["id"] != other.json()["id"]

    for answer in (first, other):
        assert "ready" == intake.settled(answer.json()["id"])["status"]


def test_a_set_that_is_deleted_while_it_is_parsed_stays_gone(intake: Intake) -> None:
    with intake.held():
        reading, waiting, last = (intake.upload(table(name)).json() for name in ("reading", "waiting", "last"))

        for each in (reading, waiting):
            assert 204 == intake.request("DELETE", f"{UPLOAD}/{each['id']}").status_code
        back = intake.upload(table("waiting"))

    assert (202, "ready") == (back.status_code, intake.settled(back.json()["id"])["status"])
    assert "ready" == intake.settled(last["id"])["status"]
    for each in (reading, waiting):
        check_problem(intake.request("GET", f"{UPLOAD}/{each['id']}"), 404)
    assert not (intake.service.data_dir / "datasets" / f"{reading['sha256']}.csv").exists()


def test_a_parser_that_dies_before_it_takes_a_file_costs_nothing(intake: Intake) -> None:
    with intake.held() as child:
        dataset = intake.upload(table("orphan")).json()

        os.kill(child, signal.SIGKILL)

        assert "ready" == intake.settled(dataset["id"])["status"]


def test_files_that_a_crash_left_are_parsed_after_the_restart(intake: Intake) -> None:
    with intake.held():
        datasets = [intake.upload(table(f"crash{i}")).json() for i in range(3)]
        intake.service.kill_all()

    intake.service.start()

    for dataset in datasets:
        ready = intake.settled(dataset["id"])
        assert ("ready", dataset["sha256"]) == (ready["status"], ready["sha256"])
        assert intake.request("GET", f"{UPLOAD}/{dataset['id']}/rows").is_success
    assert not list((intake.service.data_dir / "staging").glob("intake*"))


def test_a_fault_of_the_service_fails_one_data_set_and_not_the_next(rooms: Rooms, tmp_path: Path) -> None:
    in_the_way = tmp_path / "data" / "tables"
    in_the_way.write_bytes(b"")

    def settled(dataset_id: str) -> Dataset:
        while (found := rooms.datasets.get(dataset_id)).status == "processing":
            time.sleep(0.02)
        return found

    async def test() -> list[Dataset]:
        parser = ParserProcess(1000, 5, 60)
        background = BackgroundParser(rooms.datasets, rooms.blobs, parser)
        parsing = asyncio.create_task(background.run())
        found = []
        for name in ("broken", "fine"):
            (tmp_path / "raw").write_bytes(table(name))
            dataset, _ = rooms.datasets.add_unread(None, RawFile.of(tmp_path / "raw", "csv"))
            background.wake()
            found.append(await asyncio.to_thread(settled, dataset.id))
            if in_the_way.is_file():
                in_the_way.unlink()
        parsing.cancel()
        await background.close()
        return found

    broken, fine = asyncio.run(test())

    assert broken.error is not None
    assert ("failed", "internal") == (broken.status, broken.error["code"])
    assert "ready" == fine.status


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
def test_the_first_process_to_parse_a_set_makes_it_ready(rooms: Rooms, tmp_path: Path) -> None:
    def raw() -> Path:
        (tmp_path / "raw").write_bytes(b"a,y\n1,p\n")
        return tmp_path / "raw"

    def parsed(content: bytes) -> ParsedTable:
        (tmp_path / "table").write_bytes(content)
        return ParsedTable(tmp_path / "table", 1, [describe(Column("a", "numeric", np.ones(1)))], [], "y")

    unread, _ = rooms.datasets.add_unread("mine", RawFile.of(raw(), "csv"))

    read, is_new = rooms.datasets.add("another", RawFile.of(raw(), "csv"), parsed(b"table"))
    rooms.datasets.fail(unread.id, "invalid", "too late")
    rooms.datasets.finish(unread.id, parsed(b"another reading"))

    assert (unread.id, False, "ready", "mine") == (read.id, is_new, read.status, read.name)
    assert read == rooms.datasets.get_ready(unread.id)
    assert b"table" == rooms.datasets.path(read.table_key).read_bytes()
    assert [] == rooms.datasets.processing()
