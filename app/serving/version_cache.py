"""Versions in memory: loaded and checked on first use, and dropped when they were not used for longest.

Knows nothing of HTTP, or of how a version predicts.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NotRequired, TypedDict

from app.errors import Corrupt, Unavailable
from app.learning.artifact.artifact import Artifact
from app.learning.network.device_choice import CpuOrGpuRuntime
from app.learning.network.runtime import Runtime
from app.learning.requests.prediction_rows import Rows
from app.records.ref import Ref
from app.records.registry import Registry
from app.records.version import Version
from app.serving.predictor import LoadedVersion
from app.system.machine import gpus

logger = logging.getLogger(__name__)

#: largest difference between a version's stored golden probabilities and those that this machine computes
GOLDEN_TOLERANCE = 1e-5


class LoadedDescription(TypedDict):
    """Where a version in memory computes, as clients read it.

    Args:
        gpu_from_rows: the fewest rows that the GPU computes; None where the CPU is never slower.
        timings: what the choice between CPU and GPU was made by.
    """

    model: str
    version: int
    device: str
    library: str
    gpu_from_rows: NotRequired[int | None]
    timings: NotRequired[Sequence[Mapping[str, float]]]


@dataclass(frozen=True)
class _Resolved:
    """The version that a reference meant when the database had this stamp; the stamp is None where it just changed."""

    version: Version
    stamp: object


class VersionCache:
    """Loads versions on first use, and keeps those that were used last.

    Args:
        serve_on: "cpu", "gpu", or "auto": a GPU where there is one.
        max_bytes: memory for the weights of kept versions; the version that was not used for longest goes first.
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
        #: by key of the version, the one that was used last at the end
        self._loaded: OrderedDict[str, LoadedVersion] = OrderedDict()
        self._resolved: dict[Ref, _Resolved] = {}
        #: keys of versions that could not be loaded
        self._broken: set[str] = set()
        # one version is loaded at a time; other requests meanwhile find the loaded ones
        self._loading = threading.Lock()
        self._keeping = threading.Lock()
        self.gpus = gpus()
        self.serves_on_gpu = serve_on == "gpu" or (serve_on == "auto" and bool(self.gpus))

    def get(self, ref: Ref) -> LoadedVersion:
        """Return the version that a reference means now, loaded.

        The database resolves the reference only where something was committed since the last time. Where the database
        is away, the last known version is used.

        Raises:
            NotFound: there is no such version.
            Corrupt: its files are not the published ones, or do not give their golden predictions.
        """
        stamp = self._registry.stamp()
        resolved = self._resolved.get(ref)
        is_current = resolved is not None and resolved.stamp == stamp
        version = resolved.version if resolved is not None and is_current else self._resolve(ref, stamp)
        try:
            return self._find(version) or self._load(version)
        except Corrupt as error:
            # raises `NotFound` for a version that was deleted meanwhile, whose files are gone
            self._registry.get_version(version.model, version.version)
            raise Corrupt(f"{version.model}@{version.version}: {error.message}") from error

    def find_now(self, ref: Ref) -> LoadedVersion | None:
        """Return the version that a reference means now, or None where only the database can say or the version is not loaded.

        Quick, and waits for no lock: for the event loop.
        """
        resolved = self._resolved.get(ref)
        if resolved is None or resolved.stamp != self._registry.stamp():
            return None
        key = resolved.version.key
        try:
            # each of the two is one step to other threads, so that no lock is needed
            self._loaded.move_to_end(key)
            return self._loaded[key]
        except KeyError:
            return None

    def find_last(self, ref: Ref) -> LoadedVersion | None:
        """Return the version that a reference last meant, or None where that is unknown or the version is not loaded."""
        resolved = self._resolved.get(ref)
        return None if resolved is None else self._find(resolved.version)

    def is_broken(self, version: Version) -> bool:
        """Return whether the last try to load a version failed."""
        return version.key in self._broken

    def forget(self, versions: Sequence[Version]) -> None:
        """Drop versions that were deleted; requests that hold one end first."""
        keys = {version.key for version in versions}
        with self._keeping:
            self._broken -= keys
            for key in keys:
                self._loaded.pop(key, None)
            self._resolved = {ref: one for ref, one in self._resolved.items() if one.version.key not in keys}

    def unload(self, model: str) -> None:
        """Drop the versions of a model; requests that hold one end first, and the next request loads what it needs."""
        with self._keeping:
            for key in [key for key, loaded in self._loaded.items() if loaded.version.model == model]:
                del self._loaded[key]

    def devices(self) -> Sequence[LoadedDescription]:
        """Return which loaded version computes on which device."""
        with self._keeping:
            versions = list(self._loaded.values())
        return [_describe(version) for version in versions]

    def _resolve(self, ref: Ref, stamp: object) -> Version:
        try:
            version = self._registry.resolve(ref)
        except Unavailable:
            resolved = self._resolved.get(ref)
            if resolved is None:
                raise
            return resolved.version
        # a commit between the two stamps may have moved the reference: the next request resolves it again
        is_settled = self._registry.stamp() == stamp
        with self._keeping:
            self._resolved[ref] = _Resolved(version, stamp if is_settled else None)
        return version

    def _find(self, version: Version) -> LoadedVersion | None:
        with self._keeping:
            if version.key in self._loaded:
                self._loaded.move_to_end(version.key)
            return self._loaded.get(version.key)

    def _load(self, version: Version) -> LoadedVersion:
        with self._loading:
            # another request may have loaded it while this one waited
            if (loaded := self._find(version)) is not None:
                return loaded
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
        size = sum(weights.nbytes for weights in artifact.weights.values())
        loaded = LoadedVersion(version, artifact, self._runtime(artifact), size, self._max_cells)
        _check_golden(loaded)
        return loaded

    def _runtime(self, artifact: Artifact) -> Runtime:
        # a service without a version in memory does without the 27 MB of ONNX Runtime
        from app.learning.network.onnx_network import OnnxRuntime

        cpu = OnnxRuntime(artifact.architecture, artifact.weights)
        if not self.serves_on_gpu:
            return cpu
        # only a process with a GPU to use imports Keras
        from app.learning.network.keras_network import KerasRuntime

        gpu = KerasRuntime(artifact.architecture, artifact.weights, "gpu:0")
        return CpuOrGpuRuntime.measure(cpu, gpu, artifact.architecture.inputs)


def _describe(loaded: LoadedVersion) -> LoadedDescription:
    version, runtime = loaded.version, loaded.runtime
    description: LoadedDescription = {
        "model": version.model,
        "version": version.version,
        "device": runtime.device,
        "library": runtime.library,
    }
    if isinstance(runtime, CpuOrGpuRuntime):
        description["gpu_from_rows"] = None if runtime.device == "cpu" else runtime.cpu_rows + 1
        description["timings"] = [timing._asdict() for timing in runtime.timings]
    return description


def _check_golden(loaded: LoadedVersion) -> None:
    """Raise `Corrupt` where a version does not give its golden predictions, on each device that it may compute on."""
    golden, runtime = loaded.artifact.golden, loaded.runtime
    rows = Rows(golden.columns, len(golden.records))
    for device in (runtime.cpu, runtime.gpu) if isinstance(runtime, CpuOrGpuRuntime) else (runtime,):
        probabilities = replace(loaded, runtime=device).predict(rows).probabilities
        # written so that a difference of NaN is refused, too
        if not golden.difference(probabilities) <= GOLDEN_TOLERANCE:
            raise Corrupt(f"Version {loaded.version.version} does not reproduce its golden predictions.")
