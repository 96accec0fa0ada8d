"""The Python client of the REST API. It needs httpx alone, so a copy of this folder works in any project.

    with Client() as client:
        dataset = client.upload("penguins.csv")
        job = client.wait(client.train("penguins", dataset=dataset, target="species"), on_event=print)
        client.predict(job.ref, records=[{"island": "Biscoe", "bill_length_mm": 50.4}]).predictions

It raises `FitserveError`, or TypeError and ValueError for a wrong call; `errors.py` draws the tree of errors. The package
imports nothing else of fitserve. Start reading at `client.py`, which has a method for each operation.
"""

from .client import Client
from .errors import (
    ApiError,
    Conflict,
    ConnectionFailed,
    FitserveError,
    Invalid,
    JobCancelled,
    JobFailed,
    NotFound,
    Overloaded,
    TimedOut,
    TooLarge,
    Unauthorized,
    UploadFailed,
)
from .records import Dataset, Document, Job, Prediction

__all__ = [
    "ApiError",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "Dataset",
    "Document",
    "FitserveError",
    "Invalid",
    "Job",
    "JobCancelled",
    "JobFailed",
    "NotFound",
    "Overloaded",
    "Prediction",
    "TimedOut",
    "TooLarge",
    "Unauthorized",
    "UploadFailed",
]
