"""A Python client of the REST API. Knows the contract alone, and nothing of how the service is made.

    with Client() as client:
        dataset = client.upload("penguins.csv")
        job = client.wait(client.train("penguins", dataset=dataset, target="species"), on_event=print)
        client.predict(job.ref, records=[{"island": "Biscoe", "bill_length_mm": 50.4}]).predictions

What it raises, beside TypeError and ValueError for a wrong call:

    FitserveError
    ├── ApiError            an error answer: status, code, detail, errors, request_id
    │   ├── Unauthorized    401, 403
    │   ├── NotFound        404
    │   ├── Conflict        409
    │   ├── TooLarge        411, 413
    │   ├── Invalid         400, 415, 422
    │   └── Overloaded      429, 503; repeated a few times first, where a request may be
    ├── ConnectionFailed    no answer; also a ConnectionError
    ├── TimedOut            `wait` had less time than the job took; also a TimeoutError
    ├── UploadFailed        a large upload could not be read; dataset
    ├── JobFailed           job, code, message
    └── JobCancelled        job
"""

from __future__ import annotations

import json
import math
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, fields
from itertools import takewhile
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx

Document = dict[str, Any]
FilePath = str | os.PathLike[str]

DEFAULT_URL = "http://127.0.0.1:8000"
CONTENT_TYPES = {
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".json": "application/json",
    ".ndjson": "application/x-ndjson",
    ".npz": "application/x-npz",
    ".parquet": "application/vnd.apache.parquet",
    ".arrow": "application/vnd.apache.arrow.file",
}
#: how often a request that may safely be repeated is sent, and the pause after the first time; then it doubles
ATTEMPTS, BACKOFF_SECONDS = 5, 0.2
MAX_RETRY_AFTER_SECONDS = 30.0
#: `wait` without a time limit gives up on a service that it could not reach for so long
UNREACHABLE_SECONDS = 300.0
#: an event stream without a line for so long is dead: the service sends a comment every 15 seconds
SILENCE_SECONDS = 45.0
POLL_SECONDS = 0.5


class FitserveError(Exception):
    """The root of what this client raises."""


class ApiError(FitserveError):
    """The service answered with an error; `errors` are single faults with `loc`, `message` and `code`."""

    def __init__(
        self, status: int, code: str, detail: str, errors: Sequence[Document] = (), request_id: str = ""
    ) -> None:
        super().__init__(f"{detail} ({status} {code})")
        self.status, self.code, self.detail, self.errors, self.request_id = status, code, detail, errors, request_id


class Unauthorized(ApiError):
    """A key is needed, or this key or Host may not do this."""


class NotFound(ApiError):
    """There is no such thing."""


class Conflict(ApiError):
    """The present state does not allow it."""


class TooLarge(ApiError):
    """Over a limit of the service."""


class Invalid(ApiError):
    """The service cannot read this, or it is wrong; `errors` says where."""


class Overloaded(ApiError):
    """Not now: a queue is full, or the service is starting or stopping."""


class ConnectionFailed(FitserveError, ConnectionError):
    """No answer came from the service."""


class TimedOut(FitserveError, TimeoutError):
    """The job did not end in the time given; it goes on."""


class UploadFailed(FitserveError):
    """The service took an upload and then could not read it."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(
            f"data set {dataset.id} could not be read: {dataset.document.get('error') or dataset.warnings}"
        )
        self.dataset = dataset


class JobFailed(FitserveError):
    """The job ended with an error."""

    def __init__(self, job: Job) -> None:
        error = job.error or {}
        self.job, self.code, self.message = job, str(error.get("code", "internal")), str(error.get("message", ""))
        super().__init__(f"job {job.id} failed: {self.message} ({self.code})")


class JobCancelled(FitserveError):
    """The job was cancelled."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.id} was cancelled")
        self.job = job


_ERRORS = {400: Invalid, 401: Unauthorized, 403: Unauthorized, 404: NotFound, 409: Conflict, 411: TooLarge}
_ERRORS |= {413: TooLarge, 415: Invalid, 422: Invalid, 429: Overloaded, 503: Overloaded}


@dataclass(frozen=True)
class Dataset:
    """A data set; `document` is all that the service said of it."""

    id: str
    status: str
    name: str | None = None
    format: str = ""
    rows: int | None = None
    size_bytes: int | None = None
    columns: list[Document] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    document: Document = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Job:
    """A job as it was when it was read; `document` is all that the service said of it."""

    id: str
    model: str
    status: str
    kind: str = "train"
    version: int | None = None
    progress: Document = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    error: Document | None = None
    document: Document = field(default_factory=dict, repr=False)

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return self.status in ("succeeded", "failed", "cancelled")

    @property
    def ref(self) -> str:
        """The version that the job made, as in "iris@3"; the model's name before there is one."""
        return self.model if self.version is None else f"{self.model}@{self.version}"


