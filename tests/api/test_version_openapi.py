"""A version's own OpenAPI document: valid, true of the version, and with an example that works."""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin

import httpx
import jsonschema  # type: ignore[import-untyped]
import pytest
from openapi_spec_validator import validate

from app.client import Client, Job
from tests.wire import check_problem

#: names and values that have a meaning in URLs, JSON pointers, templates or YAML
ODD: dict[str, list[Any]] = {
    'price/€ "net"': [0.5, None, 2, 3, 4, 5.5, 6, 7, 8, 9, 10, 11],
    "a~b {c}": ['x"y', "#/components", "null?", None] * 3,
    "$id": [True, False, None] * 4,
    "was: it?": [7, 3] * 6,
}
Document = dict[str, Any]


@pytest.fixture(scope="module")
def odd(client: Client) -> Job:
    """The job of the model `odd.names_-1`, whose columns need quoting."""
    job = client.train("odd.names_-1", data={"columns": ODD}, validation=None, fit={"epochs": 1})
    return client.wait(job)


@pytest.fixture(params=["penguins", "versioned", "odd"])
def version(request: pytest.FixtureRequest, client: Client) -> Document:
    """A version's description."""
    jobs = request.getfixturevalue(request.param)
    return client.version(jobs[0].ref if isinstance(jobs, list) else jobs.ref)


@pytest.fixture
def place(version: Document) -> str:
    return f"/api/v1/models/{version['model']}/versions/{version['version']}/openapi.json"


@pytest.fixture
def document(http: httpx.Client, place: str) -> Document:
    document: Document = http.get(place).raise_for_status().json()
    return document


def check(document: Document, schema: Document, value: Any) -> None:
    """Assert that a value fits a schema of the document."""
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def test_it_is_a_valid_document_of_openapi_3_1_about_one_version(document: Document, version: Document) -> None:
    assert document["openapi"].startswith("3.1")
    validate(document)

    ref = f"{version['model']}@{version['version']}"
    assert f"{ref}: {version['spec']['target']}" == document["info"]["title"]
    assert str(version["version"]) == document["info"]["version"]
    assert version["job"] in document["info"]["description"]
    assert [f"/api/v1/models/{ref}/predict"] == list(document["paths"])


def test_its_columns_categories_and_classes_are_the_versions(document: Document, version: Document) -> None:
    schemas = document["components"]["schemas"]

    row = schemas["Row"]["properties"]
    assert [column["name"] for column in version["inputs"]] == list(row)
    categories = {
        column["name"]: column["categories"] for column in version["inputs"] if column["kind"] == "categorical"
    }
    assert categories == {name: row[name]["anyOf"][0]["enum"] for name in categories}
    assert version["classes"] == schemas["Label"]["enum"]
    assert version["classes"] == schemas["Prediction"]["properties"]["classes"]["const"]
    # columns that the model does not impute are required
    assert [column["name"] for column in version["inputs"] if column["missing"] == "error"] == schemas["Row"][
        "required"
    ]


def test_its_example_is_answered_where_it_says_and_as_it_says(
    http: httpx.Client, document: Document, version: Document, place: str
) -> None:
    ((path, item),) = document["paths"].items()
    body = item["post"]["requestBody"]["content"]["application/json"]
    base = urljoin(place, document["servers"][0]["url"])
    described = item["post"]["responses"]["200"]["content"]["application/json"]["schema"]

    answer = http.post(base.rstrip("/") + path, json=body["example"])

    assert 200 == answer.status_code
    check(document, body["schema"], body["example"])
    check(document, described, answer.json())
    assert (version["model"], version["version"]) == (answer.json()["model"], answer.json()["version"])


def test_its_schemas_refuse_what_the_version_would(http: httpx.Client, odd: Job) -> None:
    document = http.get("/api/v1/models/odd.names_-1/versions/1/openapi.json").json()
    row = {"$ref": "#/components/schemas/Row"}
    path = "/api/v1/models/odd.names_-1/predict"

    for good in ({"a~b {c}": "unseen"}, {'price/€ "net"': None}, {"$id": True, "a~b {c}": 7}, {"a column": "more"}):
        check(document, row, good)
        assert 200 == http.post(path, json={"records": [good]}).status_code
    bad: dict[str, Any]
    for bad in ({'price/€ "net"': []}, {"a~b {c}": {}}, {"$id": "perhaps"}):
        with pytest.raises(jsonschema.ValidationError):
            check(document, row, bad)
        check_problem(http.post(path, json={"records": [bad]}), 422, "invalid")
    for label in ("7", 5, None):
        with pytest.raises(jsonschema.ValidationError):
            check(document, {"$ref": "#/components/schemas/Label"}, label)


@pytest.mark.parametrize(
    ("path", "status"), [("nobody/versions/1", 404), ("penguins/versions/999", 404), ("penguins/versions/0", 422)]
)
def test_an_unknown_version_has_no_document(http: httpx.Client, penguins: Job, path: str, status: int) -> None:
    check_problem(http.get(f"/api/v1/models/{path}/openapi.json"), status)
