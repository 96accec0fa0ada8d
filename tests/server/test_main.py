"""The serving process: how soon it is ready, how much memory it has, how it stops, and what it prints."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.client import ApiError, Client
from tests.conftest import PENGUINS, Start
from tests.disks import fill, mounted
from tests.processes import is_alive, megabytes, spawn, trainers, until
from tests.service import Service

DATA: dict[str, Any] = {"x": [[i % 7 / 7, i % 3 / 3] for i in range(60)], "y": [i % 2 for i in range(60)]}
BRIEF: dict[str, Any] = {"data": DATA, "validation": None, "fit": {"epochs": 2}}
#: deterministic operations are not compiled by XLA, so that the first epoch ends seconds sooner
ENDLESS: dict[str, Any] = {"data": DATA, "validation": None, "fit": {"epochs": 100_000, "deterministic": True}}
READY_SECONDS, STOP_SECONDS = 1.5, 25
#: resident memory of a serving process that is ready, and its share of memory after it queued a job and predicted
READY_MEGABYTES, USED_MEGABYTES = 115, 125
#: factor by which a busy machine may exceed a bound in seconds
BUSY = 2
#: most objects that a search for garbage may look at: the imports alone are 160,000 objects, which take 150 ms
MOST_SEARCHED = 50_000
#: at SIGUSR1, writes how many objects a search for garbage looks at, and whether the search is enabled
SEARCH = """
import gc, os, pathlib, signal

def write(number, frame):
    part = pathlib.Path(os.environ["SEARCHED"] + ".part")
    part.write_text(f"{len(gc.get_objects())} {gc.isenabled()}")
    part.rename(os.environ["SEARCHED"])

signal.signal(signal.SIGUSR1, write)
"""
LIBRARIES = ("tensorflow", "keras", "polars")


def mapped(pid: int) -> set[str]:
    """Return the heavy libraries that a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {name for name in LIBRARIES if f"/{name}/" in maps}


def test_a_small_process_is_soon_ready_with_the_same_bits_as_before(start: Start) -> None:
    began = time.monotonic()
    service = start()
    seconds = [time.monotonic() - began]
    at_start = megabytes(service.process.pid, "Rss")
    with service.client() as client:
        dataset = client.upload(PENGUINS)
        job = client.wait(client.train("penguins", dataset=dataset, target="species", fit={"epochs": 5}))
        rows = httpx.get(f"{service.url}/api/v1/datasets/{dataset.id}/rows?limit=30").json()
        records = [dict(zip(rows["columns"], row, strict=True)) for row in rows["rows"]]
        before = client.predict("penguins", records=records)
    in_use, resident = (megabytes(service.process.pid, field) for field in ("Pss", "Rss"))

    assert set() == mapped(service.process.pid)
    assert 0 == service.stop()
    began = time.monotonic()
    service.start()
    seconds.append(time.monotonic() - began)

    with service.client() as client:
        after = client.predict(job.ref, records=records)
    print(f"ready after {seconds} s; resident {at_start:.0f} MB, in use {resident:.0f} MB, its share {in_use:.0f} MB")
    assert before.probabilities == after.probabilities
    assert min(seconds) < READY_SECONDS * BUSY
    assert at_start < READY_MEGABYTES
    # memory that the process shares with the worker counts half
    assert in_use < USED_MEGABYTES


