"""Routes of models: versions in full, aliases that move, exports, and deletes that need force."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import httpx
import pytest

from app.client import Job
from tests.wire import JSON, check_problem

MODEL_FIELDS = {"name", "default_version", "latest_version", "versions", "aliases", "created_at"}
VERSION_FIELDS = {
    *("model", "version", "job", "dataset", "status", "weights_sha256", "inputs", "classes", "spec", "metrics"),
    *("history", "parameters", "size_bytes", "sha256", "environment", "tags", "created_at"),
}
DATA = {"columns": {"a": [0, 1] * 5, "b": ["u", "v"] * 5, "y": ["p", "q"] * 5}}


def test_a_model_lists_its_versions_newest_first(http: httpx.Client, labelled: Job) -> None:
    model = http.get("/api/v1/models/labelled").json()

    assert MODEL_FIELDS == set(model)
    assert ("labelled", 2, 3, {"default": 2}) == tuple(
        model[name] for name in ("name", "default_version", "latest_version", "aliases")
    )
    assert [3, 2, 1] == [version["version"] for version in model["versions"]]
    assert {"version", "job", "metrics", "parameters", "created_at"} == set(model["versions"][0])
    assert labelled.id == model["versions"][0]["job"]
    assert model in http.get("/api/v1/models", params={"limit": 500}).json()["items"]


def test_a_version_is_described_in_full_and_never_changes(http: httpx.Client, labelled: Job) -> None:
    path = "/api/v1/models/labelled/versions/3"
    version = http.get(path).json()

    assert VERSION_FIELDS == set(version)
    assert ("labelled", 3, labelled.id, "ready") == tuple(version[n] for n in ("model", "version", "job", "status"))
    assert {"id", "sha256", "rows"} == set(version["dataset"])
    assert [("x0", "numeric"), ("x1", "numeric")] == [(column["name"], column["kind"]) for column in version["inputs"]]
    assert ([3, 7], {"labels": "3"}, 20) == (version["classes"], version["tags"], len(version["history"]))
    assert {"train", "validation"} == set(version["metrics"])
    assert version["parameters"] > 0
    http.post("/api/v1/models/labelled@3/predict", json={"x": [[1, 2]]}).raise_for_status()
    assert version == http.get(path).json()


@pytest.mark.parametrize("n", ["0", "-1", "1.5", "x", "4294967296", "1e1"])
def test_a_number_that_is_no_version_is_422(http: httpx.Client, labelled: Job, n: str) -> None:
    check_problem(http.get(f"/api/v1/models/labelled/versions/{n}"), 422, "invalid")


@pytest.mark.parametrize(
    "path", ["nobody", "nobody/versions/1", "labelled/versions/9", "labelled/versions/9/export?format=keras"]
)
def test_an_unknown_model_or_version_is_404(http: httpx.Client, labelled: Job, path: str) -> None:
    check_problem(http.get(f"/api/v1/models/{path}"), 404, "not_found")


def test_an_alias_points_moves_and_is_deleted(http: httpx.Client, labelled: Job) -> None:
    path = "/api/v1/models/labelled/aliases/champion"

    def answered() -> int:
        answer = http.post("/api/v1/models/labelled@champion/predict", json={"x": [[1, 2]]})
        return int(answer.raise_for_status().json()["version"])

    pointed = http.put(path, json={"version": 1}).raise_for_status().json()
    assert {"champion": 1, "default": 2} == pointed["aliases"]
    assert 1 == answered()
    http.put(path, json={"version": 3}).raise_for_status()
    assert 3 == answered()
    assert (204, b"") == ((gone := http.delete(path)).status_code, gone.content)
    check_problem(http.delete(path), 404, "not_found")
    check_problem(http.post("/api/v1/models/labelled@champion/predict", json={"records": [{}]}), 404, "not_found")


def test_the_default_alias_is_what_the_name_means(http: httpx.Client, labelled: Job) -> None:
    path = "/api/v1/models/labelled/aliases/default"

    moved = http.put(path, json={"version": 1}).raise_for_status().json()

    assert 1 == moved["default_version"]
    assert 1 == http.post("/api/v1/models/labelled/predict", json={"x": [[1, 2]]}).json()["version"]
    http.put(path, json={"version": 2}).raise_for_status()


@pytest.mark.parametrize(
    ("alias", "body", "status"),
    [
        ("champion", {"version": 9}, 404),
        ("champion", {"version": 0}, 422),
        ("champion", {"version": "1"}, 422),
        ("champion", {"version": True}, 422),
        ("champion", {"version": 1.0}, 422),
        ("champion", {"version": 2**40}, 422),
        ("champion", '{"version": ' + "9" * 400 + "}", 422),
        ("champion", '{"version": NaN}', 422),
        ("champion", '{"version": 1e999}', 422),
        ("champion", {}, 422),
        ("champion", {"version": 1, "note": "x"}, 422),
        ("champion", [1], 422),
        ("champion", "null", 422),
        ("champion", "{", 400),
        ("champion", "[" * 100_000, 400),
        ("1st", {"version": 1}, 422),
        ("a" * 65, {"version": 1}, 422),
    ],
)
def test_an_alias_that_cannot_be_set_changes_nothing(
    http: httpx.Client, labelled: Job, alias: str, body: Any, status: int
) -> None:
    before = http.get("/api/v1/models/labelled").json()
    content = body if isinstance(body, str) else json.dumps(body)

    answer = http.put(f"/api/v1/models/labelled/aliases/{alias}", content=content, headers=JSON)

    check_problem(answer, status)
    assert before == http.get("/api/v1/models/labelled").json()


def test_an_alias_needs_a_json_body(http: httpx.Client, labelled: Job) -> None:
    path = "/api/v1/models/labelled/aliases/champion"

    check_problem(http.put(path, content=b'{"version": 1}'), 415, "unsupported_media_type")
    check_problem(http.put("/api/v1/models/nobody/aliases/a", json={"version": 1}), 404, "not_found")


def test_an_export_is_a_zip_with_a_card(http: httpx.Client, labelled: Job) -> None:
    answer = http.get("/api/v1/models/labelled/versions/1/export", params={"format": "weights"})

    assert (200, "application/zip") == (answer.status_code, answer.headers["content-type"])
    assert 'attachment; filename="labelled-1-weights.zip"' == answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {"weights.safetensors", "architecture.json", "encoder.json", "card.json"} == set(archive.namelist())
        card = json.loads(archive.read("card.json"))
    assert ("labelled", 1, "weights", ["3", "7"]) == tuple(
        card[name] for name in ("model", "version", "format", "classes")
    )


@pytest.mark.parametrize("params", [{}, {"format": ""}, {"format": "pickle"}])
def test_an_export_in_no_known_format_is_422(http: httpx.Client, labelled: Job, params: dict[str, str]) -> None:
    answer = http.get("/api/v1/models/labelled/versions/1/export", params=params)

    assert ["query", "format"] == check_problem(answer, 422, "invalid")["errors"][0]["loc"]


def test_a_model_that_a_job_trains_stays(limited: httpx.Client) -> None:
    # a model exists from its first version on; here there is only a job
    job = limited.post("/api/v1/models/busy/train", json={"data": DATA}).raise_for_status().json()

    check_problem(limited.delete("/api/v1/models/busy"), 404, "not_found")

    limited.post(f"/api/v1/jobs/{job['id']}/cancel").raise_for_status()
    limited.delete(f"/api/v1/jobs/{job['id']}").raise_for_status()
