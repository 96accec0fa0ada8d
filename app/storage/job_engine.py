"""DBOS, the durable job engine, with its pickles refused. Import DBOS from here and from nowhere else.

DBOS takes 25 MB and a third of a second to import. The API imports this module when a request or a sweep first needs it.
"""

from __future__ import annotations

from typing import NoReturn

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer, WorkflowSerializationFormat
from dbos._serialization import DefaultSerializer

__all__ = [
    "APPLICATION",
    "DBOS",
    "ENGINE_VERSION",
    "PORTABLE",
    "QUEUE",
    "WORKFLOW",
    "DBOSClient",
    "DBOSConfig",
    "WorkflowSerializationFormat",
]

APPLICATION = "fitserve"
QUEUE = "train"
WORKFLOW = "train"
#: a worker recovers only work of its own version: change it when the steps of the workflow change
ENGINE_VERSION = "1"
#: the one form in which the API and the worker write and read the engine's rows
PORTABLE = DBOSPortableJSONSerializer()


def _refuse(*_: object, **__: object) -> NoReturn:
    """Raise `ValueError` where DBOS would unpickle a value."""
    raise ValueError("Expected portable JSON in the job engine's tables, got a pickle; it was not loaded.")


# DBOS reads each row in the format that the row itself names, and unpickles "py_pickle" whatever serializer DBOS was
# given. No setting turns that off, and anybody who can write a row could run code. So this replaces DBOS's one call of
# `pickle.loads`.
DefaultSerializer.deserialize = _refuse  # type: ignore[method-assign]
