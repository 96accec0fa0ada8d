"""Versions over HTTP: an alias's history and rollback, what predictions follow, and what may be deleted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from app.client import Client, Job
from tests.wire import check_problem

PATH = "/api/v1/models/versioned"
ROWS = {"x": [[0.25, 3], [5.5, 20]]}


@pytest.fixture
def at_three(http: httpx.Client, versioned: list[Job]) -> Iterator[None]:
    """Make version 3 the default again after the test."""
    yield
    http.put(f"{PATH}/aliases/default", json={"version": 3}).raise_for_status()


def history(http: httpx.Client, alias: str = "default") -> list[tuple[int | None, str]]:
    """Return the moves of an alias, newest first: version and reason."""
    page = http.get(f"{PATH}/aliases/{alias}/history", params={"limit": 500}).raise_for_status().json()
    return [(move["version"], move["reason"]) for move in page["items"]]


def predicted(http: httpx.Client, ref: str = "versioned") -> dict[str, Any]:
    prediction: dict[str, Any] = http.post(f"/api/v1/models/{ref}/predict", json=ROWS).raise_for_status().json()
    return prediction


def test_every_published_version_is_a_move_of_the_default(http: httpx.Client, versioned: list[Job]) -> None:
    page = http.get(f"{PATH}/aliases/default/history").raise_for_status().json()

    assert {"items", "next"} == set(page)
    assert [(3, "promoted"), (2, "promoted"), (1, "promoted")] == history(http)[-3:]
    assert {"version", "reason", "at"} == set(page["items"][0])
    assert page["items"] == sorted(page["items"], key=lambda move: move["at"], reverse=True)


def test_a_history_comes_in_pages(http: httpx.Client, versioned: list[Job]) -> None:
    whole = http.get(f"{PATH}/aliases/default/history").json()["items"]
    parts, after = [], None
    for _ in whole:
        page = http.get(f"{PATH}/aliases/default/history", params={"limit": 1} | ({"after": after} if after else {}))
        parts += page.raise_for_status().json()["items"]
        after = page.json()["next"]

    assert (whole, None) == (parts, after)
    for wrong in ({"limit": 0}, {"after": "x"}, {"after": 0}, {"after": 2**60}):
        check_problem(http.get(f"{PATH}/aliases/default/history", params=wrong), 422, "invalid")


def test_predictions_follow_a_rollback_at_once(http: httpx.Client, at_three: None) -> None:
    seen = [predicted(http)["version"]]
    for _ in range(2):
        model = http.post(f"{PATH}/aliases/default/rollback").raise_for_status().json()
        seen.append(predicted(http)["version"])
        assert seen[-1] == model["default_version"] == model["aliases"]["default"]
    check_problem(http.post(f"{PATH}/aliases/default/rollback"), 409, "conflict")

    assert [3, 2, 1] == seen
    assert 1 == predicted(http)["version"]
    assert [(1, "rollback"), (2, "rollback")] == history(http)[:2]


def test_an_alias_that_was_moved_is_rolled_back_to_where_it_was(http: httpx.Client, at_three: None) -> None:
    path = f"{PATH}/aliases/champion"
    for version in (2, 1):
        http.put(path, json={"version": version}).raise_for_status()

    assert 1 == predicted(http, "versioned@champion")["version"]
    http.post(f"{path}/rollback").raise_for_status()
    assert 2 == predicted(http, "versioned@champion")["version"]
    http.delete(path).raise_for_status()

    assert [(None, "deleted"), (2, "rollback"), (1, "set"), (2, "set")] == history(http, "champion")
    check_problem(http.post(f"{path}/rollback"), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "versioned/aliases/nobody/history", 404),
        ("GET", "nobody/aliases/default/history", 404),
        ("GET", "versioned/aliases/1st/history", 422),
        ("POST", "versioned/aliases/nobody/rollback", 404),
        ("POST", "nobody/aliases/default/rollback", 404),
        ("POST", "versioned/aliases/1st/rollback", 422),
    ],
)
def test_an_alias_that_never_was_has_no_history(
    http: httpx.Client, versioned: list[Job], method: str, path: str, status: int
) -> None:
    check_problem(http.request(method, f"/api/v1/models/{path}"), status)


def test_every_answer_while_an_alias_moves_is_that_of_one_version(
    http: httpx.Client, client: Client, at_three: None
) -> None:
    own = {n: predicted(http, f"versioned@{n}")["probabilities"] for n in (1, 2, 3)}
    moving = threading.Event()

    def ask(_: int) -> list[tuple[int, Any]]:
        answers = []
        while not moving.is_set():
            prediction = predicted(http)
            answers.append((prediction["version"], prediction["probabilities"]))
        return answers

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, i) for i in range(3)]
        try:
            for n in (1, 2, 3) * 4:
                client.alias("versioned", "default", n)
        finally:
            moving.set()
        answers = [answer for future in asking for answer in future.result()]

    assert 3 == len({str(probabilities) for probabilities in own.values()})
    assert answers
    assert all(own[version] == probabilities for version, probabilities in answers)


# the tests from here on delete versions
def test_a_version_that_an_alias_points_at_stays_unless_forced(http: httpx.Client, at_three: None) -> None:
    http.put(f"{PATH}/aliases/champion", json={"version": 2}).raise_for_status()

    for n, alias in ((2, "champion"), (3, "default")):
        for params in ({}, {"force": "false"}):
            refused = check_problem(http.delete(f"{PATH}/versions/{n}", params=params), 409, "conflict")
            assert alias in refused["detail"]
    assert 204 == http.delete(f"{PATH}/versions/2", params={"force": "true"}).status_code

    assert {"default": 3} == http.get(PATH).json()["aliases"]
    assert [(None, "deleted"), (2, "set")] == history(http, "champion")[:2]
    for ref in ("versioned@champion", "versioned@2"):
        check_problem(http.post(f"/api/v1/models/{ref}/predict", json=ROWS), 404, "not_found")
    # version 2 is deleted, so a rollback goes to version 1
    rolled = http.post(f"{PATH}/aliases/default/rollback").raise_for_status().json()
    assert 1 == rolled["default_version"]


def test_requests_in_flight_end_and_later_ones_find_nothing(http: httpx.Client, at_three: None) -> None:
    expected = predicted(http, "versioned@1")["probabilities"]
    started = threading.Barrier(4)

    def ask(_: int) -> list[httpx.Response]:
        answers = [http.post("/api/v1/models/versioned@1/predict", json=ROWS)]
        started.wait(30)
        while answers[-1].status_code == 200:
            answers.append(http.post("/api/v1/models/versioned@1/predict", json=ROWS))
        return answers

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, i) for i in range(3)]
        started.wait(30)
        gone = http.delete(f"{PATH}/versions/1", params={"force": "true"})
        answers = [future.result(60) for future in asking]

    assert 204 == gone.status_code
    for mine in answers:
        assert all(expected == answer.json()["probabilities"] for answer in mine[:-1])
        check_problem(mine[-1], 404, "not_found")
