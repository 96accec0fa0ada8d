"""The client: one method for each operation of a service."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from .bodies import CSV, Body, FilePath, json_body, labelled_rows_body, table_body
from .connection import Connection, path_of
from .errors import NotFound, UploadFailed
from .following import POLL_SECONDS, follow
from .records import Dataset, Document, Job, Prediction

MAX_NAME_CHARACTERS = 200


class Client:
    """A client of one fitserve service, closed as a context manager; usable from several threads.

    Args:
        base_url: address of the service; default `FITSERVE_URL`, else http://127.0.0.1:8000.
        api_key: the bearer key; default `FITSERVE_API_KEY`; "" sends none.
        timeout: the longest silence of the service, in seconds.
        transport: sends the requests in place of the network.

    Raises:
        ValueError: `base_url` is not the address of an HTTP service.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = Connection(base_url, api_key, timeout, transport)
        self.base_url = self._connection.base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def upload(
        self,
        source: FilePath | bytes | Mapping[str, object],
        *,
        name: str | None = None,
        content_type: str | None = None,
    ) -> Dataset:
        """Send a table and wait until the service has read it; equal bytes return the data set that is there already.

        Args:
            source: a file's path (sent while it is read), the bytes of a file, or a mapping in a JSON form: {"x", "y"},
                {"records"} or {"columns"}, where None is a missing value.
            name: a name for people; default the file's.
            content_type: default by the file's extension; needed with bytes.

        Raises:
            UploadFailed: the service could not read a large table.
        """
        body = table_body(source, content_type)
        name = name or (
            body.content.name if isinstance(body.content, Path) and body.content.name.isprintable() else None
        )
        params = {"name": name[:MAX_NAME_CHARACTERS]} if name else {}
        document = self._connection.call("POST", "datasets", body=body, params=params, is_repeatable=True)
        while document["status"] == "processing":
            time.sleep(POLL_SECONDS)
            document = self._connection.call("GET", path_of("datasets", document["id"]))
        dataset = Dataset.from_document(document)
        if dataset.status == "failed":
            raise UploadFailed(dataset)
        return dataset

    def datasets(self) -> Iterator[Dataset]:
        """Return every data set, newest first."""
        return map(Dataset.from_document, self._connection.pages("datasets"))

    def dataset(self, dataset_id: str) -> Dataset:
        """Return a data set with its columns and their statistics."""
        return Dataset.from_document(self._connection.call("GET", path_of("datasets", dataset_id)))

    def delete_dataset(self, dataset_id: str) -> None:
        """Remove a data set; versions trained on it stay."""
        self._connection.call("DELETE", path_of("datasets", dataset_id))

    def set_kinds(self, dataset_id: str, kinds: Mapping[str, str]) -> Dataset:
        """Correct the kinds of columns, as in {"zip": "categorical"}."""
        body = json_body({"columns": {name: {"kind": kind} for name, kind in kinds.items()}})
        return Dataset.from_document(self._connection.call("PATCH", path_of("datasets", dataset_id), body=body))

    def train(
        self,
        model: str,
        *,
        dataset: str | Dataset | None = None,
        data: Mapping[str, object] | None = None,
        idempotency_key: str | None = None,
        **spec: object,
    ) -> Job:
        """Queue a training job on a data set, or on data in a JSON form.

        Args:
            idempotency_key: the same key and arguments return the same job; default a new key, so that a request that
                is sent again after a lost answer makes one job.
            spec: the fields of the training request: target, features, validation, network, optimizer, fit, promote,
                tags, …
        """
        body = json_body(_training_data(dataset, data) | spec)
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        path = path_of("models", model, "train")
        return Job.from_document(self._connection.call("POST", path, body=body, headers=headers, is_repeatable=True))

    def dry_run(
        self,
        model: str,
        *,
        dataset: str | Dataset | None = None,
        data: Mapping[str, object] | None = None,
        **spec: object,
    ) -> Document:
        """Return what a training job would be: its resolved specification, classes, warnings and an estimate."""
        body = json_body(_training_data(dataset, data) | spec)
        path, params = path_of("models", model, "train"), {"dry_run": "true"}
        return self._connection.call("POST", path, body=body, params=params, is_repeatable=True)

    def jobs(self, *, model: str | None = None, status: str | None = None) -> Iterator[Job]:
        """Return the jobs, newest first."""
        return map(Job.from_document, self._connection.pages("jobs", model=model, status=status))

    def job(self, job: str | Job) -> Job:
        """Return a job as it is now."""
        return Job.from_document(self._connection.call("GET", path_of("jobs", _job_id(job))))

    def cancel(self, job: str | Job) -> Job:
        """End a queued or running job."""
        return Job.from_document(self._connection.call("POST", path_of("jobs", _job_id(job), "cancel")))

    def resume(self, job: str | Job) -> Job:
        """Queue a failed or cancelled job again."""
        return Job.from_document(self._connection.call("POST", path_of("jobs", _job_id(job), "resume")))

    def wait(
        self, job: str | Job, *, on_event: Callable[[Document], object] | None = None, timeout: float | None = None
    ) -> Job:
        """Follow a job to its end, through lost connections and restarts of the service.

        Args:
            on_event: called with each event, once and in order.
            timeout: in seconds; by default there is no limit, except `UNREACHABLE_SECONDS` without the service.

        Raises:
            JobFailed, JobCancelled: the job ended so.
            TimedOut: the job did not end within `timeout`.
            ConnectionFailed: the service could not be reached for `UNREACHABLE_SECONDS`.
        """
        return follow(self._connection, _job_id(job), on_event, timeout)

    def models(self) -> Iterator[Document]:
        """Return every model."""
        return self._connection.pages("models")

    def model(self, name: str) -> Document:
        """Return a model with its versions and aliases."""
        return self._connection.call("GET", path_of("models", name))

    def delete_model(self, name: str) -> None:
        """Remove a model with every version."""
        self._connection.call("DELETE", path_of("models", name))

    def version(self, ref: str) -> Document:
        """Return a version: "iris" (the default one), "iris@3" or "iris@champion"."""
        return self._connection.call("GET", self._version_path(ref))

    def delete_version(self, ref: str, *, force: bool = False) -> None:
        """Remove a version; with `force` also the default one, or one that an alias points at."""
        self._connection.call("DELETE", self._version_path(ref), params={"force": "true"} if force else {})

    def alias(self, name: str, alias: str, version: int) -> Document:
        """Point an alias at a version and return the model; the bare name of a model means the alias "default"."""
        path, body = path_of("models", name, "aliases", alias), json_body({"version": version})
        return self._connection.call("PUT", path, body=body, is_repeatable=True)

    def history(self, name: str, alias: str = "default") -> list[Document]:
        """Return every change of an alias, newest first."""
        return list(self._connection.pages(path_of("models", name, "aliases", alias, "history")))

    def rollback(self, name: str, alias: str = "default") -> Document:
        """Point an alias back at the version that it pointed at before, and return the model."""
        return self._connection.call("POST", path_of("models", name, "aliases", alias, "rollback"))

    def export(self, ref: str, path: FilePath, *, format: str = "keras") -> Path:
        """Write a version to a file and return its path; the file appears when it is complete."""
        target = Path(path)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        content = self._connection.download(f"{self._version_path(ref)}/export", {"format": format})
        try:
            with part.open("wb") as file:
                file.writelines(content)
            return part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def evaluate(
        self,
        ref: str,
        *,
        dataset: str | Dataset | None = None,
        data: Mapping[str, object] | None = None,
        file: FilePath | None = None,
        by: str | None = None,
    ) -> Document:
        """Score a version on labelled rows: a data set, data in a JSON form, or a file.

        Args:
            by: a column; the answer then has the figures for each of its values too.
        """
        if file is None:
            body = json_body(_training_data(dataset, data))
        elif dataset is None and data is None:
            body = labelled_rows_body(file)
        else:
            raise TypeError("expected exactly one of dataset, data and file, got several")
        path, params = path_of("models", ref, "evaluate"), {} if by is None else {"by": by}
        return self._connection.call("POST", path, body=body, params=params, is_repeatable=True)

    def predict(
        self,
        ref: str,
        *,
        records: Sequence[Mapping[str, object]] | None = None,
        rows: Any = None,
        columns: Mapping[str, object] | None = None,
        csv: str | bytes | None = None,
        top_k: int | None = None,
    ) -> Prediction:
        """Classify rows, passed in exactly one of four forms; None is a missing value.

        Args:
            records: a mapping from column to value for each row.
            rows: lists, or an array, of values in the order of the version's inputs.
            columns: a list, or an array, of values for each column.
            csv: the text of a CSV file with a header row.
            top_k: return this number of classes for each row, the best first, in place of all probabilities.
        """
        forms = {"records": records, "x": rows, "columns": columns, "csv": csv}
        passed = {name: value for name, value in forms.items() if value is not None}
        if len(passed) != 1:
            raise TypeError(f"expected exactly one of records, rows, columns and csv, got {len(passed)}")
        content = csv.encode() if isinstance(csv, str) else csv
        body = json_body(passed) if content is None else Body(content, CSV)
        path, params = path_of("models", ref, "predict"), {} if top_k is None else {"top_k": str(top_k)}
        document = self._connection.call("POST", path, body=body, params=params, is_repeatable=True)
        return Prediction.from_document(document)

    def system(self) -> Document:
        """Return the versions, devices, limits, queue depth and workers of the service."""
        return self._connection.call("GET", "system")

    def is_ready(self) -> bool:
        """Return whether the service is there and takes requests; asks once."""
        return self._connection.is_ready()

    def _version_path(self, ref: str) -> str:
        name, _, version = ref.partition("@")
        if not version.isdecimal():
            model = self.model(name)
            number = model["aliases"].get(version) if version else model["default_version"]
            if number is None:
                raise NotFound(404, "not_found", f"There is no version {ref!r}.")
            version = str(number)
        return path_of("models", name, "versions", version)


def _training_data(dataset: str | Dataset | None, data: Mapping[str, object] | None) -> dict[str, object]:
    if (dataset is None) == (data is None):
        raise TypeError(f"expected exactly one of dataset and data, got {'neither' if data is None else 'both'}")
    if data is not None:
        return {"data": data}
    return {"dataset": dataset.id if isinstance(dataset, Dataset) else dataset}


def _job_id(job: str | Job) -> str:
    return job.id if isinstance(job, Job) else job
