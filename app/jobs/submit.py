"""Where rooms and learning meet: submitting a training job, and publishing what it made."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, cast

from app.errors import Invalid, TooLarge
from app.learning.spec import TrainSpec
from app.learning.tables.table_file import TableFile
from app.learning.training.dry_run import estimate, examine
from app.learning.training.resolve_spec import Limits, Resolved, adopt, resolve
from app.records.dataset import Dataset, ParsedTable
from app.records.job import JobSpec, NewJob
from app.records.registry import Ref, Version
from app.records.rooms import Rooms

#: what a job keeps in its specification beside what was asked
CHOSEN = ("dataset", "columns", "auto", "estimate")


@dataclass(frozen=True)
class Prepared:
    """A specification settled for a table, and the table to validate on."""

    resolved: Resolved
    validation_table_key: str | None
    estimate: dict[str, Any]

    def job(self, model: str, dataset: Dataset) -> NewJob:
        """Give what a job is made of, once the table is a data set."""
        chosen = {
            "columns": list(self.resolved.columns),
            "auto": list(self.resolved.auto),
            "estimate": self.estimate,
        }
        own = {"dataset": dataset.id, **self.resolved.document(), **chosen}
        spec = cast(JobSpec, own)
        return NewJob(model, dataset.id, dataset.table_key, self.validation_table_key, spec, self.resolved.warnings)


def prepare(rooms: Rooms, table: Dataset | ParsedTable, spec: TrainSpec, limits: Limits) -> Prepared:
    """Settle a specification for a table; what cannot train is refused here, before anything is stored.

    Raises:
        Invalid, TooLarge: the specification or the data cannot be used; says which and why.
        NotFound: there is no such validation data set.
    """
    _check_device(rooms.workers.devices(), spec.device)
    origin = None if spec.start_from is None else rooms.registry.resolve(Ref.parse(spec.start_from))
    if origin is not None:
        spec = _adopted(spec, origin, table)
    resolved = resolve(spec, table.columns, table.rows, table.default_target, limits)
    if origin is not None:
        # its network is there, whatever this table's statistics say of one
        width, parameters = (origin.document[name] for name in ("features", "parameters"))
        resolved = replace(resolved, width=width, parameters=parameters)
    validation_key = None
    if resolved.spec.validation is not None and resolved.spec.validation.dataset is not None:
        other = rooms.datasets.get_ready(resolved.spec.validation.dataset)
        names = {column["name"] for column in other.columns}
        missing = [name for name in (str(resolved.spec.target), *resolved.columns) if name not in names]
        if missing:
            raise Invalid.at(("validation", "dataset"), f"Data set {other.id} has no column {missing[0]!r}.")
        validation_key = other.table_key
    foreseen = estimate(resolved.spec, table.rows, resolved.width, resolved.parameters, limits.encoded_bytes)
    if foreseen["memory_bytes"] > limits.memory_bytes:
        raise TooLarge(
            f"Expected a job of at most {_mb(limits.memory_bytes)} MB of memory, got one that is estimated to need "
            f"{_mb(foreseen['memory_bytes'])} MB: a smaller network or batch needs less."
        )
    return Prepared(resolved, validation_key, foreseen)


def _check_device(there: Collection[str], asked: str) -> None:
    """Refuse a GPU that no worker has; where no worker lives, one that will may have it."""
    is_there = asked in there or (asked == "gpu" and any(device.startswith("gpu") for device in there))
    if asked.startswith("gpu") and there and not is_there:
        raise Invalid.at(("device",), f"Expected a device that a worker has, {_listed(there)}; got {asked!r}.")


def _listed(names: Collection[str]) -> str:
    return " or ".join(sorted(names))


def _mb(size: float) -> int:
    return round(size / 1024**2)


def _adopted(spec: TrainSpec, origin: Version, table: Dataset | ParsedTable) -> TrainSpec:
    ref = f"{origin.model}@{origin.version}"
    inputs = [each["name"] for each in origin.document["inputs"]]
    spec = adopt(spec, ref, inputs, TrainSpec.model_validate(origin.document["spec"]))
    names = {column["name"] for column in table.columns}
    absent = [name for name in (str(spec.target), *inputs) if name not in names]
    if absent:
        raise Invalid.at(("start_from",), f"Expected the columns of {ref}, got none named {absent[0][:80]!r}.")
    return spec


def describe_dry_run(rooms: Rooms, table: Dataset | ParsedTable, prepared: Prepared) -> dict[str, Any]:
    """Tell what a training job would be: its settled specification, the table, and what looks odd about it."""
    resolved = prepared.resolved
    path = table.path if isinstance(table, ParsedTable) else rooms.datasets.path(table.table_key)
    target = str(resolved.spec.target)
    found = examine(TableFile(path), target, resolved.columns)
    doubts = [
        f"column {c['name']!r}: {text}"
        for c in table.columns
        if c["name"] in resolved.columns
        for text in c["warnings"]
    ]
    return {
        "spec": resolved.document(),
        "rows": table.rows,
        "columns": table.columns,
        "target": target,
        "features": list(resolved.columns),
        "classes": [{"class": label, "rows": count} for label, count in found.classes],
        "warnings": [*table.warnings, *resolved.warnings, *doubts, *found.warnings],
        "encoded_features": resolved.width,
        "parameters": resolved.parameters,
        "estimate": prepared.estimate,
    }
