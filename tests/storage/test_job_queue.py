"""The job engine reads rows of portable JSON only: a pickle in its tables is refused, wherever it is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dbos
import pytest
from dbos import DBOSClient, _serialization

from app.client import JobFailed
from app.records.rooms import Rooms
from app.storage.job_engine import PORTABLE
from tests.conftest import Start
from tests.planted import Plot
from tests.processes import until

BRIEF: dict[str, Any] = {
    "data": {"x": [[i % 7 / 7, i % 3 / 3] for i in range(40)], "y": [i % 2 for i in range(40)]},
    "validation": None,
    "fit": {"epochs": 2},
}
READS: dict[str, Callable[[DBOSClient], Any]] = {
    "inputs": lambda client: client.list_workflows(workflow_ids=["inputs"]),
    "input_table": lambda client: client.list_workflows(workflow_ids=["input_table"]),
    "queued": lambda client: client.list_queued_workflows(load_input=True),
    "output": lambda client: client.retrieve_workflow("output").get_result(),
    "output_table": lambda client: client.retrieve_workflow("output_table").get_result(),
    "error": lambda client: client.retrieve_workflow("error").get_result(),
    "step_output": lambda client: client.list_workflow_steps("step_output"),
    "step_error": lambda client: client.list_workflow_steps("step_error"),
    "event": lambda client: client.get_event("event", "key", 1),
    "stream": lambda client: next(client.read_stream("event", "key")),
    "schedule": lambda client: client.list_schedules(),
}


@pytest.fixture
def plot(tmp_path: Path, rooms: Rooms) -> Plot:
    (tmp_path / "traces").mkdir()
    planted = Plot(tmp_path / "data" / "fitserve.db", tmp_path / "traces")
    planted.everywhere()
    return planted


@pytest.fixture
def reader(plot: Plot, database_url: str) -> Iterator[DBOSClient]:
    opened = DBOSClient(system_database_url=database_url, serializer=PORTABLE)
    yield opened
    opened.destroy()


@pytest.mark.parametrize("place", list(READS))
def test_a_pickle_is_refused_wherever_the_engine_reads(plot: Plot, reader: DBOSClient, place: str) -> None:
    with suppress(Exception):
        READS[place](reader)

    assert [] == plot.ran


def test_dbos_unpickles_in_the_one_place_that_is_replaced() -> None:
    folder = Path(dbos.__file__).parent
    calls = [
        (path.name, line.strip())
        for path in sorted(folder.rglob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(r"pickle\.load|Unpickler|marshal|shelve", line)
    ]

    assert [("_serialization.py", "return pickle.loads(pickled_data)")] == calls
    with pytest.raises(ValueError, match="Expected portable JSON in the job engine's tables, got a pickle"):
        _serialization.DBOSDefaultSerializer.deserialize("gASVAQAAAAAAAABOLg==")


def test_planted_pickles_do_not_run_and_other_jobs_go_on(start: Start, tmp_path: Path) -> None:
    service = start(workers="0", sweep_seconds="0.5")
    with service.client() as client:
        jobs = [client.train("planted", **BRIEF) for _ in range(3)]
    service.stop()
    (tmp_path / "traces").mkdir()
    plot = Plot(service.data_dir / "fitserve.db", tmp_path / "traces")
    plot.everywhere()
    plot.work("of_another_name", serialization="java")
    plot.work("malformed", serialization="portable_json", inputs="[")
    in_input, in_output, in_error = (f"{job.id}.1" for job in jobs)
    plot.execute("UPDATE workflow_status SET serialization = 'py_pickle' WHERE workflow_uuid = ?", in_input)
    plot.insert("workflow_input", workflow_uuid=in_input, inputs=plot.pickle("arguments of a job"))
    plot.step(in_output, output=plot.pickle("result of a step"))
    plot.step(in_error, error=plot.pickle("error of a step"))

    service.settings["workers"] = "1"
    service.start()

    with service.client() as client:
        (worker,) = until(lambda: service.find("app work"))
        assert 1 == client.wait(client.train("other", **BRIEF), timeout=120).version
        assert [] == plot.ran
        for job in jobs:
            with pytest.raises(JobFailed, match="resume it to queue it again") as failed:
                client.wait(job, timeout=60)
            assert "internal" == failed.value.code
        assert 1 == client.wait(client.resume(jobs[0]), timeout=120).version
    assert [worker] == service.find("app work")
    assert [] == plot.ran
    for name in ("queued", "queued_internally", "recovered", in_input):
        assert f"Error executing workflow {name}: Expected portable JSON" in service.log.read_text()
    assert "Error executing workflow of_another_name: Serialization java is not available" in service.log.read_text()


def test_a_service_imports_the_job_engine_for_its_first_job(start: Start) -> None:
    service = start(workers="0", sweep_seconds="0.1")

    def has_engine() -> bool:
        # the engine imports its driver of PostgreSQL, which maps a library
        return "/psycopg_binary" in Path(f"/proc/{service.process.pid}/maps").read_text()

    # ten sweeps
    time.sleep(1)
    has_engine_at_rest = has_engine()
    with service.client() as client:
        client.train("first", **BRIEF)

    assert not has_engine_at_rest
    assert has_engine()
