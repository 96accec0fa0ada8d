"""Too many requests at once: each kind of work has its own lane, and a refusal says when to come back."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from app.client import Job
from tests.conftest import Start
from tests.processes import until
from tests.service import Service
from tests.wire import check_problem, connect, head, read_answer

TABLE = b"a,y\n1,p\n2,q\n3,p\n4,q\n"
UPLOAD, CSV, JSON = "/api/v1/datasets", "Content-Type: text/csv", "Content-Type: application/json"
LENGTH = f"Content-Length: {len(TABLE)}"
EVALUATE, TRAIN, PREDICT = (f"/api/v1/models/none/{verb}" for verb in ("evaluate", "train", "predict"))


@pytest.fixture
def narrow(start: Start) -> Service:
    """A service with one upload at work and one that waits."""
    return start(workers="0", max_uploads="1", max_evaluations="1", max_submissions="1", max_waiting="1")


def lanes(service: Service, what: str) -> dict[str, float]:
    """Return a metric of each lane that is not 0."""
    page = httpx.get(f"{service.url}/metrics").text
    found = re.findall(rf'^fitserve_requests_{what}\{{.*?lane="(\w+)".*\}} (\S+)$', page, re.MULTILINE)
    return {lane: float(value) for lane, value in found if float(value)}


def test_a_full_lane_answers_503_at_once_and_the_others_go_on(narrow: Service) -> None:
    with ExitStack() as opened:
        uploads = [opened.enter_context(connect(narrow.url)) for _ in range(2)]
        for each in uploads:
            each.sendall(head(narrow.url, "POST", UPLOAD, CSV, LENGTH) + TABLE[:5])
        until(lambda: lanes(narrow, "waiting") == {"uploads": 1})

        refused = httpx.post(narrow.url + UPLOAD, content=TABLE, headers={"Content-Type": "text/csv"})

        problem = check_problem(refused, 503, "overloaded")
        assert "at most 2 uploads at once" in problem["detail"]
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert {"uploads": 1} == lanes(narrow, "at_work")
        # the other lanes answer 422 or 404, and not 503
        spec = {"data": {"columns": {"a": [1], "y": ["p"]}}}
        check_problem(httpx.post(narrow.url + TRAIN, json=spec), 422)
        for path in (EVALUATE, PREDICT):
            check_problem(httpx.post(narrow.url + path, json={"x": [[1]]}), 404)
        for each in uploads:
            each.sendall(TABLE[5:])
        assert [201, 200] == [read_answer(each).status_code for each in uploads]
    assert {"uploads": 1} == lanes(narrow, "refused_total")
    assert {} == lanes(narrow, "at_work")


def test_training_requests_have_a_lane_of_their_own(narrow: Service) -> None:
    with ExitStack() as opened:
        for _ in range(2):
            waiting = opened.enter_context(connect(narrow.url))
            waiting.sendall(head(narrow.url, "POST", TRAIN, JSON, LENGTH) + b"{")
        until(lambda: lanes(narrow, "waiting") == {"submissions": 1})

        check_problem(httpx.post(narrow.url + TRAIN, json={}), 503, "overloaded")


def test_predictions_go_on_while_evaluations_fill_their_lane(service: Service, penguins: Job) -> None:
    path = f"/api/v1/models/{penguins.ref}/evaluate"
    with ExitStack() as opened:
        # by default two evaluations work and 64 wait
        for _ in range(66):
            waiting = opened.enter_context(connect(service.url))
            waiting.sendall(head(service.url, "POST", path, JSON, LENGTH) + b"{")
        until(lambda: lanes(service, "waiting") == {"evaluations": 64})

        check_problem(httpx.post(service.url + path, json={}), 503, "overloaded")
        answer = httpx.post(f"{service.url}/api/v1/models/{penguins.ref}/predict", json={"records": [{}]})

    assert 200 == answer.status_code
    until(lambda: {} == lanes(service, "at_work"))


def test_a_request_that_takes_too_long_is_given_up(start: Start) -> None:
    service = start(workers="0", request_seconds="0.5")
    with connect(service.url) as slow:
        slow.sendall(head(service.url, "POST", UPLOAD, CSV, LENGTH) + TABLE[:5])

        problem = check_problem(read_answer(slow), 503, "overloaded")

    assert "at most 0.5 seconds" in problem["detail"]
    assert {"uploads": 1} == lanes(service, "refused_total")
    assert httpx.post(service.url + UPLOAD, content=TABLE, headers={"Content-Type": "text/csv"}).status_code == 201


def test_a_slow_client_of_predictions_takes_no_place(start: Start) -> None:
    service = start(workers="0", max_predictions="1", max_waiting_predictions="1")
    with ExitStack() as opened:
        for _ in range(5):
            slow = opened.enter_context(connect(service.url))
            slow.sendall(head(service.url, "POST", PREDICT, JSON, LENGTH) + b"{")

        check_problem(httpx.post(service.url + PREDICT, json={"x": [[1]]}), 404)


@pytest.fixture
def many(service: Service) -> Iterator[list[socket.socket]]:
    """As many connections as one process may have."""
    with ExitStack() as opened:
        yield [opened.enter_context(connect(service.url)) for _ in range(1000)]


def test_one_connection_too_many_is_answered_with_a_problem(many: list[socket.socket], service: Service) -> None:
    with connect(service.url) as one_more:
        one_more.sendall(head(service.url, "GET", "/livez"))

        check_problem(read_answer(one_more), 503, "overloaded")

    for each in many:
        each.close()
    until(lambda: httpx.get(f"{service.url}/livez").status_code == 200)