@dataclass(frozen=True)
class Prediction:
    """Answers to n rows: labels, and k probabilities each in the order of `classes`.

    With `top_k`, `probabilities` is empty and `top` has n lists of {"class", "probability"}, the best first.
    """

    model: str
    version: int
    classes: list[Any]
    predictions: list[Any]
    probabilities: list[list[float]] = field(default_factory=list)
    top: list[list[Document]] = field(default_factory=list)
    warnings: list[Document] = field(default_factory=list)
    document: Document = field(default_factory=dict, repr=False)


class Client:
    """A connection to a fitserve service, closed as a context manager; usable from several threads.

    Args:
        base_url: where the service is; default `FITSERVE_URL`, else `DEFAULT_URL`.
        api_key: the bearer key; default `FITSERVE_API_KEY`; "" sends none.
        timeout: the longest silence of the service, seconds.
        transport: what carries the requests, in place of the network.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = base_url or os.environ.get("FITSERVE_URL") or DEFAULT_URL
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"expected an address such as {DEFAULT_URL}, got {self.base_url!r}")
        try:
            host = httpx.URL(self.base_url).host
        except httpx.InvalidURL as error:
            raise ValueError(f"expected an address such as {DEFAULT_URL}: {error}, got {self.base_url!r}") from None
        key = os.environ.get("FITSERVE_API_KEY", "") if api_key is None else api_key
        self._http = httpx.Client(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            transport=transport,
            # a proxy from the environment cannot reach this machine's loopback
            trust_env=host not in ("localhost", "127.0.0.1", "::1"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def upload(
        self, source: FilePath | bytes | Mapping[str, Any], *, name: str | None = None, content_type: str | None = None
    ) -> Dataset:
        """Send a table, and wait until the service has read it; equal bytes give the data set that is there.

        Args:
            source: a file's path (sent as it is read), the bytes of one, or a mapping in a JSON form: {"x", "y"},
                {"records"} or {"columns"}, where None is missing.
            name: a name for people; default the file's.
            content_type: default by the file's extension; needed with bytes.
        """
        body, headers = _body(source, content_type)
        name = name or (body.name if isinstance(body, Path) and body.name.isprintable() else None)
        params = {"name": name[:200]} if name else {}
        document = self._call("POST", "datasets", body=body, headers=headers, params=params, is_repeatable=True)
        while document["status"] == "processing":
            time.sleep(POLL_SECONDS)
            document = self._call("GET", f"datasets/{_part(document['id'])}")
        dataset = _record(Dataset, document)
        if dataset.status == "failed":
            raise UploadFailed(dataset)
        return dataset

    def datasets(self) -> Iterator[Dataset]:
        """Give every data set, newest first."""
        return (_record(Dataset, document) for document in self._pages("datasets"))

    def dataset(self, dataset_id: str) -> Dataset:
        """Give a data set with its columns and their statistics."""
        return _record(Dataset, self._call("GET", f"datasets/{_part(dataset_id)}"))

    def delete_dataset(self, dataset_id: str) -> None:
        """Remove a data set; versions trained on it stay."""
        self._call("DELETE", f"datasets/{_part(dataset_id)}")

    def set_kinds(self, dataset_id: str, kinds: Mapping[str, str]) -> Dataset:
        """Correct the kinds of columns, as in {"zip": "categorical"}."""
        columns = {name: {"kind": kind} for name, kind in kinds.items()}
        return _record(Dataset, self._call("PATCH", f"datasets/{_part(dataset_id)}", json_body={"columns": columns}))

    def train(
        self,
        model: str,
        *,
        dataset: str | Dataset | None = None,
        data: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        **spec: Any,
    ) -> Job:
        """Queue a training job on a data set, or on data in a JSON form.

        Args:
            idempotency_key: the same key and arguments give the same job; default a new key, so that a request
                sent again after a lost answer still makes one job.
            spec: the contract's fields: target, features, validation, network, optimizer, fit, promote, tags, …
        """
        body = {**_data(dataset, data), **spec}
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        path = f"models/{_part(model)}/train"
        return _record(Job, self._call("POST", path, json_body=body, headers=headers, is_repeatable=True))

    def dry_run(
        self, model: str, *, dataset: str | Dataset | None = None, data: Mapping[str, Any] | None = None, **spec: Any
    ) -> Document:
        """Tell what a training job would be: its settled specification, classes, warnings and an estimate."""
        body = {**_data(dataset, data), **spec}
        path = f"models/{_part(model)}/train"
        return self._call("POST", path, json_body=body, params={"dry_run": "true"}, is_repeatable=True)

    def jobs(self, *, model: str | None = None, status: str | None = None) -> Iterator[Job]:
        """Give the jobs, newest first."""
        return (_record(Job, document) for document in self._pages("jobs", model=model, status=status))

    def job(self, job: str | Job) -> Job:
        """Give a job as it is now."""
        return _record(Job, self._call("GET", _job_path(job)))

    def cancel(self, job: str | Job) -> Job:
        """End a queued or running job."""
        return _record(Job, self._call("POST", f"{_job_path(job)}/cancel"))

    def resume(self, job: str | Job) -> Job:
        """Queue a failed or cancelled job again."""
        return _record(Job, self._call("POST", f"{_job_path(job)}/resume"))

    def wait(
        self, job: str | Job, *, on_event: Callable[[Document], object] | None = None, timeout: float | None = None
    ) -> Job:
        """Follow a job to its end, through lost connections and restarts of the service.

        Args:
            on_event: called with each event, once and in order.
            timeout: seconds; default as long as it takes, but for `UNREACHABLE_SECONDS` without the service.
        """
        path, seen, reached = _job_path(job), 0, time.monotonic()
        deadline = reached + (math.inf if timeout is None else timeout)
        while True:
            found = None
            try:
                # too many streams: the job's own state still tells
                with suppress(Overloaded):
                    for event in self._stream(f"{path}/events", seen, deadline):
                        seen = event["id"]
                        if on_event is not None:
                            on_event(event)
                found, reached = self.job(job), time.monotonic()
                # what was said after a stream had broken off
                for event in self._pages(f"{path}/events", after=seen) if found.is_terminal else ():
                    seen = event["id"]
                    if on_event is not None:
                        on_event(event)
            except (ConnectionFailed, Overloaded):
                if timeout is None and time.monotonic() - reached > UNREACHABLE_SECONDS:
                    raise
            else:
                if found.is_terminal:
                    return _succeeded(found)
            if time.monotonic() >= deadline:
                raise TimedOut(f"job {path.rpartition('/')[2]} did not end within {timeout:g} seconds; it goes on")
            time.sleep(min(POLL_SECONDS, max(deadline - time.monotonic(), 0.0)))

    def models(self) -> Iterator[Document]:
        """Give every model."""
        return self._pages("models")

    def model(self, name: str) -> Document:
        """Give a model with its versions and aliases."""
        return self._call("GET", f"models/{_part(name)}")

    def delete_model(self, name: str) -> None:
        """Remove a model with every version."""
        self._call("DELETE", f"models/{_part(name)}")

    def version(self, ref: str) -> Document:
        """Give a version: "iris" (the default one), "iris@3" or "iris@champion"."""
        return self._call("GET", self._version_path(ref))

    def delete_version(self, ref: str, *, force: bool = False) -> None:
        """Remove a version; with `force` also the default one, or one that an alias points at."""
        self._call("DELETE", self._version_path(ref), params={"force": "true"} if force else {})

    def alias(self, name: str, alias: str, version: int) -> Document:
        """Point an alias at a version; "default" is what the bare name means."""
        path = f"models/{_part(name)}/aliases/{_part(alias)}"
        return self._call("PUT", path, json_body={"version": version}, is_repeatable=True)

    def history(self, name: str, alias: str = "default") -> list[Document]:
        """Give every move of an alias, newest first."""
        return list(self._pages(f"models/{_part(name)}/aliases/{_part(alias)}/history"))

    def rollback(self, name: str, alias: str = "default") -> Document:
        """Point an alias back at the version that it pointed at before; gives the model."""
        return self._call("POST", f"models/{_part(name)}/aliases/{_part(alias)}/rollback")

    def export(self, ref: str, path: FilePath, *, format: str = "keras") -> Path:
        """Write a version to a file, which appears when it is whole; gives its path."""
        url, target = f"/api/v1/{self._version_path(ref)}/export", Path(path)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            with self._http.stream("GET", url, params={"format": format}) as response:
                _check(response)
                with part.open("wb") as file:
                    file.writelines(response.iter_bytes())
            return part.replace(target)
        except httpx.TransportError as error:
            raise self._lost(error) from error
        finally:
            part.unlink(missing_ok=True)

    def evaluate(
        self,
        ref: str,
        *,
        dataset: str | Dataset | None = None,
        data: Mapping[str, Any] | None = None,
        file: FilePath | None = None,
        by: str | None = None,
    ) -> Document:
        """Score a version on labelled rows: a data set, data in a JSON form, or a file; `by` names a column to slice by."""
        path = f"models/{_part(ref)}/evaluate"
        params = {} if by is None else {"by": by}
        if file is None:
            return self._call("POST", path, json_body=_data(dataset, data), params=params, is_repeatable=True)
        if dataset is not None or data is not None:
            raise TypeError("expected exactly one of dataset, data and file, got several")
        body, headers = _body(file, None)
        # a JSON file is a table, and a JSON body an envelope around one
        if isinstance(body, Path) and headers["Content-Type"] == CONTENT_TYPES[".json"]:
            body = b'{"data":%b}' % body.read_bytes()
        return self._call("POST", path, body=body, headers=headers, params=params, is_repeatable=True)

    def predict(
        self,
        ref: str,
        *,
        records: Sequence[Mapping[str, Any]] | None = None,
        rows: Any = None,
        columns: Mapping[str, Any] | None = None,
        csv: str | bytes | None = None,
        top_k: int | None = None,
    ) -> Prediction:
        """Classify rows, given in exactly one of four ways; None is a missing value.

        Args:
            rows: lists, or an array, of values in the order of the version's inputs.
            columns: a list, or an array, of values for each column.
            csv: the text of a CSV file with a header row.
            top_k: so many classes of each row, the best first, in place of all probabilities.
        """
        forms = {"records": records, "x": rows, "columns": columns, "csv": csv}
        given = {name: value for name, value in forms.items() if value is not None}
        if len(given) != 1:
            raise TypeError(f"expected exactly one of records, rows, columns and csv, got {len(given)}")
        body = csv.encode() if isinstance(csv, str) else csv
        document = self._call(
            "POST",
            f"models/{_part(ref)}/predict",
            body=body,
            json_body=given if body is None else None,
            headers={"Content-Type": CONTENT_TYPES[".csv"]},
            params={} if top_k is None else {"top_k": str(top_k)},
            is_repeatable=True,
        )
        return _record(Prediction, document)

    def system(self) -> Document:
        """Give versions, devices, limits, queue depth and workers of the service."""
        return self._call("GET", "system")

    def is_ready(self) -> bool:
        """Tell whether the service is there and takes requests; asks once."""
        try:
            return self._http.get("/readyz", timeout=5.0).is_success
        except httpx.TransportError:
            return False

    def _version_path(self, ref: str) -> str:
        name, _, version = ref.partition("@")
        if not version.isdecimal():
            model = self.model(name)
            found = model["aliases"].get(version) if version else model["default_version"]
            if found is None:
                raise NotFound(404, "not_found", f"There is no version {ref!r}.")
            version = str(found)
        return f"models/{_part(name)}/versions/{version}"

    def _pages(self, path: str, **filters: Any) -> Iterator[Document]:
        params = {"limit": "500"} | {name: str(value) for name, value in filters.items() if value is not None}
        while True:
            page = self._call("GET", path, params=params)
            yield from page["items"]
            if page["next"] is None:
                return
            params["after"] = page["next"]

    def _stream(self, path: str, seen: int, deadline: float) -> Iterator[Document]:
        """Give a job's events after `seen` as they come, until the stream ends or the time is over."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(seen)}
        silence = max(min(SILENCE_SECONDS, deadline - time.monotonic()), 0.1)
        try:
            with self._http.stream("GET", f"/api/v1/{path}", headers=headers, timeout=silence) as response:
                _check(response)
                yield from _events(takewhile(lambda _: time.monotonic() < deadline, response.iter_lines()))
        except httpx.TransportError as error:
            # silence is no loss: the job's state is asked next
            if not isinstance(error, httpx.ReadTimeout):
                raise self._lost(error) from error

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Path | None = None,
        json_body: Any = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        is_repeatable: bool = False,
    ) -> Document:
        """Send a request, again where it may be and no answer or a Retry-After came; give the decoded answer."""
        if json_body is not None:
            body, headers = _json(json_body), {**(headers or {}), "Content-Type": CONTENT_TYPES[".json"]}
        attempts = ATTEMPTS if is_repeatable or method == "GET" else 1
        for attempt in range(1, attempts + 1):
            # many clients that lost one service should not all come back at once
            pause = BACKOFF_SECONDS * 2.0 ** (attempt - 1) * random.uniform(0.7, 1.0)
            try:
                with ExitStack() as stack:
                    content = stack.enter_context(body.open("rb")) if isinstance(body, Path) else body
                    url = f"/api/v1/{path}"
                    response = self._http.request(method, url, content=content, headers=headers, params=params)
            except httpx.TransportError as error:
                if attempt == attempts or isinstance(error, httpx.ReadTimeout):
                    raise self._lost(error) from error
            else:
                retry_after = _retry_after(response)
                if attempt == attempts or retry_after is None:
                    break
                pause = retry_after
            time.sleep(pause)
        _check(response)
        document: Document = response.json() if response.content else {}
        return document

    def _lost(self, error: httpx.TransportError) -> ConnectionFailed:
        return ConnectionFailed(f"no answer from {self.base_url}: {str(error) or type(error).__name__}")


