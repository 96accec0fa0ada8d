"""Routes for operators: alive, ready, metrics and the description of the system."""

from __future__ import annotations

import re
import signal

import httpx

from app import __version__
from app.client import Job
from tests.conftest import Start
from tests.shared_services import LIMITS
from tests.wire import check_problem, connect, head, read_answer

SYSTEM = {"version", "python", "libraries", "devices", "serves_on", "loaded", "processes", "queue", "workers", "limits"}


def test_alive_and_ready(http: httpx.Client) -> None:
    assert {"status": "alive"} == http.get("/livez").json()
    assert {"status": "ready"} == http.get("/readyz").json()
    assert {"database": "ok", "workers": "ok"} == http.get("/readyz?verbose=true").json()["checks"]


def test_verbose_shows_that_there_is_no_worker_and_stays_ready(limited: httpx.Client) -> None:
    answer = limited.get("/readyz?verbose=true")

    assert (200, "none") == (answer.status_code, answer.json()["checks"]["workers"])
    check_problem(limited.get("/readyz?verbose=loud"), 422, "invalid")


def test_the_system_describes_itself(http: httpx.Client, penguins: Job) -> None:
    http.post("/api/v1/models/penguins/predict", json={"records": [{}]}).raise_for_status()

    system = http.get("/api/v1/system").json()

    assert SYSTEM == set(system)
    assert __version__ == system["version"]
    assert "cpu" == system["devices"][0]["id"]
    assert {"queued", "running"} == set(system["queue"])
    assert ["alive"] == [worker["state"] for worker in system["workers"]]
    expected = {"model": "penguins", "version": penguins.version, "device": "cpu", "library": "onnxruntime"}
    assert expected in system["loaded"]


def test_the_limits_shown_are_those_in_force(limited: httpx.Client) -> None:
    shown = limited.get("/api/v1/system").json()["limits"]

    expected = {name: int(value) for name, value in LIMITS.items() if name.startswith("max_")}
    assert expected == {name: shown[name] for name in expected}


def test_metrics_are_in_prometheus_text_format_and_count_jobs(http: httpx.Client, penguins: Job) -> None:
    answer = http.get("/metrics")

    assert answer.headers["content-type"].startswith("text/plain; version=")
    counts = dict(re.findall(r'^fitserve_jobs\{.*status="(\w+)".*\} (\S+)$', answer.text, re.MULTILINE))
    assert {"queued", "running", "succeeded", "failed", "cancelled"} == set(counts)
    assert float(counts["succeeded"]) >= 1
    assert re.search(r"^fitserve_event_streams\S* 0\.0$", answer.text, re.MULTILINE)
    assert re.search(r"^fitserve_insecure_no_auth\S* 0\.0$", answer.text, re.MULTILINE)
    assert "http_server" in answer.text


def test_a_service_without_keys_by_its_settings_warns(limited: httpx.Client) -> None:
    assert "insecure_no_auth" in limited.get("/readyz").json()["warning"]
    assert re.search(r"^fitserve_insecure_no_auth\S* 1\.0$", limited.get("/metrics").text, re.MULTILINE)


def test_a_service_that_stops_is_alive_and_not_ready(start: Start) -> None:
    service = start(workers="0")
    body = b"a,b\n1,x\n2,y\n"
    upload = head(service.url, "POST", "/api/v1/datasets", "Content-Type: text/csv", f"Content-Length: {len(body)}")
    with connect(service.url) as waiting, connect(service.url) as asking:
        waiting.sendall(upload + body[:4])
        # a connection with an answered request stays open during shutdown
        asking.sendall(head(service.url, "GET", "/livez"))
        assert 200 == read_answer(asking).status_code
        service.process.send_signal(signal.SIGTERM)

        # the upload that was under way is still answered
        waiting.sendall(body[4:])
        assert 201 == read_answer(waiting).status_code
    assert 0 == service.process.wait(25)
