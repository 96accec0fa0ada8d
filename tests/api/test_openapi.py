"""The document at /openapi.json: valid, complete, and true of the running service."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]
import pytest
from openapi_spec_validator import validate

from app.client import Client
from tests.wire import check_problem, is_of_other_protocol

MODEL = "documented"
Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = http.get("/openapi.json").raise_for_status().json()
    return document


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> list[Operation]:
    return [(method, path, operation) for path, item in document["paths"].items() for method, operation in item.items()]


def test_it_is_a_valid_document_of_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")

    validate(document)


def test_every_reference_leads_somewhere_and_every_schema_is_used(document: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))

    assert names == set(document["components"]["schemas"])


def test_every_operation_is_described(operations: list[Operation]) -> None:
    assert len(operations) >= 27
    for method, path, operation in operations:
        assert operation["summary"], (method, path)
        assert operation["description"], (method, path)
        assert operation["tags"], (method, path)
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (method, path, parameter["name"])
            if parameter["in"] == "path":
                assert parameter["schema"].get("examples") or parameter.get("examples") or "enum" in str(parameter)
    assert len({operation["operationId"] for _, _, operation in operations}) == len(operations)


def test_every_operation_has_its_errors_in_its_protocols_shape(operations: list[Operation]) -> None:
    for method, path, operation in operations:
        answers, wrong, shape = operation["responses"], "422", "application/problem+json"
        if is_of_other_protocol(path):
            wrong, shape = "400", "application/json"
        is_public = operation.get("security") == []
        assert {"403", "503"} <= set(answers), (method, path)
        assert is_public == ("401" not in answers), (method, path)
        assert (wrong in answers) or not operation.get("parameters"), (method, path)
        assert ("404" in answers) == ("{" in path), (method, path)
        assert {"400", "408", "413", "415"} <= set(answers) or "requestBody" not in operation, (method, path)
        for status, answer in answers.items():
            assert answer["description"], (method, path)
            if int(status) >= 400:
                assert [shape] == list(answer["content"])
        assert any(int(status) < 300 for status in answers)


def test_keys_are_asked_for_by_every_operation_but_the_public_ones(
    document: dict[str, Any], operations: list[Operation]
) -> None:
    assert {"HTTPBearer": {"type": "http", "scheme": "bearer", "description": "An API key."}} == document["components"][
        "securitySchemes"
    ]
    public = {path for _, path, operation in operations if operation.get("security") == []}
    assert {"/livez", "/readyz"} == public
    assert all(o["security"] == [{"HTTPBearer": []}] for _, path, o in operations if path not in public)


@pytest.fixture(scope="module")
def places(http: httpx.Client, client: Client, operations: list[Operation]) -> dict[str, str]:
    """Values for the places in paths, of things that the document's own examples make."""
    body = examples(operations, "post", "/api/v1/models/{name}/train")["automatic"]
    job = client.wait(client.train(MODEL, **body, fit={"epochs": 2}))
    client.alias(MODEL, "best", 1)
    key = http.post("/api/v1/keys", json={"scopes": ["predict"]}).raise_for_status().json()["id"]
    return {
        "key": key,
        "name": MODEL,
        "ref": MODEL,
        "n": "1",
        "alias": "best",
        "job": job.id,
        "ds": job.document["dataset"],
    }


def noun_of(path: str) -> str:
    """Return the beginning of the ids in a path."""
    return next((noun for part, noun in (("/datasets/", "ds"), ("/keys/", "key")) if part in path), "job")


def examples(operations: list[Operation], method: str, path: str, media_type: str = "application/json") -> Any:
    """Return the body examples of an operation by their names."""
    (operation,) = [documented for m, p, documented in operations if (m, p) == (method, path)]
    content = operation["requestBody"]["content"][media_type]
    return {name: example["value"] for name, example in content.get("examples", {}).items()}