def _check(response: httpx.Response) -> None:
    """Raise the error that an answer is, if it is one."""
    if response.is_success:
        return
    problem: Document = {}
    with suppress(ValueError, TypeError):
        problem = dict(json.loads(response.read()))
    status, detail = response.status_code, str(problem.get("detail") or response.reason_phrase)
    request_id = str(problem.get("request_id") or response.headers.get("X-Request-ID", ""))
    kind = _ERRORS.get(status, ApiError)
    raise kind(status, str(problem.get("code", "unknown")), detail, problem.get("errors") or (), request_id)


def _retry_after(response: httpx.Response) -> float | None:
    """Give how long to wait before a request is sent again, or None where that is of no use."""
    with suppress(ValueError):
        seconds = float(response.headers.get("Retry-After", ""))
        if response.status_code in (429, 503) and 0 <= seconds <= MAX_RETRY_AFTER_SECONDS:
            return seconds
    return None


def _events(lines: Iterable[str]) -> Iterator[Document]:
    """Give the events of a `text/event-stream`, whose data carry their ids; one that breaks off is left out.

    Source: HTML Living Standard, 9.2.6, Interpreting an event stream.
    """
    data: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
        elif not line and data:
            yield json.loads("\n".join(data))
            data = []


def _json(document: Any) -> bytes:
    # arrays, their scalars and data frame columns have it; nothing that has it need be imported
    def plain(value: Any) -> Any:
        if not hasattr(value, "tolist"):
            raise TypeError(f"expected what JSON can say, got {type(value).__name__}")
        return value.tolist()

    return json.dumps(document, default=plain, allow_nan=False).encode()


