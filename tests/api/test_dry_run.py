"""A dry run describes a training job, and stores nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.client import Client
from tests.service import Service
from tests.shared_services import listed
from tests.wire import JSON, check_problem

PATH = "/api/v1/models/dry/train"
FIELDS = {
    *("spec", "rows", "columns", "target", "features", "classes", "warnings", "encoded_features", "parameters"),
    "estimate",
}
DATA = {"columns": {"a": [i / 2 for i in range(12)], "b": ["u", "v", None] * 4, "y": [0, 1] * 6}}
N = 60
LABELS = [["cat", "dog"][i % 2] if i % 20 else "newt" for i in range(N)]
SUSPECT: dict[str, list[Any]] = {
    "serial": [1000 + 7 * i for i in range(N)],
    "constant": ["same"] * N,
    "leak": [{"cat": "meows", "dog": "barks", "newt": "blubs"}[label] for label in LABELS],
    "copy": list(LABELS),
    "number_leak": [{"cat": 1.5, "dog": 2.5, "newt": 3.5}[label] for label in LABELS],
    "empty": [None] * N,
    "comment": [f"text number {i} is like no other" for i in range(N)],
    "day": [f"2024-01-{1 + i % 28:02d}" for i in range(N)],
    "honest": [(i * 13) % 7 for i in range(N)],
    "label": [*LABELS[:-1], None],
}


def dry(http: httpx.Client, data: Any = None, **spec: Any) -> dict[str, Any]:
    """Do a dry run; return the description of the job."""
    body = spec if data is None else {"data": data, **spec}
    description: dict[str, Any] = http.post(PATH, params={"dry_run": "true"}, json=body).raise_for_status().json()
    return description


def test_it_describes_the_settled_job_and_the_table(http: httpx.Client, nothing_stored: None) -> None:
    description = dry(http, DATA, fit={"epochs": 3, "batch_size": 4}, network={"layers": [{"units": 5}]})

    assert FIELDS == set(description)
    assert (12, "y", ["a", "b"]) == (description["rows"], description["target"], description["features"])
    assert [{"class": 0, "rows": 6}, {"class": 1, "rows": 6}] == description["classes"]
    assert ["numeric", "categorical", "numeric"] == [column["kind"] for column in description["columns"]]
    # encoded features: a; and u, v and the mark for missing values of b
    assert (4, (4 + 1) * 5 + (5 + 1) * 2) == (description["encoded_features"], description["parameters"])
    # the worker chooses the device, and there is an encoding named auto
    spec = {**description["spec"], "device": None, "features": {**description["spec"]["features"], "encoding": None}}
    assert '"auto"' not in json.dumps(spec)
    # 12 rows, a fifth of each class held out
    assert {"seconds", "memory_bytes", "steps"} == set(description["estimate"])
    assert 3 * math.ceil(10 / 4) == description["estimate"]["steps"]


def stored(service: Service) -> set[str]:
    """Return all files of the store; the database's files are left out, because each transaction changes them."""
    files = (path for path in service.data_dir.rglob("*") if path.is_file())
    return {str(path.relative_to(service.data_dir)) for path in files if not path.name.startswith("fitserve.db")}


def test_nothing_is_stored(http: httpx.Client, service: Service, nothing_stored: None) -> None:
    files, queue = stored(service), http.get("/api/v1/system").json()["queue"]

    dry(http, {"columns": {"a": [9, 8, 7, 6], "y": ["only", "here"] * 2}})

    assert files == stored(service)
    assert queue == http.get("/api/v1/system").json()["queue"]
    check_problem(http.get("/api/v1/models/dry"), 404, "not_found")


@pytest.fixture
def emptied(limited: httpx.Client) -> Iterator[httpx.Client]:
    """A service without a worker; the jobs and data sets that a test adds are deleted after the test."""
    before = listed(limited)
    yield limited
    now = listed(limited)
    for job in set(now["jobs"]) - set(before["jobs"]):
        limited.post(f"/api/v1/jobs/{job}/cancel")
        limited.delete(f"/api/v1/jobs/{job}").raise_for_status()
    for dataset in set(now["datasets"]) - set(before["datasets"]):
        limited.delete(f"/api/v1/datasets/{dataset}").raise_for_status()


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"target": "b", "features": {"exclude": ["a"], "scaling": None, "encoding": "plain"}},
        {"validation": None, "fit": {"early_stopping": None, "epochs": 7}, "optimizer": {"learning_rate": 0.1}},
        {"network": {"layers": None}, "optimize": "macro_f1", "promote": "never", "tags": {"who": "dry"}},
    ],
)
def test_its_specification_is_that_of_the_job_that_is_then_submitted(
    emptied: httpx.Client, spec: dict[str, Any]
) -> None:
    description = dry(emptied, DATA, **spec)

    job = emptied.post(PATH, json={"data": DATA, **spec}).raise_for_status().json()

    assert description["features"] == job["spec"].pop("columns")
    assert job["dataset"] == job["spec"].pop("dataset")
    assert description["estimate"] == job["spec"].pop("estimate")
    assert "device" in job["spec"].pop("auto")
    assert description["spec"] == job["spec"]
    # the job's own warnings are among those of the dry run
    events = emptied.get(f"/api/v1/jobs/{job['id']}/events").json()["items"]
    assert {event["message"] for event in events if event["type"] == "warning"} <= set(description["warnings"])


def test_a_data_set_and_its_data_are_described_alike(emptied: httpx.Client) -> None:
    dataset = emptied.post("/api/v1/datasets", json=DATA).raise_for_status().json()

    assert dry(emptied, DATA) == dry(emptied, dataset=dataset["id"])