def bodies(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the examples of an operation's body with their media types; None for an operation without a body."""
    if "requestBody" not in operation:
        yield "", None
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        for example in content.get("examples", {}).values():
            yield media_type, example["value"]
        name = content["schema"].get("$ref", "").rpartition("/")[2]
        for value in document["components"]["schemas"].get(name, {}).get("examples", ()):
            yield media_type, value


def check_answer(document: dict[str, Any], operation: dict[str, Any], answer: httpx.Response) -> None:
    """Assert that an answer is one that its operation documents."""
    described = operation["responses"].get(str(answer.status_code))
    assert described is not None, (answer.request.url, answer.status_code, answer.text[:300])
    if answer.status_code == 204:
        assert b"" == answer.content
        return
    media_type = answer.headers["content-type"].partition(";")[0]
    assert media_type in described["content"], (answer.request.url, media_type)
    if media_type.endswith("json"):
        schema = {**described["content"][media_type].get("schema", {}), "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())


def test_every_example_is_answered_as_documented(
    http: httpx.Client,
    client: Client,
    document: dict[str, Any],
    operations: list[Operation],
    places: dict[str, str],
) -> None:
    statuses: dict[str, set[int]] = {}
    # deletes come last, and the model after its parts
    for method, path, operation in sorted(
        operations, key=lambda operation: (operation[0] == "delete", -len(operation[1]))
    ):
        if method == "delete":
            # jobs of the examples may still need the thing that is deleted
            for job in [job for job in client.jobs(model=MODEL) if not job.is_terminal]:
                client.cancel(job)
        noun = noun_of(path)
        at = re.sub(r"\{(\w+)\}", lambda place, noun=noun: places[noun if place[1] == "id" else place[1]], path)  # type: ignore[misc]
        params = {"format": "weights"} if path.endswith("/export") else {}
        params |= {"force": "true"} if method == "delete" and path.endswith("{n}") else {}
        for media_type, value in bodies(document, operation):
            body = value if isinstance(value, str) else json.dumps(value)
            if noun == "job" and value == {"dataset": "ds_0193a5c2f1b07d2c9f1e3a5b7c9d"}:
                body = json.dumps({"dataset": places["ds"]})
            sent = {"content": body, "headers": {"Content-Type": media_type}} if media_type else {}
            answer = http.request(method, at, params=params, **sent)  # type: ignore[arg-type]
            check_answer(document, operation, answer)
            statuses.setdefault(f"{method} {path}", set()).add(answer.status_code)
    # a job that succeeded can be neither cancelled nor resumed, and a model of one version has no previous one
    refused = {name: codes for name, codes in statuses.items() if max(codes) >= 400}
    expected = ["jobs/{id}/cancel", "jobs/{id}/resume", "models/{name}/aliases/{alias}/rollback"]
    # every model is a classifier
    regress = [f"post /v1/models/{{name}}{place}:regress" for place in ("", "/versions/{n}", "/labels/{alias}")]
    assert {f"post /api/v1/{path}": {409} for path in expected} | {path: {400} for path in regress} == refused
    assert {202} == statuses["post /api/v1/models/{name}/train"]
    assert {200} == statuses["post /api/v1/models/{ref}/predict"] == statuses["post /api/v1/models/{ref}/evaluate"]


def test_every_error_is_answered_as_documented(
    http: httpx.Client, document: dict[str, Any], operations: list[Operation]
) -> None:
    for method, path, operation in operations:
        if "{" not in path:
            continue
        other = {"n": "7", "id": f"{noun_of(path)}_0"}
        at = re.sub(r"\{(\w+)\}", lambda place, other=other: other.get(place[1], "nobody"), path)  # type: ignore[misc]
        params = {"format": "weights"} if path.endswith("/export") else {}
        media_type, value = next(bodies(document, operation))
        if path.endswith("/train"):
            value = {"dataset": "ds_0"}
        sent = {"json": value} if media_type == "application/json" else {}
        answer = http.request(method, at, params=params, **sent)
        check_problem(answer, 404, "not_found")
        check_answer(document, operation, answer)


@pytest.mark.parametrize("name", ["DatasetOut", "JobOut", "ModelOut", "PredictionOut"])
def test_the_main_answers_have_an_example_that_fits(document: dict[str, Any], name: str) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}

    examples = document["components"]["schemas"][name]["examples"]

    assert examples
    for example in examples:
        jsonschema.Draft202012Validator(schema).validate(example)
        assert example.keys() <= document["components"]["schemas"][name]["properties"].keys()
