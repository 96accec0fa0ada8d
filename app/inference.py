"""Predictions: versions loaded, verified and ready to answer. Knows nothing of HTTP or of how they were trained."""

from __future__ import annotations

import importlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.errors import Corrupt, Invalid, TooLarge, Unavailable
from app.learning import metrics
from app.learning.artifact import Artifact
from app.learning.cells import records_cells, table_cells
from app.learning.network import OnnxRuntime, Runtime
from app.learning.notes import MAX_WARNINGS, Faults, Notes
from app.learning.rows import Rows
from app.learning.table import Label, Table, match_labels
from app.machine import gpus
from app.registry import Ref, Registry, Version

logger = logging.getLogger(__name__)

#: what the stored golden probabilities and another machine's may differ by
GOLDEN_TOLERANCE = 1e-5
#: values of a column that an evaluation is divided by
MAX_SLICES = 100
#: rows that are encoded and computed at once
SLICE_ROWS = 8192


@dataclass(frozen=True, eq=False)
class Loaded:
    """A version in memory, verified on its golden rows."""

    version: Version
    artifact: Artifact
    runtime: Runtime
    size_bytes: int

    @property
    def target(self) -> str:
        """The column that the model predicts."""
        return str(self.artifact.training["spec"]["target"])


@dataclass(frozen=True)
class _Known:
    """The version that a reference meant when the database had this stamp; None where it was just changing."""

    version: Version
    stamp: object


@dataclass(frozen=True)
class Prediction:
    """What a version says about n rows.

    Args:
        probabilities: float32 (n, k).
        is_bad: bool (n,), rows that could not be read, whose probabilities mean nothing; None where all could.
    """

    loaded: Loaded
    probabilities: NDArray[np.float32]
    notes: Notes
    is_bad: NDArray[np.bool_] | None = None

    @property
    def classes(self) -> tuple[Label, ...]:
        """The classes, in the order of the probabilities."""
        return self.loaded.artifact.classes

    @property
    def labels(self) -> list[Label | None]:
        """The most probable class of each row; None where the row is bad."""
        best = self.probabilities.argmax(axis=1).tolist()
        if self.is_bad is None:
            return [self.classes[i] for i in best]
        return [None if bad else self.classes[i] for i, bad in zip(best, self.is_bad.tolist(), strict=True)]

    def best(self, k: int) -> NDArray[np.intp]:
        """Give the indices of the k most probable classes of each row, (n, min(k, classes)), best first."""
        order: NDArray[np.intp] = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return order


@dataclass(frozen=True)
class Scored:
    """A version's scores on a table, and on each slice of it: a value of the column, None for missing."""

    overall: metrics.Evaluation
    slices: tuple[tuple[Label | None, metrics.Evaluation], ...]


