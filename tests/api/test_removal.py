"""Deleting versions and models: an alias requires force, and the jobs stay. These tests run last."""

from __future__ import annotations

import httpx

from app.client import Client, Job
from tests.wire import check_problem


def test_deletes_need_force_where_an_alias_points(http: httpx.Client, client: Client, labelled: Job) -> None:
    path = "/api/v1/models/labelled"
    row = {"x": [[1, 2]]}
    # the version is now in memory, from where the delete has to remove it too
    http.post("/api/v1/models/labelled@3/predict", json=row).raise_for_status()

    check_problem(http.delete(f"{path}/versions/2"), 409, "conflict")
    check_problem(http.delete(f"{path}/versions/2", params={"force": "maybe"}), 422, "invalid")
    assert 204 == http.delete(f"{path}/versions/3").status_code
    for gone in (http.delete(f"{path}/versions/3"), http.get(f"{path}/versions/3")):
        check_problem(gone, 404, "not_found")
    check_problem(http.post("/api/v1/models/labelled@3/predict", json=row), 404, "not_found")
    assert 204 == http.delete(f"{path}/versions/2", params={"force": "true"}).status_code
    left = http.get(path).json()
    assert (None, 3, {}, [1]) == (
        left["default_version"],
        left["latest_version"],
        left["aliases"],
        [version["version"] for version in left["versions"]],
    )
    check_problem(http.post("/api/v1/models/labelled/predict", json=row), 404, "not_found")


def test_a_deleted_model_is_gone_and_its_jobs_still_tell(http: httpx.Client, client: Client, labelled: Job) -> None:
    path = "/api/v1/models/labelled"

    assert 204 == http.delete(path).status_code

    for gone in (http.delete(path), http.get(path), http.post(f"{path}@1/predict", json={"x": [[1, 2]]})):
        check_problem(gone, 404, "not_found")
    assert "succeeded" == client.job(labelled).status
