"""What the client raises, beside TypeError and ValueError for a wrong call.

FitserveError
├── ApiError            an error answer: status, code, detail, errors, request_id
│   ├── Unauthorized    401, 403
│   ├── NotFound        404
│   ├── Conflict        409
│   ├── TooLarge        411, 413
│   ├── Invalid         400, 415, 422
│   └── Overloaded      429, 503; the client repeats the request first where that is safe
├── ConnectionFailed    no answer; also a ConnectionError
├── TimedOut            `Client.wait` had less time than the job took; also a TimeoutError
├── UploadFailed        the service could not read a large upload: dataset
├── JobFailed           the job ended with an error: job, code, message
└── JobCancelled        the job was cancelled: job
"""

from __future__ import annotations

from collections.abc import Sequence

from .records import Dataset, Document, Job


class FitserveError(Exception):
    """The root of every error of this client."""


class ApiError(FitserveError):
    """The service answered with an error; `errors` has one entry for each fault, with `loc`, `message` and `code`."""

    def __init__(
        self, status: int, code: str, detail: str, errors: Sequence[Document] = (), request_id: str = ""
    ) -> None:
        super().__init__(f"{detail} ({status} {code})")
        self.status, self.code, self.detail, self.errors, self.request_id = status, code, detail, errors, request_id


class Unauthorized(ApiError):
    """The service needs a key, or refuses this key or Host."""


class NotFound(ApiError):
    """The service has no such thing."""


class Conflict(ApiError):
    """The present state of the service does not allow the request."""


class TooLarge(ApiError):
    """The request is over a limit of the service."""


class Invalid(ApiError):
    """The service cannot read the request, or the request is wrong; `errors` says where."""


class Overloaded(ApiError):
    """The service cannot take the request now: a queue is full, or the service is starting or stopping."""


class ConnectionFailed(FitserveError, ConnectionError):
    """No answer came from the service."""


class TimedOut(FitserveError, TimeoutError):
    """The job did not end within the given time; the job goes on."""


class UploadFailed(FitserveError):
    """The service accepted an upload, and then could not read it as a table."""

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


#: the error of each status; any other error status is a plain `ApiError`
ERROR_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    411: TooLarge,
    413: TooLarge,
    415: Invalid,
    422: Invalid,
    429: Overloaded,
    503: Overloaded,
}
