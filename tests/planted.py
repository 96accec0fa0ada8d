"""Rows in the job engine's tables whose pickles run code when somebody loads them."""

from __future__ import annotations

import base64
import os
import pickle
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class _MakeFolder:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self._path,)


@dataclass(frozen=True)
class Plot:
    """Plants rows in a SQLite database.

    Args:
        traces: an empty folder, in which each pickle that is loaded makes a folder.
    """

    database_file: Path
    traces: Path

    @property
    def ran(self) -> list[str]:
        """The names of the pickles whose code has run."""
        return sorted(path.name for path in self.traces.iterdir())

    def pickle(self, name: str) -> str:
        """Return a pickle in the form in which DBOS stores one; its code leaves a trace of this name."""
        return base64.b64encode(pickle.dumps(_MakeFolder(self.traces / name))).decode()

    def insert(self, table: str, **values: Any) -> None:
        """Insert a row, in place of one with the same key."""
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        self.execute(f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})", *values.values())

    def execute(self, statement: str, *parameters: Any) -> None:
        """Run one statement and commit."""
        with closing(sqlite3.connect(self.database_file, timeout=30)) as database:
            database.execute(statement, parameters)
            database.commit()

    def work(self, workflow_id: str, **values: Any) -> None:
        """Plant work that a worker takes, whose arguments are a pickle unless `inputs` says otherwise."""
        row = {"status": "ENQUEUED", "name": "train", "queue_name": "train", "application_version": "1"}
        row |= {"serialization": "py_pickle", "inputs": self.pickle(workflow_id), **values}
        self.insert("workflow_status", workflow_uuid=workflow_id, **row)

    def everywhere(self) -> None:
        """Plant a pickle in each column that DBOS reads, of work that nobody runs and of work that a worker takes."""
        ended = {"queue_name": None, "inputs": None}
        self.work("inputs", status="SUCCESS", queue_name=None)
        self.work("output", status="SUCCESS", output=self.pickle("output"), **ended)
        self.work("error", status="ERROR", error=self.pickle("error"), **ended)
        self.work("input_table", status="SUCCESS", **ended)
        self.insert("workflow_input", workflow_uuid="input_table", inputs=self.pickle("input_table"))
        self.work("output_table", status="SUCCESS", **ended)
        self.insert("workflow_output", workflow_uuid="output_table", output=self.pickle("output_table"))
        for column in ("output", "error"):
            self.work(f"step_{column}", status="PENDING", **ended)
            self.step(f"step_{column}", **{column: self.pickle(f"step_{column}")})
        self.work("event", status="SUCCESS", **ended)
        value = {"workflow_uuid": "event", "key": "key", "serialization": "py_pickle"}
        self.insert("workflow_events", value=self.pickle("event"), **value)
        self.insert("workflow_events_history", value=self.pickle("history"), function_id=1, **value)
        self.insert("streams", value=self.pickle("stream"), function_id=1, offset=0, **value)
        message = {
            "destination_uuid": "event",
            "topic": "topic",
            "message": self.pickle("message"),
            "message_uuid": "1",
        }
        self.insert("notifications", serialization="py_pickle", created_at_epoch_ms=0, **message)
        schedule = {
            "schedule_id": "1",
            "schedule_name": "schedule",
            "workflow_name": "train",
            "schedule": "* * * * * *",
        }
        self.insert("workflow_schedules", context=self.pickle("schedule"), **schedule)
        self.work("queued")
        self.work("queued_internally", queue_name="_dbos_internal_queue")
        self.work("recovered", status="PENDING", executor_id="worker")
        self.work("of_no_name", serialization=None)

    def step(self, workflow_id: str, **values: str) -> None:
        """Plant the recorded result of the one step of a job's work."""
        row = {"workflow_uuid": workflow_id, "function_id": 1, "function_name": "run", "serialization": "py_pickle"}
        self.insert("operation_outputs", **row, **values)
