"""Every operation of `/openapi.json` under generated requests, right ones and wrong ones, against a real service.

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

#: for each operation, right and wrong, with places from nowhere and with those that there are
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "4"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
#: small, so that what is generated reaches them
LIMITS = {"max_queued_jobs": "20", "max_upload_bytes": "100000", "max_job_seconds": "60"}


DATA = {"x": [[i % 7 / 7, i % 3 / 3] for i in range(40)], "y": [i % 2 for i in range(40)]}


@dataclass(frozen=True)
class Fuzzed:
    """A service of the tests' own, the document as it gives it at its address, and places that lead somewhere."""

    document: schemathesis.BaseSchema
    places: dict[str, dict[str, Any]]

    def places_of(self, path: str) -> dict[str, Any] | None:
        """Give what the places in a path stand for; None where it has none, or they lead nowhere."""
        return next((found for part, found in self.places.items() if part in path), None) if "{" in path else None


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    service = Service(tmp_path_factory.mktemp("fuzz") / "data", dict(LIMITS)).start()
    with service.client() as client:
        job = client.wait(client.train("m", data=DATA, validation=None, fit={"epochs": 2}))
    assert service.stop() == 0
    # what is generated now waits for ever
    service.settings["workers"] = "0"
    service.start()
    with service.client() as client:
        client.train("m", dataset=job.document["dataset"])
        places = {
            "/datasets/": {"id": job.document["dataset"]},
            "/jobs/": {"id": job.id},
            "/models/": {"name": "m", "ref": "m", "n": 1, "alias": "default"},
        }
        # from no file of whoever runs this
        document = schemathesis.openapi.from_url(f"{service.url}/openapi.json", config=SchemathesisConfig())
        yield Fuzzed(document, places)
    assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()


def test_every_answer_is_one_that_the_document_tells(fuzzed: Fuzzed) -> None:
    failures: dict[str, str] = {}
    operations = [found.ok() for found in fuzzed.document.get_all_operations() if isinstance(found, Ok)]
    # what deletes comes last
    for operation in sorted(operations, key=lambda each: (each.method == "delete", -len(each.path))):
        # a stream of events does not end while its job waits; tests/api/test_jobs.py follows those
        if operation.path.endswith("/events"):
            continue
        # one function answers for a model, its versions and its labels there
        if is_of_other_protocol(operation.path) and operation.path.count("{") > 1:
            continue
        modes = [schemathesis.GenerationMode.POSITIVE]
        # where nothing is asked for, nothing can be asked for wrongly
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
