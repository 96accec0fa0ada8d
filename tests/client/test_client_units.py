"""The client on a transport that answers from a list, for answers that a real service gives too rarely."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.client import (
    ApiError,
    Client,
    ConnectionFailed,
    Document,
    Invalid,
    JobCancelled,
    JobFailed,
    NotFound,
    Overloaded,
    TimedOut,
    Unauthorized,
    UploadFailed,
)
from app.client.connection import ATTEMPTS
from tests.service import ROOT

Answer = httpx.Response | Exception
JOB = {"id": "job_1", "model": "iris", "status": "queued", "surprise": True}
PREDICTION = {"model": "iris", "version": 1, "classes": [0, 1], "predictions": [1], "probabilities": [[0.25, 0.75]]}


class Script(httpx.BaseTransport):
    """Answers from a list, and keeps the requests."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the next answer, or raise it."""
        request.read()
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def bodies(self) -> list[Document]:
        """The JSON bodies of the requests so far."""
        return [json.loads(request.content) for request in self.requests if request.content]


class CutStream(httpx.SyncByteStream):
    """A body whose connection is lost after the text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __iter__(self) -> Iterator[bytes]:
        yield self._text.encode()
        raise httpx.ReadError("the connection was lost")


def scripted(*answers: Answer, api_key: str = "") -> tuple[Client, Script]:
    """Return a client that gets these answers, and the script that has its requests."""
    script = Script(answers)
    return Client("http://fitserve.test", api_key, transport=script), script


def problem(status: int, code: str, headers: dict[str, str] | None = None) -> httpx.Response:
    """Return an error answer."""
    document = {
        "status": status,
        "code": code,
        "detail": "expected a, got b",
        "request_id": "r1",
        "errors": [{"loc": ["x"]}],
    }
    return httpx.Response(status, json=document, headers=headers)


def job(status: str, **fields: object) -> httpx.Response:
    """Return an answer that is a job."""
    return httpx.Response(200, json={**JOB, "status": status, **fields})


def page(*items: Document, following: str | None = None) -> httpx.Response:
    """Return an answer that is a page of a list."""
    return httpx.Response(200, json={"items": list(items), "next": following})


def sse(*events: Document) -> str:
    """Return events as the text of a stream."""
    return ": hello\nretry: 1000\n\n" + "".join(f"id: {e['id']}\nevent: x\ndata: {json.dumps(e)}\n\n" for e in events)


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotFound), (422, Invalid), (401, Unauthorized), (403, Unauthorized), (418, ApiError)]
)
def test_an_error_answer_becomes_its_exception(status: int, kind: type[ApiError]) -> None:
    client, _ = scripted(problem(status, "word"))

    with pytest.raises(kind) as caught:
        client.job("job_1")

    assert (status, "word", "expected a, got b", "r1") == (
        caught.value.status,
        caught.value.code,
        caught.value.detail,
        caught.value.request_id,
    )
    assert [{"loc": ["x"]}] == caught.value.errors


def test_an_error_answer_without_a_problem_document_is_named_by_its_status() -> None:
    client, _ = scripted(httpx.Response(502, text="<html>"))

    with pytest.raises(ApiError, match=r"Bad Gateway \(502 unknown\)"):
        client.job("job_1")


def test_train_is_sent_again_with_the_same_key_and_body() -> None:
    client, script = scripted(httpx.ReadError("gone"), problem(503, "not_ready", {"Retry-After": "0"}), job("queued"))

    queued = client.train("iris", dataset="ds_1", target="species", fit={"epochs": 3})

    assert "job_1" == queued.id
    assert 1 == len({request.headers["Idempotency-Key"] for request in script.requests})
    assert [{"dataset": "ds_1", "target": "species", "fit": {"epochs": 3}}] * 3 == script.bodies


def test_a_busy_service_is_asked_a_few_times_before_the_error() -> None:
    client, script = scripted(*[problem(429, "overloaded", {"Retry-After": "0"}) for _ in range(ATTEMPTS)])

    with pytest.raises(Overloaded):
        client.job("job_1")

    assert ATTEMPTS == len(script.requests)


@pytest.mark.parametrize(
    "headers", [{}, {"Retry-After": "3600"}, {"Retry-After": "nan"}, {"Retry-After": "Wed, 21 Oct"}]
)
def test_a_useless_retry_after_is_not_waited_for(headers: dict[str, str]) -> None:
    client, script = scripted(problem(503, "unavailable", headers))

    with pytest.raises(Overloaded):
        client.job("job_1")

    assert 1 == len(script.requests)


def test_cancel_is_not_sent_twice() -> None:
    client, script = scripted(httpx.ReadError("gone"))

    with pytest.raises(ConnectionFailed, match=r"no answer from http://fitserve\.test: gone"):
        client.cancel("job_1")

    assert 1 == len(script.requests)


def test_wait_goes_on_where_a_lost_stream_ended() -> None:
    first = httpx.Response(200, stream=CutStream(sse({"id": 1}, {"id": 2}) + 'id: 3\ndata: {"id"'))
    second = httpx.Response(200, text=sse({"id": 3}))
    client, script = scripted(first, second, job("succeeded", version=4), page({"id": 4}))
    ids: list[int] = []

    ended = client.wait("job_1", on_event=lambda event: ids.append(event["id"]))

    assert [1, 2, 3, 4] == ids
    assert "iris@4" == ended.ref
    assert ["0", "2"] == [request.headers["Last-Event-ID"] for request in script.requests[:2]]
    assert "3" == script.requests[3].url.params["after"]


def test_wait_asks_for_the_job_when_too_many_streams_are_open() -> None:
    client, _ = scripted(problem(429, "overloaded"), job("succeeded"), page({"id": 1}))
    ids: list[int] = []

    client.wait("job_1", on_event=lambda event: ids.append(event["id"]))

    assert [1] == ids


@pytest.mark.parametrize(("status", "kind"), [("failed", JobFailed), ("cancelled", JobCancelled)])
def test_wait_raises_when_the_job_did_not_succeed(status: str, kind: type[Exception]) -> None:
    error = {"code": "timeout", "message": "too slow", "param": None} if status == "failed" else None
    client, _ = scripted(httpx.Response(200, text=""), job(status, error=error), page())

    with pytest.raises(kind, match="too slow" if error else "cancelled"):
        client.wait("job_1")


def test_wait_raises_after_its_timeout() -> None:
    client, _ = scripted(httpx.Response(200, text=""), job("running"))

    with pytest.raises(TimedOut):
        client.wait("job_1", timeout=0)


def test_an_error_of_on_event_reaches_the_caller() -> None:
    client, _ = scripted(httpx.Response(200, text=sse({"id": 1})))

    def on_event(event: Document) -> None:
        raise KeyError(event["id"])

    with pytest.raises(KeyError):
        client.wait("job_1", on_event=on_event)


def test_upload_streams_a_file_with_its_name_and_type(tmp_path: Path) -> None:
    path = tmp_path / "a b.TSV"
    path.write_bytes(b"a\tb\n1\t2\n")
    answer = {"id": "ds_1", "status": "ready"}
    # the second request has to send the file from its start again
    client, script = scripted(httpx.ConnectError("no"), httpx.Response(201, json=answer))

    client.upload(path)

    assert [b"a\tb\n1\t2\n"] * 2 == [request.content for request in script.requests]
    assert "text/tab-separated-values" == script.requests[1].headers["Content-Type"]
    assert "8" == script.requests[1].headers["Content-Length"]
    assert "a b.TSV" == script.requests[1].url.params["name"]


def test_upload_waits_until_a_large_file_is_read() -> None:
    answers = [httpx.Response(202, json={"id": "ds_1", "status": status}) for status in ("processing", "failed")]
    client, script = scripted(*answers)

    with pytest.raises(UploadFailed, match="ds_1"):
        client.upload(b"a,b\n", content_type="text/csv")

    assert "/api/v1/datasets/ds_1" == script.requests[1].url.path


def test_upload_of_an_unknown_type_says_which_are_known() -> None:
    client, _ = scripted()

    with pytest.raises(ValueError, match=r"\.csv .* got table\.xlsx"):
        client.upload("table.xlsx")


def test_evaluate_wraps_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"x": [[1]], "y": [0]}')
    client, script = scripted(httpx.Response(200, json={"accuracy": 1.0}))

    client.evaluate("iris", file=path)

    assert [{"data": {"x": [[1]], "y": [0]}}] == script.bodies


def test_predict_takes_each_form() -> None:
    client, script = scripted(*[httpx.Response(200, json=PREDICTION)] * 4)

    client.predict("iris", records=[{"a": None}])
    client.predict("iris", columns={"a": [1]})
    client.predict("iris@2", rows=[[1.5]], top_k=2)
    prediction = client.predict("iris", csv="a\n1\n")

    assert [{"records": [{"a": None}]}, {"columns": {"a": [1]}}, {"x": [[1.5]]}] == [
        json.loads(request.content) for request in script.requests[:3]
    ]
    assert ("/api/v1/models/iris@2/predict", "2") == (
        script.requests[2].url.path,
        script.requests[2].url.params["top_k"],
    )
    assert ("text/csv", b"a\n1\n") == (script.requests[3].headers["Content-Type"], script.requests[3].content)
    assert ([1], [[0.25, 0.75]], []) == (prediction.predictions, prediction.probabilities, prediction.top)


@pytest.mark.parametrize("forms", [{}, {"rows": [[1]], "csv": "a\n1\n"}])
def test_predict_takes_exactly_one_form(forms: dict[str, Any]) -> None:
    client, _ = scripted()

    with pytest.raises(TypeError, match="exactly one of records, rows, columns and csv"):
        client.predict("iris", **forms)


def test_lists_go_through_all_pages() -> None:
    client, script = scripted(page(JOB, following="c1"), page({**JOB, "id": "job_2"}))

    assert ["job_1", "job_2"] == [item.id for item in client.jobs(model="iris")]
    assert [None, "c1"] == [request.url.params.get("after") for request in script.requests]
    assert ["iris", "iris"] == [request.url.params["model"] for request in script.requests]


def test_a_reference_is_resolved_by_the_model() -> None:
    model = {"default_version": 2, "aliases": {"best": 1}}
    client, script = scripted(
        *[httpx.Response(200, json=model), httpx.Response(200, json={})] * 2, httpx.Response(200, json=model)
    )

    client.version("iris")
    client.version("iris@best")
    with pytest.raises(NotFound):
        client.version("iris@worst")

    assert ["/api/v1/models/iris/versions/2", "/api/v1/models/iris/versions/1"] == [
        script.requests[i].url.path for i in (1, 3)
    ]


def test_a_broken_export_leaves_no_file(tmp_path: Path) -> None:
    client, _ = scripted(httpx.Response(200, stream=CutStream("half")))

    with pytest.raises(ConnectionFailed):
        client.export("iris@1", tmp_path / "iris.zip")

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_would_change_the_path_is_refused(name: str) -> None:
    client, _ = scripted()

    with pytest.raises(ValueError, match="expected a name"):
        client.delete_model(name)


def test_a_name_is_one_segment_of_the_path() -> None:
    client, script = scripted(problem(404, "not_found"))

    with pytest.raises(NotFound):
        client.model("a/b?c")

    assert b"/api/v1/models/a%2Fb%3Fc" == script.requests[0].url.raw_path


def test_the_key_goes_with_every_request() -> None:
    client, script = scripted(httpx.Response(200, json={}), api_key="secret")

    client.system()

    assert "Bearer secret" == script.requests[0].headers["Authorization"]


def test_a_number_that_is_not_finite_is_not_sent() -> None:
    client, script = scripted()

    with pytest.raises(ValueError, match="JSON"):
        client.upload({"x": [[float("nan")]], "y": [0]})

    assert [] == script.requests


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected an address such as http://127\.0\.0\.1:8000, got 'localhost'"):
        Client("localhost")


def test_a_copy_of_the_folder_works_without_the_application(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "app" / "client", tmp_path / "copied")
    code = "import sys, copied; copied.Client().close(); print('app' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert "False\n" == done.stdout
