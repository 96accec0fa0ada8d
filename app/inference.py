"""Predictions: versions loaded, verified and ready to answer. Knows nothing of HTTP or of how they were trained."""

from __future__ import annotations

import importlib
import logging
import shutil
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.errors import Corrupt, Invalid, Unavailable
from app.learning import metrics
from app.learning.artifact import Artifact
from app.learning.encoder import MAX_WARNINGS, Note, records_cells, table_cells
from app.learning.network import OnnxRuntime, Runtime
from app.learning.table import Table, match_labels
from app.registry import Ref, Registry, Version

logger = logging.getLogger(__name__)

#: what the stored golden probabilities and another machine's may differ by
GOLDEN_TOLERANCE = 1e-5
#: rows that are encoded and computed at once
SLICE_ROWS = 8192


@dataclass(frozen=True)
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
class Prediction:
    """What a version says about n rows: probabilities float32 (n, k), and at most 100 warnings."""

    loaded: Loaded
    probabilities: NDArray[np.float32]
    notes: Sequence[Note]

    @property
    def labels(self) -> list[Any]:
        """The most probable class of each row."""
        classes = self.loaded.artifact.classes
        return [classes[i] for i in self.probabilities.argmax(axis=1).tolist()]

    def top(self, k: int) -> list[list[dict[str, Any]]]:
        """Give the k most probable classes of each row, best first."""
        classes = self.loaded.artifact.classes
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [
            [{"class": classes[i], "probability": row[i]} for i in best.tolist()]
            for best, row in zip(order, self.probabilities, strict=True)
        ]


class Inference:
    """Loads versions on first use, keeps the recently used, and computes.

    Args:
        serve_on: "cpu", "gpu", or "auto": a GPU where there is one.
        max_bytes: memory for kept versions; the least recently used go first.
    """

    def __init__(self, registry: Registry, serve_on: Literal["auto", "cpu", "gpu"], max_bytes: int) -> None:
        self._registry = registry
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._known: dict[Ref, Version] = {}
        # one load at a time; what is loaded is looked up meanwhile
        self._loading = threading.Lock()
        self._keeping = threading.Lock()
        self.gpus = gpus()
        self.serves_on_gpu = serve_on == "gpu" or (serve_on == "auto" and bool(self.gpus))

    def get(self, ref: Ref) -> Loaded:
        """Give the version that a reference means now, loaded.

        Where the database cannot be asked, what it last said stands.

        Raises:
            NotFound: there is none.
            Corrupt: its files are not the published ones, or do not give their golden predictions.
        """
        try:
            version = self._registry.resolve(ref)
        except Unavailable:
            with self._keeping:
                if ref not in self._known:
                    raise
                version = self._known[ref]
        else:
            with self._keeping:
                self._known[ref] = version
        try:
            return self._find(version) or self._load(version)
        except Corrupt as error:
            # one that was deleted meanwhile is not found; one that is there is broken
            self._registry.get_version(version.model, version.version)
            raise Corrupt(f"{version.model}@{version.version}: {error.message}") from error

    def forget(self, versions: Sequence[Version]) -> None:
        """Drop versions that were deleted; requests that hold them end first."""
        gone = {version.key for version in versions}
        with self._keeping:
            for key in gone:
                self._loaded.pop(key, None)
            self._known = {ref: version for ref, version in self._known.items() if version.key not in gone}

    def predict(self, loaded: Loaded, columns: Mapping[str, Sequence[Any]], rows: int) -> Prediction:
        """Predict posted rows.

        Args:
            columns: n posted values by column name; unknown names are ignored with a warning.

        Raises:
            Invalid: a value of the wrong type, or a missing one that the model refuses; says row and column.
        """
        encoder = loaded.artifact.encoder
        notes: list[Note] = []
        x = encoder.encode(records_cells(encoder, columns, rows), notes)
        known = {each.name for each in encoder.inputs} | {loaded.target}
        notes += [Note(0, name, "unknown_column") for name in columns if name not in known]
        return Prediction(loaded, loaded.runtime.probabilities(x), notes)

    def evaluate(self, loaded: Loaded, table: Table) -> metrics.Evaluation:
        """Score a version on a labelled table; rows without a label are left out.

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
        cells = table_cells(artifact.encoder, table)
        parts = []
        for start in range(0, len(rows), SLICE_ROWS):
            chosen = rows[start : start + SLICE_ROWS]
            x = artifact.encoder.encode({name: values[chosen] for name, values in cells.items()})
            parts.append(loaded.runtime.logits(x))
        return metrics.evaluate(
            np.concatenate(parts),
            y[rows],
            label_smoothing=artifact.training["spec"]["fit"]["label_smoothing"],
            penalty=artifact.architecture.penalty(artifact.weights),
        )

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
            artifact = self._registry.load(version)
            loaded = Loaded(
                version, artifact, self._runtime(artifact), sum(w.nbytes for w in artifact.weights.values())
            )
            self._verify(loaded)
            with self._keeping:
                self._loaded[version.key] = loaded
                while len(self._loaded) > 1 and sum(v.size_bytes for v in self._loaded.values()) > self._max_bytes:
                    self._loaded.popitem(last=False)
        logger.info("version loaded", extra={"model": version.model, "version": version.version})
        return loaded

    def _runtime(self, artifact: Artifact) -> Runtime:
        if not self.serves_on_gpu:
            return OnnxRuntime(artifact.architecture, artifact.weights)
        # Keras is imported where there is a GPU to use and nowhere else
        fit = importlib.import_module("app.learning.fit")
        runtime: Runtime = fit.KerasRuntime(artifact.architecture, artifact.weights, "gpu:0")
        return runtime

    def _verify(self, loaded: Loaded) -> None:
        golden = loaded.artifact.golden
        names = list(golden["records"][0])
        columns = {name: [record[name] for record in golden["records"]] for name in names}
        found = self.predict(loaded, columns, len(golden["records"])).probabilities
        if not np.abs(found - np.array(golden["probabilities"], np.float32)).max() <= GOLDEN_TOLERANCE:
            raise Corrupt(f"Version {loaded.version.version} does not reproduce its golden predictions.")


def shown_notes(notes: Sequence[Note]) -> tuple[list[dict[str, Any]], int]:
    """Give at most 100 warnings as plain JSON, in order of rows, and how many there are in all."""
    ordered = sorted(notes, key=lambda note: note.row)[:MAX_WARNINGS]
    return [{"row": n.row, "column": n.column, "code": n.code} for n in ordered], len(notes)


def gpus() -> list[dict[str, Any]]:
    """Ask the driver for its GPUs: name and memory in bytes; none where there is no driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (subprocess.SubprocessError, OSError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in lines]
    return [{"id": f"gpu:{row[0]}", "name": row[1], "memory_bytes": int(row[2]) * 1024**2} for row in rows]