def test_it_takes_no_idempotency_key_and_no_place_in_the_queue(emptied: httpx.Client) -> None:
    key = {"Idempotency-Key": "dry-1"}
    for _ in range(3):
        emptied.post(PATH, params={"dry_run": "true"}, json={"data": DATA}, headers=key).raise_for_status()

    first = emptied.post(PATH, json={"data": DATA, "tags": {"n": "1"}}, headers=key)
    emptied.post(PATH, json={"data": DATA}).raise_for_status()

    # the queue is full with two jobs, and the key belongs to the first
    assert 202 == first.status_code
    check_problem(emptied.post(PATH, json={"data": DATA}), 429, "overloaded")
    assert 12 == dry(emptied, DATA)["rows"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"dataset": "ds_0"}, 404),
        ({"dataset": 3}, 422),
        ({"dataset": "ds_0", "data": DATA}, 422),
        ({"data": DATA, "what": 1}, 422),
        ({"data": DATA, "target": "z"}, 422),
        ({"data": DATA, "target": "a"}, 422),
        ({"data": {"columns": {"a": [1, 2], "y": [1, 1]}}}, 422),
        ({"data": {"columns": {"y": [1, 2]}}}, 422),
        ({"data": {"columns": {"a": [1], "y": [1, 2]}}}, 422),
        ({"data": {"columns": {str(i): [1, 2] for i in range(7)}}}, 413),
        ({"data": DATA, "features": {"include": ["z"]}}, 422),
        ({"data": DATA, "fit": {"epochs": 0}}, 422),
        ({"data": DATA, "fit": {"max_seconds": 61}}, 422),
        ({"data": DATA, "network": {"layers": [{"units": 2000}]}}, 413),
        ({"data": DATA, "validation": {"dataset": "ds_0"}}, 404),
        ({"data": DATA, "start_from": "nobody@1"}, 404),
        ({"data": DATA, "start_from": "a model"}, 422),
        ("{", 400),
        ("[]", 422),
    ],
)
def test_data_that_cannot_train_is_refused_as_training_refuses_it(
    emptied: httpx.Client, body: Any, status: int
) -> None:
    content = body if isinstance(body, str) else json.dumps(body)

    description, refused = (
        check_problem(emptied.post(PATH, params=params, content=content, headers=JSON), status)
        for params in ({"dry_run": "true"}, {})
    )

    for problem in (description, refused):
        problem.pop("request_id")
    assert refused == description


def test_another_media_type_and_another_word_are_refused(http: httpx.Client, nothing_stored: None) -> None:
    check_problem(http.post(PATH, params={"dry_run": "true"}, content=b"{}"), 415, "unsupported_media_type")
    check_problem(http.post(PATH, params={"dry_run": "perhaps"}, json={"data": DATA}), 422, "invalid")


@pytest.fixture(scope="module")
def suspect(client: Client) -> dict[str, Any]:
    """The description of a job on a table with something odd in every column but one."""
    return client.dry_run("dry", data={"columns": SUSPECT}, target="label")


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("column 'serial': every value is different: it looks like an identifier", 1),
        ("column 'constant': constant", 1),
        ("column 'leak' alone tells the target", 1),
        ("column 'copy' alone tells the target", 1),
        ("column 'number_leak' alone tells the target", 1),
        ("column 'empty' has no values and is left out", 1),
        ("column 'comment' is text and is left out", 1),
        ("column 'day' is datetime and is left out", 1),
        ("class 'newt' has 3 rows", 1),
        ("1 rows without a value in target 'label' are left out", 1),
        ("'honest'", 0),
        ("class 'cat'", 0),
    ],
)
def test_odd_columns_and_classes_are_named(suspect: dict[str, Any], words: str, number: int) -> None:
    assert number == sum(words in warning for warning in suspect["warnings"])


def test_classes_are_counted_without_the_rows_that_have_none(suspect: dict[str, Any]) -> None:
    counts = {label: LABELS[:-1].count(label) for label in ("cat", "dog", "newt")}

    assert counts == {entry["class"]: entry["rows"] for entry in suspect["classes"]}
    assert ["serial", "constant", "leak", "copy", "number_leak", "honest"] == suspect["features"]


def test_the_estimate_is_finite_and_grows_with_the_work(http: httpx.Client, nothing_stored: None) -> None:
    specs: list[dict[str, Any]] = [{"fit": {"epochs": epochs}} for epochs in (1, 100, 10_000)]
    wide: dict[str, Any] = {"network": {"layers": [{"units": 4096}]}, "fit": {"epochs": 100}}
    *by_epochs, large = [dry(http, DATA, **spec)["estimate"] for spec in (*specs, wide)]

    for estimate in (*by_epochs, large):
        assert all(math.isfinite(value) and value > 0 for value in estimate.values())
    for name in ("seconds", "steps"):
        assert by_epochs[0][name] < by_epochs[1][name] < by_epochs[2][name]
    assert large["seconds"] > by_epochs[1]["seconds"]
    assert large["memory_bytes"] > by_epochs[1]["memory_bytes"]
    # the estimate is not above the longest time of the job
    capped = dry(http, DATA, fit={"epochs": 10_000, "max_seconds": 0.2})["estimate"]
    assert by_epochs[0]["seconds"] < capped["seconds"] < by_epochs[1]["seconds"]


def test_columns_that_are_left_out_raise_no_doubt(http: httpx.Client, nothing_stored: None) -> None:
    description = dry(http, {"columns": SUSPECT}, target="label", features={"include": ["honest"]})

    assert not [warning for warning in description["warnings"] if "alone tells" in warning or "identifier" in warning]
    assert ["honest"] == description["features"]