def _body(
    source: FilePath | bytes | Mapping[str, Any], content_type: str | None
) -> tuple[bytes | Path, dict[str, str]]:
    if isinstance(source, Mapping):
        return _json(source), {"Content-Type": CONTENT_TYPES[".json"]}
    body = source if isinstance(source, bytes) else Path(source)
    form = content_type or (CONTENT_TYPES.get(body.suffix.lower()) if isinstance(body, Path) else None)
    if form is None:
        came = body.name if isinstance(body, Path) else "bytes"
        raise ValueError(f"expected content_type, or a file named {' '.join(CONTENT_TYPES)}; got {came}")
    return body, {"Content-Type": form}


def _data(dataset: str | Dataset | None, data: Mapping[str, Any] | None) -> Document:
    if (dataset is None) == (data is None):
        raise TypeError(f"expected exactly one of dataset and data, got {'neither' if data is None else 'both'}")
    if data is not None:
        return {"data": data}
    return {"dataset": dataset.id if isinstance(dataset, Dataset) else dataset}


def _part(text: str) -> str:
    """Quote one segment of a path."""
    if text in ("", ".", ".."):
        raise ValueError(f"expected a name or an id, got {text!r}")
    return quote(text, safe="@")


def _job_path(job: str | Job) -> str:
    return f"jobs/{_part(job.id if isinstance(job, Job) else job)}"


def _succeeded(job: Job) -> Job:
    if job.status == "failed":
        raise JobFailed(job)
    if job.status == "cancelled":
        raise JobCancelled(job)
    return job


_Record = TypeVar("_Record", Dataset, Job, Prediction)


def _record(kind: type[_Record], document: Document) -> _Record:
    """Take what the record has a field for; a later service may say more."""
    known = {each.name: document[each.name] for each in fields(kind) if document.get(each.name) is not None}
    return kind(**{**known, "document": document})
