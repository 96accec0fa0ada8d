"""Routes of jobs: submit once, watch by long poll, page and stream, cancel, resume, delete."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest

from app.client import Job
from tests.shared_services import listed
from tests.wire import check_problem

FIELDS = {
    *("id", "kind", "model", "status", "terminal", "queue_position", "attempt", "device", "loop", "spec", "dataset"),
    *("progress", "metrics", "version", "error", "created_at", "started_at", "finished_at"),
}
DATA = {"columns": {"a": [1, 2, 3, 4, 5, 6], "y": ["p", "q"] * 3}}
SSE = {"Accept": "text/event-stream"}


def train(http: httpx.Client, model: str, key: str | None = None, **spec: Any) -> httpx.Response:
    """Submit a job on inline data."""
    headers = {} if key is None else {"Idempotency-Key": key}
    return http.post(f"/api/v1/models/{model}/train", json={"data": DATA, **spec}, headers=headers)


def lines(http: httpx.Client, job_id: str, **headers: str) -> list[str]:
    """Read a stream to its end."""
    path = f"/api/v1/jobs/{job_id}/events"
    with http.stream("GET", path, headers={**SSE, **{n.replace("_", "-"): v for n, v in headers.items()}}) as answer:
        assert 200 == answer.status_code
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(answer.iter_lines())


def events_of(stream: list[str]) -> list[dict[str, Any]]:
    """Return the events of a stream."""
    return [json.loads(line.removeprefix("data: ")) for line in stream if line.startswith("data: ")]


@pytest.fixture
def queued(limited: httpx.Client) -> Iterator[dict[str, Any]]:
    """A job that waits for a worker that never comes; deleted after the test."""
    job = train(limited, "waiting").raise_for_status().json()
    yield job
    with suppress(httpx.HTTPStatusError):
        limited.post(f"/api/v1/jobs/{job['id']}/cancel").raise_for_status()
    limited.delete(f"/api/v1/jobs/{job['id']}")


def test_a_submitted_job_is_described_in_full(limited: httpx.Client) -> None:
    answer = train(limited, "described", tags={"team": "a"})

    job = answer.json()
    assert 202 == answer.status_code
    assert f"/api/v1/jobs/{job['id']}" == answer.headers["location"]
    assert FIELDS == set(job)
    assert ("train", "described", "queued", False, 1, 0) == tuple(
        job[name] for name in ("kind", "model", "status", "terminal", "queue_position", "attempt")
    )
    assert {"epoch", "epochs", "step", "steps", "fraction", "eta_seconds"} == set(job["progress"])
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} == set(job["metrics"])
    assert '"auto"' not in json.dumps({name: job["spec"][name] for name in ("network", "optimizer", "fit")})
    assert ("y", {"team": "a"}) == (job["spec"]["target"], job["spec"]["tags"])
    assert job == limited.get(answer.headers["location"]).json()
    assert 202 == limited.post(f"{answer.headers['location']}/cancel").status_code
    assert 204 == limited.delete(answer.headers["location"]).status_code


def test_a_job_that_has_ended_shows_its_figures(http: httpx.Client, penguins: Job) -> None:
    job = http.get(f"/api/v1/jobs/{penguins.id}").json()

    assert FIELDS == set(job)
    assert ("succeeded", True, None, 1, "cpu", "graph") == tuple(
        job[name] for name in ("status", "terminal", "queue_position", "attempt", "device", "loop")
    )
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert all(0 <= job["metrics"][name] for name in ("loss", "accuracy", "val_loss", "val_accuracy"))
    assert job["error"] is None


def test_the_same_key_and_body_give_one_job_and_another_body_a_conflict(limited: httpx.Client) -> None:
    first, again = train(limited, "once", "k1"), train(limited, "once", "k1")
    before = listed(limited)

    others = [train(limited, "once", "k1", tags={"x": "y"}), train(limited, "twice", "k1")]

    assert (202, 202) == (first.status_code, again.status_code)
    assert first.json() == again.json()
    for other in others:
        check_problem(other, 409, "conflict")
    assert before == listed(limited)
    limited.post(f"/api/v1/jobs/{first.json()['id']}/cancel").raise_for_status()
    # the key still belongs to that job, although the job has ended
    assert "cancelled" == train(limited, "once", "k1").json()["status"]
    limited.delete(f"/api/v1/jobs/{first.json()['id']}").raise_for_status()


def test_twenty_posts_of_one_key_at_once_make_one_job(limited: httpx.Client) -> None:
    before = listed(limited)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: train(limited, "crowd", "k20"), range(20)))

    assert {202} == {answer.status_code for answer in answers}
    assert 1 == len({answer.json()["id"] for answer in answers})
    assert len(before["jobs"]) + 1 == len(listed(limited)["jobs"])
    path = f"/api/v1/jobs/{answers[0].json()['id']}"
    limited.post(f"{path}/cancel").raise_for_status()
    limited.delete(path).raise_for_status()


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_key_of_a_wrong_length_is_422(limited: httpx.Client, key: str) -> None:
    before = listed(limited)

    check_problem(train(limited, "m", key), 422, "invalid")

    assert before == listed(limited)


def test_a_full_queue_is_429_and_nothing_is_stored(limited: httpx.Client, queued: dict[str, Any]) -> None:
    second = train(limited, "waiting").raise_for_status().json()
    before = listed(limited)
    other = {"columns": {"other": [1, 2, 3, 4], "y": ["p", "q"] * 2}}

    answers = [train(limited, "third", "k3"), limited.post("/api/v1/models/third/train", json={"data": other})]

    for answer in answers:
        assert "2 waiting jobs" in check_problem(answer, 429, "overloaded")["detail"]
    assert before == listed(limited)
    assert (1, 2) == tuple(
        limited.get(f"/api/v1/jobs/{job['id']}").json()["queue_position"] for job in (queued, second)
    )
    limited.post(f"/api/v1/jobs/{second['id']}/cancel").raise_for_status()
    # the key of a refused request can be used again
    third = train(limited, "third", "k3").raise_for_status().json()
    limited.post(f"/api/v1/jobs/{third['id']}/cancel").raise_for_status()
    for job in (second, third):
        limited.delete(f"/api/v1/jobs/{job['id']}").raise_for_status()


@pytest.mark.parametrize(
    ("data", "spec", "status", "words"),
    [
        ({"x": [[i] for i in range(8)], "y": [0, 1, 2, 3] * 2}, {}, 422, "at most 3 classes"),
        ({"x": [[i] for i in range(8)], "y": [0, 1] * 4}, {"network": {"layers": [{"units": 3000}]}}, 413, "2000 parameters"),
        ({"x": [[i] * 6 for i in range(8)], "y": [0, 1] * 4}, {}, 413, "6 columns"),
        ({"x": [[i] for i in range(8)], "y": [0, 1] * 4}, {"fit": {"max_seconds": 61}}, 422, "60 seconds"),
    ],
)  # fmt: skip
def test_what_is_over_a_limit_becomes_no_job(
    limited: httpx.Client, data: Any, spec: dict[str, Any], status: int, words: str
) -> None:
    before = listed(limited)

    answer = limited.post("/api/v1/models/m/train", json={"data": data, **spec})

    assert words in check_problem(answer, status)["detail"].replace("60.0", "60")
    assert before == listed(limited)


def test_lists_are_filtered_by_status_and_model(limited: httpx.Client, queued: dict[str, Any]) -> None:
    def ids(**params: str) -> list[str]:
        return [item["id"] for item in limited.get("/api/v1/jobs", params=params).raise_for_status().json()["items"]]

    assert [queued["id"]] == ids(status="queued") == ids(model="waiting") == ids(status="queued", model="waiting")
    assert [] == ids(status="running") == ids(model="nobody")
    check_problem(limited.get("/api/v1/jobs", params={"status": "asleep"}), 422, "invalid")


def test_a_long_poll_waits_and_ends_with_the_job(limited: httpx.Client, queued: dict[str, Any]) -> None:
    path = f"/api/v1/jobs/{queued['id']}"
    began = time.monotonic()
    assert "queued" == limited.get(path, params={"wait_seconds": "0.3"}).json()["status"]
    assert time.monotonic() - began >= 0.3

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(limited.get, path, params={"wait_seconds": "30"})
        time.sleep(0.2)
        limited.post(f"{path}/cancel").raise_for_status()
        answer = waiting.result(timeout=10)

    assert "cancelled" == answer.json()["status"]


@pytest.mark.parametrize("seconds", ["-1", "61", "nan", "inf", "1e999", "soon"])
def test_a_wait_out_of_range_is_422(limited: httpx.Client, queued: dict[str, Any], seconds: str) -> None:
    check_problem(limited.get(f"/api/v1/jobs/{queued['id']}", params={"wait_seconds": seconds}), 422, "invalid")


def test_the_page_and_the_stream_have_the_same_events_in_order(http: httpx.Client, penguins: Job) -> None:
    path = f"/api/v1/jobs/{penguins.id}/events"
    page = http.get(path, params={"limit": 500}).raise_for_status().json()

    stream = lines(http, penguins.id)

    assert page["next"] is None
    assert page["items"] == events_of(stream)
    assert list(range(1, len(page["items"]) + 1)) == [event["id"] for event in page["items"]]
    assert [f"id: {event['id']}" for event in page["items"]] == [line for line in stream if line.startswith("id: ")]
    epochs = [event for event in page["items"] if event["type"] == "epoch"]
    assert list(range(1, 16)) == [event["epoch"] for event in epochs]
    figures = {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "elapsed_seconds", "rows_per_second"}
    assert all({"id", "at", "type", "epoch", "epochs", *figures} <= set(event) for event in epochs)
    statuses = [event["status"] for event in page["items"] if event["type"] == "status"]
    assert ["queued", "running", "succeeded"] == statuses
    assert ("status", "succeeded") == (page["items"][-1]["type"], page["items"][-1]["status"])


def test_a_stream_replays_from_its_last_id_and_a_page_from_its_cursor(http: httpx.Client, penguins: Job) -> None:
    path = f"/api/v1/jobs/{penguins.id}/events"
    all_of_them = http.get(path, params={"limit": 500}).json()["items"]

    assert all_of_them[5:] == events_of(lines(http, penguins.id, Last_Event_ID="5"))
    assert [] == events_of(lines(http, penguins.id, Last_Event_ID=str(len(all_of_them))))
    by_pages: list[dict[str, Any]] = []
    after = "0"
    while after is not None:
        page = http.get(path, params={"limit": "7", "after": after}).json()
        assert len(page["items"]) <= 7
        by_pages, after = [*by_pages, *page["items"]], page["next"]
    assert all_of_them == by_pages


@pytest.mark.parametrize("last", ["-1", "x", "1.5", "9" * 30])
def test_a_last_event_id_that_is_no_id_is_422(http: httpx.Client, penguins: Job, last: str) -> None:
    answer = http.get(f"/api/v1/jobs/{penguins.id}/events", headers={**SSE, "Last-Event-ID": last})

    check_problem(answer, 422, "invalid")


def test_events_come_in_no_other_form(http: httpx.Client, penguins: Job) -> None:
    answer = http.get(f"/api/v1/jobs/{penguins.id}/events", headers={"Accept": "text/html"})

    check_problem(answer, 406, "not_acceptable")


def test_a_stream_follows_a_job_and_closes_after_its_end(limited: httpx.Client, queued: dict[str, Any]) -> None:
    path = f"/api/v1/jobs/{queued['id']}"
    with limited.stream("GET", f"{path}/events", headers=SSE, timeout=20) as answer:
        lines_of_stream = answer.iter_lines()
        assert "queued" in next(line for line in lines_of_stream if line.startswith("data: "))

        limited.post(f"{path}/cancel").raise_for_status()

        assert ["cancelled"] == [event["status"] for event in events_of(list(lines_of_stream))]


def test_streams_beyond_the_limit_are_429_and_free_again(limited: httpx.Client, queued: dict[str, Any]) -> None:
    path = f"/api/v1/jobs/{queued['id']}/events"

    def start(_: int) -> httpx.Response:
        return limited.send(limited.build_request("GET", path, headers=SSE), stream=True)

    with ThreadPoolExecutor(10) as pool, ExitStack() as stack:
        answers = list(pool.map(start, range(10)))
        for answer in answers:
            stack.callback(answer.close)
        statuses = sorted(answer.status_code for answer in answers)
        refused = next(answer for answer in answers if answer.status_code == 429)
        refused.read()
        check_problem(refused, 429, "overloaded")
        # a page needs no place for streams
        assert limited.get(path).is_success
    assert [200] * 2 + [429] * 8 == statuses

    deadline = time.monotonic() + 20
    while (again := start(0)).status_code == 429 and time.monotonic() < deadline:
        again.close()
        time.sleep(0.1)
    assert 200 == again.status_code
    again.close()


def test_cancel_resume_and_delete_are_refused_in_the_wrong_state(limited: httpx.Client, queued: dict[str, Any]) -> None:
    path = f"/api/v1/jobs/{queued['id']}"

    check_problem(limited.post(f"{path}/resume"), 409, "conflict")
    check_problem(limited.delete(path), 409, "conflict")
    cancelled = limited.post(f"{path}/cancel")
    assert (202, "cancelled", True) == (cancelled.status_code, cancelled.json()["status"], cancelled.json()["terminal"])
    check_problem(limited.post(f"{path}/cancel"), 409, "conflict")
    resumed = limited.post(f"{path}/resume")
    assert (202, "queued", None) == (resumed.status_code, resumed.json()["status"], resumed.json()["finished_at"])
    limited.post(f"{path}/cancel").raise_for_status()
    assert 204 == limited.delete(path).status_code
    for gone in (
        limited.get(path),
        limited.delete(path),
        limited.get(f"{path}/events"),
        limited.post(f"{path}/cancel"),
    ):
        check_problem(gone, 404, "not_found")


def test_a_succeeded_job_cannot_be_resumed(http: httpx.Client, penguins: Job) -> None:
    check_problem(http.post(f"/api/v1/jobs/{penguins.id}/resume"), 409, "conflict")
