"""Versions in memory: loaded on first use, verified, and put out by use. Knows nothing of HTTP, or of how they predict."""

from __future__ import annotations

import importlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from app.errors import Corrupt, Unavailable
from app.learning.artifact.artifact import Artifact
from app.learning.network.device_choice import CpuOrGpuRuntime
from app.learning.network.onnx_network import OnnxRuntime
from app.learning.network.runtime import Runtime
from app.learning.requests.prediction_rows import Rows
from app.records.ref import Ref
from app.records.registry import Registry
from app.records.version import Version
from app.serving.predictor import LoadedVersion
from app.system.machine import gpus

logger = logging.getLogger(__name__)

#: what the stored golden probabilities and another machine's may differ by
GOLDEN_TOLERANCE = 1e-5


@dataclass(frozen=True)
class _Known:
    """The version that a reference meant when the database had this stamp; None where it was just changing."""

    version: Version
    stamp: object


class VersionCache:
    """Loads versions on first use, and keeps the recently used.

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
        self._loaded: OrderedDict[str, LoadedVersion] = OrderedDict()
        self._known: dict[Ref, _Known] = {}
        self._broken: set[str] = set()
        # one load at a time; what is loaded is looked up meanwhile
        self._loading = threading.Lock()
        self._keeping = threading.Lock()
        self.gpus = gpus()
        self.serves_on_gpu = serve_on == "gpu" or (serve_on == "auto" and bool(self.gpus))

    def get(self, ref: Ref) -> LoadedVersion:
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

    def known(self, ref: Ref) -> LoadedVersion | None:
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

    def last_known(self, ref: Ref) -> LoadedVersion | None:
        """Give the version that a reference last meant where it is in memory, else None."""
        known = self._known.get(ref)
        return None if known is None else self._find(known.version)

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

    def unload(self, model: str) -> None:
        """Free a model's versions; requests that hold them end first, and the next one loads what it needs."""
        with self._keeping:
            for key in [key for key, each in self._loaded.items() if each.version.model == model]:
                del self._loaded[key]

    def devices(self) -> list[dict[str, Any]]:
        """Say which loaded version computes where."""
        with self._keeping:
            loaded = list(self._loaded.values())
        return [_shown(each) for each in loaded]

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

    def _find(self, version: Version) -> LoadedVersion | None:
        with self._keeping:
            if version.key in self._loaded:
                self._loaded.move_to_end(version.key)
            return self._loaded.get(version.key)

    def _load(self, version: Version) -> LoadedVersion:
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

    def _open(self, version: Version) -> LoadedVersion:
        artifact = self._registry.load(version)
        size = sum(w.nbytes for w in artifact.weights.values())
        loaded = LoadedVersion(version, artifact, self._runtime(artifact), size, self._max_cells)
        _verify(loaded)
        return loaded

    def _runtime(self, artifact: Artifact) -> Runtime:
        cpu = OnnxRuntime(artifact.architecture, artifact.weights)
        if not self.serves_on_gpu:
            return cpu
        # Keras is imported where there is a GPU to use and nowhere else
        keras_network = importlib.import_module("app.learning.network.keras_network")
        gpu: Runtime = keras_network.KerasRuntime(artifact.architecture, artifact.weights, "gpu:0")
        return CpuOrGpuRuntime.measure(cpu, gpu, artifact.architecture.inputs)


def _shown(loaded: LoadedVersion) -> dict[str, Any]:
    version, runtime = loaded.version, loaded.runtime
    shown = {
        "model": version.model,
        "version": version.version,
        "device": runtime.device,
        "library": runtime.library,
    }
    if isinstance(runtime, CpuOrGpuRuntime):
        shown["gpu_from_rows"] = None if runtime.device == "cpu" else runtime.cpu_rows + 1
        shown["timings"] = [timing._asdict() for timing in runtime.timings]
    return shown


def _verify(loaded: LoadedVersion) -> None:
    golden = loaded.artifact.golden
    rows = Rows(golden.columns, len(golden.records))
    runtime = loaded.runtime
    for each in (runtime.cpu, runtime.gpu) if isinstance(runtime, CpuOrGpuRuntime) else (runtime,):
        found = replace(loaded, runtime=each).predict(rows).probabilities
        if not golden.difference(found) <= GOLDEN_TOLERANCE:
            raise Corrupt(f"Version {loaded.version.version} does not reproduce its golden predictions.")