class Inference:
    """Loads versions on first use, keeps the recently used, and computes.

    Args:
        serve_on: "cpu", "gpu", or "auto": a GPU where there is one.
        max_bytes: memory for kept versions; the least recently used go first.
        max_cells: encoded features, or probabilities, of one prediction.
    """

    def __init__(
        self,
        registry: Registry,
        serve_on: Literal["auto", "cpu", "gpu"],
        max_bytes: int,
        max_cells: int = 10_000_000,
    ) -> None:
        self._registry = registry
        self._max_cells = max_cells
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._known: dict[Ref, _Known] = {}
        self._broken: set[str] = set()
        # one load at a time; what is loaded is looked up meanwhile
        self._loading = threading.Lock()
        self._keeping = threading.Lock()
        self.gpus = gpus()
        self.serves_on_gpu = serve_on == "gpu" or (serve_on == "auto" and bool(self.gpus))

    def get(self, ref: Ref) -> Loaded:
        """Give the version that a reference means now, loaded.

        The database is asked only where it has changed since it was last asked; where it cannot be, what it last said
        stands.

        Raises:
            NotFound: there is none.
            Corrupt: its files are not the published ones, or do not give their golden predictions.
        """
        stamp = self._registry.stamp()
        known = self._known.get(ref)
        version = known.version if known is not None and known.stamp == stamp else self._resolve(ref, stamp)
        try:
            return self._find(version) or self._load(version)
        except Corrupt as error:
            # one that was deleted meanwhile is not found; one that is there is broken
            self._registry.get_version(version.model, version.version)
            raise Corrupt(f"{version.model}@{version.version}: {error.message}") from error

    def known(self, ref: Ref) -> Loaded | None:
        """Give the version that a reference means now where memory alone can tell, else None; quick, and asks nobody."""
        known = self._known.get(ref)
        if known is None or known.stamp != self._registry.stamp():
            return None
        key = known.version.key
        try:
            # each of the two is one step to other threads: no lock is waited for on the event loop
            self._loaded.move_to_end(key)
            return self._loaded[key]
        except KeyError:
            return None

    def last_known(self, ref: Ref) -> Loaded | None:
        """Give the version that a reference last meant where it is in memory, else None."""
        known = self._known.get(ref)
        return None if known is None else self._find(known.version)

    def _resolve(self, ref: Ref, stamp: object) -> Version:
        try:
            version = self._registry.resolve(ref)
        except Unavailable:
            known = self._known.get(ref)
            if known is None:
                raise
            return known.version
        # what was read while somebody wrote is asked for again
        is_settled = self._registry.stamp() == stamp
        with self._keeping:
            self._known[ref] = _Known(version, stamp if is_settled else None)
        return version

    def is_broken(self, version: Version) -> bool:
        """Tell whether a version could not be loaded when it was last tried."""
        return version.key in self._broken

    def forget(self, versions: Sequence[Version]) -> None:
        """Drop versions that were deleted; requests that hold them end first."""
        gone = {version.key for version in versions}
        with self._keeping:
            self._broken -= gone
            for key in gone:
                self._loaded.pop(key, None)
            self._known = {ref: known for ref, known in self._known.items() if known.version.key not in gone}

    def most_rows(self, loaded: Loaded) -> int:
        """Give how many rows one prediction may have."""
        return self._max_cells // max(loaded.artifact.encoder.width, len(loaded.artifact.classes))

    def unload(self, model: str) -> None:
        """Free a model's versions; requests that hold them end first, and the next one loads what it needs."""
        with self._keeping:
            for key in [key for key, each in self._loaded.items() if each.version.model == model]:
                del self._loaded[key]

    def predict(self, loaded: Loaded, rows: Rows, *, skips_bad: bool = False) -> Prediction:
        """Predict posted rows; columns that the model does not know are ignored with a warning.

        Args:
            skips_bad: answer the other rows where one cannot be read.

        Raises:
            Invalid: a value of the wrong type, or a missing one that the model refuses; says row and column.
            TooLarge: so many rows of so many features or classes that they are better sent in parts.
        """
        encoder = loaded.artifact.encoder
        most = self.most_rows(loaded)
        if rows.count > most:
            raise TooLarge(f"Expected at most {most} rows for this model in one request, got {rows.count}.")
        notes, faults = Notes(), Faults()
        x = encoder.encode(records_cells(encoder, rows.columns, rows.count, faults), notes, faults)
        is_bad = None
        if not skips_bad:
            faults.check()
        elif faults.notes:
            is_bad = np.zeros(rows.count, np.bool_)
            faults.notes.mark(is_bad)
            notes = notes.without(is_bad)
            notes.extend(faults.notes)
        known = {each.name for each in encoder.inputs} | {loaded.target}
        for name in rows.columns:
            if name not in known:
                notes.add(name, "unknown_column", np.zeros(1))
        return Prediction(loaded, loaded.runtime.probabilities(x), notes, is_bad)

    def evaluate(self, loaded: Loaded, table: Table, by: str | None = None) -> Scored:
        """Score a version on a labelled table; rows without a label are left out.

        Args:
            by: a column whose values divide the rows into slices that are scored on their own.

        Raises:
            Invalid: the target or a needed column is absent, or holds labels that the model never saw.
        """
        artifact = loaded.artifact
        if loaded.target not in table.names:
            raise Invalid.at((loaded.target,), f"Expected the target column {loaded.target!r} in the data, got none.")
        y, strange = match_labels(table.column(loaded.target), artifact.classes)
        if strange:
            names = ", ".join(repr(label)[:40] for label in strange[:10])
            raise Invalid.at((loaded.target,), f"Expected labels that the model knows, got {names}.")
        rows = np.flatnonzero(y >= 0)
        if not len(rows):
            raise Invalid.at((loaded.target,), "Expected at least one labelled row, got none.")
        values, codes = _slices(table, by)
        cells = table_cells(artifact.encoder, table)
        parts = []
        for start in range(0, len(rows), SLICE_ROWS):
            chosen = rows[start : start + SLICE_ROWS]
            x = artifact.encoder.encode({name: values[chosen] for name, values in cells.items()})
            parts.append(loaded.runtime.logits(x))
        logits, truth, codes = np.concatenate(parts), y[rows], codes[rows]

        def score(chosen: Any) -> metrics.Evaluation:
            return metrics.evaluate(
                logits[chosen],
                truth[chosen],
                label_smoothing=artifact.training["spec"]["fit"]["label_smoothing"],
                penalty=artifact.architecture.penalty(artifact.weights),
            )

        present = [(value, codes == code) for code, value in enumerate(values, -1)]
        return Scored(score(slice(None)), tuple((value, score(is_in)) for value, is_in in present if is_in.any()))

    def devices(self) -> list[dict[str, Any]]:
        """Say which loaded version computes where."""
        with self._keeping:
            loaded = list(self._loaded.values())
        return [
            {
                "model": v.version.model,
                "version": v.version.version,
                "device": v.runtime.device,
                "library": v.runtime.library,
            }
            for v in loaded
        ]

    def _find(self, version: Version) -> Loaded | None:
        with self._keeping:
            if version.key in self._loaded:
                self._loaded.move_to_end(version.key)
            return self._loaded.get(version.key)

    def _load(self, version: Version) -> Loaded:
        with self._loading:
            if (found := self._find(version)) is not None:
                return found
            try:
                loaded = self._open(version)
            except Corrupt:
                self._broken.add(version.key)
                raise
            with self._keeping:
                self._broken.discard(version.key)
                self._loaded[version.key] = loaded
                while len(self._loaded) > 1 and sum(v.size_bytes for v in self._loaded.values()) > self._max_bytes:
                    self._loaded.popitem(last=False)
        logger.info("version loaded", extra={"model": version.model, "version": version.version})
        return loaded

    def _open(self, version: Version) -> Loaded:
        artifact = self._registry.load(version)
        size = sum(w.nbytes for w in artifact.weights.values())
        loaded = Loaded(version, artifact, self._runtime(artifact), size)
        self._verify(loaded)
        return loaded

    def _runtime(self, artifact: Artifact) -> Runtime:
        if not self.serves_on_gpu:
            return OnnxRuntime(artifact.architecture, artifact.weights)
        # Keras is imported where there is a GPU to use and nowhere else
        keras_network = importlib.import_module("app.learning.keras_network")
        runtime: Runtime = keras_network.KerasRuntime(artifact.architecture, artifact.weights, "gpu:0")
        return runtime

    def _verify(self, loaded: Loaded) -> None:
        golden = loaded.artifact.golden
        names = list(golden["records"][0])
        columns = {name: [record[name] for record in golden["records"]] for name in names}
        found = self.predict(loaded, Rows(columns, len(golden["records"]))).probabilities
        if not np.abs(found - np.array(golden["probabilities"], np.float32)).max() <= GOLDEN_TOLERANCE:
            raise Corrupt(f"Version {loaded.version.version} does not reproduce its golden predictions.")


def _slices(table: Table, by: str | None) -> tuple[list[Label | None], NDArray[np.int32]]:
    """Give the values of a column, None for missing first, and for each row the index of its value less 1."""
    if by is None:
        return [], np.zeros(table.rows, np.int32)
    if by not in table.names:
        raise Invalid.at(("by",), f"Expected a column of the data to slice by, got {by[:80]!r}.")
    values, codes = table.column(by).labels()
    if len(values) > MAX_SLICES:
        raise Invalid.at(("by",), f"Expected a column of at most {MAX_SLICES} values to slice by, got {len(values)}.")
    return [None, *values], codes


def shown_notes(notes: Notes) -> tuple[list[dict[str, Any]], int]:
    """Give at most 100 warnings as plain JSON, in order of rows, and how many there are in all."""
    return [asdict(note) for note in islice(notes, MAX_WARNINGS)], len(notes)