def test_a_search_for_garbage_keeps_no_request_waiting(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tmp_path / "found"
    (tmp_path / "sitecustomize.py").write_text(SEARCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SEARCHED", str(found))
    for processes in ("1", "2"):
        service = start(processes=processes)
        with service.client() as client:
            client.wait(client.train("searched", **BRIEF))
            client.predict("searched", rows=DATA["x"])
        serving = service.find("app.server.main") if processes == "2" else [service.process.pid]
        for pid in serving:
            os.kill(pid, signal.SIGUSR1)
            objects, is_enabled = until(lambda: found.read_text().split() if found.exists() else None)
            found.unlink()
            assert 100 < int(objects) < MOST_SEARCHED
            assert "True" == is_enabled
        service.stop()


def test_sigterm_ends_waits_answers_requests_and_requeues_the_job(start: Start) -> None:
    service = start()
    with service.client() as client:
        job = client.train("stopped", **ENDLESS)
        until(lambda: client.job(job).progress["epoch"])
        address = httpx.URL(service.url)
        half_open = [socket.create_connection((address.host, address.port or 0)) for _ in range(3)]
        half_open[1].sendall(b"GET /livez HT")
        half_open[2].sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
        answers: dict[str, httpx.Response] = {}
        upload = (part for part in _slowly(b"a,b\n1,x\n2,y\n3,x\n", 2))
        waiting = [
            _in_thread(answers, "poll", "GET", f"{service.url}/api/v1/jobs/{job.id}?wait_seconds=60"),
            _in_thread(answers, "stream", "GET", f"{service.url}/api/v1/jobs/{job.id}/events", {"Accept": SSE}),
            _in_thread(
                answers, "upload", "POST", f"{service.url}/api/v1/datasets", {"Content-Type": "text/csv"}, upload
            ),
        ]
        time.sleep(1)

        began = time.monotonic()
        code = service.stop(seconds=STOP_SECONDS * BUSY)
        seconds = time.monotonic() - began

    for thread in waiting:
        thread.join(20)
    for each in half_open:
        each.close()
    print(f"stopped after {seconds:.1f} s")
    assert 0 == code
    assert seconds < STOP_SECONDS
    assert {"poll": 200, "stream": 200, "upload": 201} == {name: answers[name].status_code for name in answers}
    assert ("running", "text/event-stream") == (answers["poll"].json()["status"], _media_type(answers["stream"]))
    assert "event: epoch" in answers["stream"].text
    assert {} == service.processes()
    service.start()
    with service.client() as client:
        assert client.job(job).status in ("queued", "running")
        until(lambda: client.job(job).document["attempt"] == 2)


SSE = "text/event-stream"


def _slowly(body: bytes, seconds: float) -> Any:
    for i in range(len(body)):
        yield body[i : i + 1]
        time.sleep(seconds / len(body))


def _media_type(answer: httpx.Response) -> str:
    return answer.headers["content-type"].partition(";")[0]


def _in_thread(
    answers: dict[str, httpx.Response],
    name: str,
    method: str,
    url: str,
    headers: dict[str, str] | None = None,
    body: Any = None,
) -> threading.Thread:
    def send() -> None:
        answers[name] = httpx.request(method, url, headers=headers, content=body, timeout=60)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_a_worker_that_dies_is_started_again_each_time_a_little_later(start: Start) -> None:
    service = start()

    for _ in range(3):
        (worker,) = until(lambda: service.find("app work"))
        os.kill(worker, signal.SIGKILL)
        _await_death(worker)
    until(lambda: service.find("app work"))
    with service.client() as client:
        ended = client.wait(client.train("after", **BRIEF), timeout=120)

    deaths = [line for line in _lines(service) if line["message"] == "worker ended"]
    assert [-signal.SIGKILL] * 3 == [line["exit_code"] for line in deaths]
    gaps = [_seconds(b) - _seconds(a) for a, b in pairwise(deaths)]
    assert 0.4 <= gaps[0]
    assert 0.8 <= gaps[1]
    assert (1, 1) == (ended.version, ended.document["attempt"])


def _await_death(pid: int) -> None:
    until(lambda: not is_alive(pid))


def _seconds(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def test_every_process_dies_with_the_serving_one(start: Start) -> None:
    service = start()
    until(lambda: trainers(service) and service.find("app.ingest.parser_child"))

    service.process.kill()
    service.process.wait()

    until(lambda: not service.processes(), 5)


def _lines(service: Service) -> list[dict[str, Any]]:
    """Return what a service logged; a line that is not one JSON object fails here."""
    said = service.log.read_text().splitlines()
    return [json.loads(line) for line in said if not line.startswith("fitserve: ")]


def test_the_log_is_one_json_object_a_line_with_the_request_id(service: Service, http: httpx.Client) -> None:
    http.get("/api/v1/jobs/job_00", headers={"X-Request-ID": "asked-by-a-test"})
    http.get("/no%1b[31msuch%0apath")

    lines = until(lambda: [line for line in _lines(service) if line.get("request_id") == "asked-by-a-test"])

    assert [("request", "GET", "/api/v1/jobs/job_00", 404)] == [
        (line["message"], line["method"], line["path"], line["status"]) for line in lines
    ]
    assert all({"level", "logger", "timestamp", "message"} <= line.keys() for line in _lines(service))
    assert "\x1b" not in service.log.read_text()


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"data_dir": "/proc/none"}, 1, "fitserve: the data directory /proc/none cannot be written: "),
        ({"data_dir": f"{PENGUINS}/inside"}, 1, "cannot be written: Not a directory"),
        ({"host": "192.0.2.1"}, 1, "fitserve: cannot listen on 192.0.2.1 port 0: Cannot assign requested address"),
        ({"database_url": "sqlite:////proc/none/fitserve.db"}, 1, "fitserve: "),
        ({"port": "99999"}, 2, "FITSERVE_PORT / --port: "),
        ({"workers": "many"}, 2, "FITSERVE_WORKERS / --workers: "),
        ({"api_key": "short"}, 2, "FITSERVE_API_KEY / --api-key: "),
        ({"api_key_file": "/proc/none"}, 2, "fitserve: "),
        ({"store_url": "s3://bucket"}, 2, "FITSERVE_STORE_URL / --store-url: "),
        ({"log_level": "loud"}, 2, "FITSERVE_LOG_LEVEL / --log-level: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_setting_that_prevents_the_start_is_named_in_one_line(
    tmp_path: Path, settings: dict[str, str], code: int, said: str
) -> None:
    data_dir = Path(settings.pop("data_dir", tmp_path / "data"))

    process = spawn(data_dir, "serve", **settings)
    _, errors = process.communicate(timeout=30)

    assert code == process.returncode
    assert said in errors
    assert 1 == len(errors.splitlines())
    assert "Traceback" not in errors


def test_a_port_in_use_is_named_in_one_line(tmp_path: Path, service: Service) -> None:
    port = str(httpx.URL(service.url).port)

    process = spawn(tmp_path / "data", "serve", port=port)
    _, errors = process.communicate(timeout=30)

    assert (1, f"fitserve: cannot listen on 127.0.0.1 port {port}: Address already in use\n") == (
        process.returncode,
        errors,
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A disk of a few megabytes."""
    with mounted(tmp_path / "disk", "24m") as disk:
        yield disk


def test_with_a_full_disk_predictions_go_on_and_the_rest_recovers(small_disk: Path) -> None:
    service = Service(small_disk / "data")
    with service.start().client() as client:
        try:
            _fill_and_free(service, client, small_disk)
        finally:
            service.kill_all()


def _fill_and_free(service: Service, client: Client, disk: Path) -> None:
    client.wait(client.train("kept", **BRIEF), timeout=120)
    asked = client.predict("kept", rows=DATA["x"][:3])
    table = b"a,b\n" + b"".join(b"%d,x%d\n" % (i, i % 3) for i in range(100_000))

    # during an upload
    ballast = fill(disk, 256 * 1024)
    with pytest.raises(ApiError) as refused:
        client.upload(table, content_type="text/csv")
    assert (507, "storage_full") == (refused.value.status, refused.value.code)
    ballast.unlink()

    # while a job trains, so that there is no room to publish
    job = client.train("late", data=DATA, validation=None, fit={"epochs": 150})
    until(lambda: client.job(job).progress["epoch"])
    (child,) = trainers(service)
    ballast = fill(disk, 0)
    with pytest.raises(ApiError) as refused:
        client.train("more", **BRIEF)
    assert (507, "storage_full") == (refused.value.status, refused.value.code)
    assert asked.probabilities == client.predict("kept", rows=DATA["x"][:3]).probabilities
    _await_death(child)
    assert asked.probabilities == client.predict("kept", rows=DATA["x"][:3]).probabilities
    ballast.unlink()

    ended = until(lambda: now if (now := client.job(job)).is_terminal else None)
    assert ("failed", "storage_full") == (ended.status, (ended.error or {})["code"])
    assert 1 == client.wait(client.train("new", **BRIEF), timeout=120).version
    assert "rows" in client.upload(table, content_type="text/csv").document
