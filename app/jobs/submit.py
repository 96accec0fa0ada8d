"""Submitting a training job: its specification is settled for a table, and described where nothing is to be stored."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import cast

from app.errors import Invalid, TooLarge
from app.learning.spec import TrainSpec
from app.learning.tables.table_file import TableFile
from app.learning.training.dry_run import Estimate, estimate, examine
from app.learning.training.resolve_spec import Limits, Resolved, resolve
from app.learning.training.start_from import adopt
from app.records.dataset import Dataset, ParsedTable
from app.records.job import Job, JobSpec, NewJob
from app.records.ref import Ref
from app.records.rooms import Rooms
from app.records.version import Version

#: the members of a job's `spec` that are not part of the specification
_BESIDE_SPEC = ("dataset", "columns", "auto", "estimate")


@dataclass(frozen=True)
class Submission:
    """A specification settled for a table, ready to become a job.

    Args:
        validation_table_key: the table to validate on, where the specification names a data set for that.
        estimate: of the job's `seconds`, `memory_bytes` and `steps`.
    """

    resolved: Resolved
    validation_table_key: str | None
    estimate: Estimate

    def new_job(self, model: str, dataset: Dataset) -> NewJob:
        """Return what a job is made of, once the table is a data set."""
        spec = {
            "dataset": dataset.id,
            **self.resolved.document(),
            "columns": list(self.resolved.columns),
            "auto": list(self.resolved.auto),
            "estimate": self.estimate,
        }
        return NewJob(
            model,
            dataset.id,
            dataset.table_key,
            self.validation_table_key,
            cast(JobSpec, spec),
            self.resolved.warnings,
        )


def spec_of(job: Job) -> TrainSpec:
    """Return the specification that a job was submitted with, resolved."""
    return TrainSpec.model_validate({name: value for name, value in job.spec.items() if name not in _BESIDE_SPEC})


def settle(rooms: Rooms, table: Dataset | ParsedTable, spec: TrainSpec, limits: Limits) -> Submission:
    """Settle a specification for a table, and refuse what cannot train before anything is stored.

    Raises:
        Invalid, TooLarge: the specification or the data cannot be used; says which and why.
        NotFound: there is no such validation data set, or no such version to start from.
    """
    _check_device(rooms.workers.devices(), spec.device)
    start = None if spec.start_from is None else rooms.registry.resolve(Ref.parse(spec.start_from))
    if start is not None:
        spec = _adopted(spec, start, table)
    resolved = resolve(spec, table.columns, table.rows, table.default_target, limits)
    if start is not None:
        # the network is the version's, whatever this table's statistics say of its size
        resolved = replace(resolved, width=start.document["features"], parameters=start.document["parameters"])
    estimated = estimate(resolved.spec, table.rows, resolved.width, resolved.parameters, limits.encoded_bytes)
    submission = Submission(resolved, _validation_table_key(rooms, resolved), estimated)
    if estimated["memory_bytes"] > limits.memory_bytes:
        raise TooLarge(
            f"Expected a job of at most {_mb(limits.memory_bytes)} MB of memory, got one that is estimated to need "
            f"{_mb(estimated['memory_bytes'])} MB: a smaller network or batch needs less."
        )
    return submission


def _check_device(devices: Collection[str], asked: str) -> None:
    """Refuse a GPU that no living worker has; where no worker lives, a later one may have it."""
    has_it = asked in devices or (asked == "gpu" and any(device.startswith("gpu") for device in devices))
    if asked.startswith("gpu") and devices and not has_it:
        listed = " or ".join(sorted(devices))
        raise Invalid.at(("device",), f"Expected a device that a worker has, {listed}; got {asked!r}.")


def _adopted(spec: TrainSpec, start: Version, table: Dataset | ParsedTable) -> TrainSpec:
    """Return a specification with the features and layers of the version that it starts from."""
    ref = f"{start.model}@{start.version}"
    inputs = [column["name"] for column in start.document["inputs"]]
    spec = adopt(spec, ref, inputs, TrainSpec.model_validate(start.document["spec"]))
    names = {column["name"] for column in table.columns}
    absent = [name for name in (str(spec.target), *inputs) if name not in names]
    if absent:
        raise Invalid.at(("start_from",), f"Expected the columns of {ref}, got none named {absent[0][:80]!r}.")
    return spec


def _validation_table_key(rooms: Rooms, resolved: Resolved) -> str | None:
    """Return the table of the data set that the specification validates on; refuse one that lacks columns."""
    validation = resolved.spec.validation
    if validation is None or validation.dataset is None:
        return None
    dataset = rooms.datasets.get_ready(validation.dataset)
    names = {column["name"] for column in dataset.columns}
    missing = [name for name in (str(resolved.spec.target), *resolved.columns) if name not in names]
    if missing:
        raise Invalid.at(("validation", "dataset"), f"Data set {dataset.id} has no column {missing[0]!r}.")
    return dataset.table_key


def _mb(size: float) -> int:
    return round(size / 1024**2)


def describe_dry_run(rooms: Rooms, table: Dataset | ParsedTable, submission: Submission) -> dict[str, object]:
    """Return what a training job would be: its settled specification, the table, and what looks odd about the table."""
    resolved = submission.resolved
    path = table.path if isinstance(table, ParsedTable) else rooms.datasets.path(table.table_key)
    target = str(resolved.spec.target)
    findings = examine(TableFile(path), target, resolved.columns)
    column_warnings = [
        f"column {column['name']!r}: {warning}"
        for column in table.columns
        if column["name"] in resolved.columns
        for warning in column["warnings"]
    ]
    return {
        "spec": resolved.document(),
        "rows": table.rows,
        "columns": table.columns,
        "target": target,
        "features": list(resolved.columns),
        "classes": [{"class": label, "rows": count} for label, count in findings.classes],
        "warnings": [*table.warnings, *resolved.warnings, *column_warnings, *findings.warnings],
        "encoded_features": resolved.width,
        "parameters": resolved.parameters,
        "estimate": submission.estimate,
    }
