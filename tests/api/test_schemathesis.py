"""Generated requests, valid and invalid, to every operation of `/openapi.json` on a real service.

`FUZZ_EXAMPLES=500 pytest tests/api/test_schemathesis.py` sends more of them; each run of a number sends the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service import Service
from tests.wire import is_of_other_protocol

#: requests for each operation and kind: valid and invalid, with places in the path that exist and that do not
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "4"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
#: limits so small that generated requests reach them
LIMITS = {"max_queued_jobs": "20", "max_upload_bytes": "100000", "max_job_seconds": "60"}


DATA = {"x": [[i % 7 / 7, i % 3 / 3] for i in range(40)], "y": [i % 2 for i in range(40)]}


@dataclass(frozen=True)
class Fuzzed:
    """The document of a service of these tests' own, and places in paths that exist there."""

    document: schemathesis.BaseSchema
    places: dict[str, dict[str, Any]]

    def places_of(self, path: str) -> dict[str, Any] | None:
        """Return values for the places in a path; None if the path has no place, or no value exists for it."""
        return next((places for part, places in self.places.items() if part in path), None) if "{" in path else None


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    service = Service(tmp_path_factory.mktemp("fuzz") / "data", dict(LIMITS)).start()
    with service.client() as client:
        job = client.wait(client.train("m", data=DATA, validation=None, fit={"epochs": 2}))
    assert service.stop() == 0
    # without a worker, generated jobs stay in the queue
    service.settings["workers"] = "0"
    service.start()
    with service.client() as client:
        client.train("m", dataset=job.document["dataset"])
        places = {
            "/datasets/": {"id": job.document["dataset"]},
            "/jobs/": {"id": job.id},
            "/models/": {"name": "m", "ref": "m", "n": 1, "alias": "default"},
        }
        # an empty configuration: a file of the developer's own is not read
        document = schemathesis.openapi.from_url(f"{service.url}/openapi.json", config=SchemathesisConfig())
        yield Fuzzed(document, places)
    assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()


def test_every_answer_is_one_that_the_document_describes(fuzzed: Fuzzed) -> None:
    failures: dict[str, str] = {}
    operations = [result.ok() for result in fuzzed.document.get_all_operations() if isinstance(result, Ok)]
    # deletes come last
    for operation in sorted(operations, key=lambda operation: (operation.method == "delete", -len(operation.path))):
        # a stream of events does not end while its job waits; tests/api/test_jobs.py tests streams
        if operation.path.endswith("/events"):
            continue
        # on the other protocols' paths one function answers for a model, its versions and its labels
        if is_of_other_protocol(operation.path) and operation.path.count("{") > 1:
            continue
        modes = [schemathesis.GenerationMode.POSITIVE]
        # a request without parameters and body cannot be invalid
        if operation.definition.raw.keys() & {"parameters", "requestBody"}:
            modes.append(schemathesis.GenerationMode.NEGATIVE)
        ways: list[tuple[schemathesis.GenerationMode, dict[str, Any] | None]] = [(mode, None) for mode in modes]
        if (places := fuzzed.places_of(operation.path)) is not None:
            own = {name: value for name, value in places.items() if f"{{{name}}}" in operation.path}
            ways += [(mode, own) for mode in modes if mode.is_positive or "requestBody" in operation.definition.raw]
        for mode, own_places in ways:
            try:
                send(operation, mode, own_places)
            except FailureGroup as group:
                failures[f"{operation.label}, {mode.value}, {own_places}"] = "\n".join(map(str, group.exceptions))

    assert {} == failures


def send(
    operation: schemathesis.APIOperation[Any, Any, Any, Any],
    mode: schemathesis.GenerationMode,
    places: dict[str, Any] | None,
) -> None:
    """Send generated requests to one operation, and check each answer."""

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode, path_parameters=places))
    def check(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(checks=CHECKS, timeout=30)

    check()
