"""A version as a folder of files: written once, checked whole whenever it is read.

    architecture.json   the network as plain data
    encoder.json        the encoder's state, and the classes
    weights.safetensors float32, exactly the names and shapes that the architecture implies
    training.json       specification, metrics, history, environment
    golden.json         a few posted rows and the probabilities they must give
    manifest.json       size and SHA-256 of each file, written last

No loader of Keras, pickle or HDF5 ever reads a version: nothing in it can become code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save_file

from app.errors import Corrupt
from app.learning.encoding.encoder import Encoder
from app.learning.network.architecture import Architecture
from app.learning.tables.label import Label

FORMAT = 1
MANIFEST = "manifest.json"
FILES = ("architecture.json", "encoder.json", "weights.safetensors", "training.json", "golden.json")
MAX_HEADER_BYTES = 1024**2


@dataclass(frozen=True)
class Artifact:
    """Everything that a version is.

    Args:
        weights: float32 arrays by the names of `Architecture.shapes`.
        training: specification, metrics, history and environment, plain JSON.
        golden: `{"records": […], "probabilities": [[…]…]}`.
    """

    architecture: Architecture
    encoder: Encoder
    classes: tuple[Label, ...]
    weights: Mapping[str, NDArray[np.float32]]
    training: dict[str, Any]
    golden: dict[str, Any]


def write(artifact: Artifact, folder: Path) -> str:
    """Write a version's files into an empty folder, the manifest last.

    Returns:
        The manifest's SHA-256, which is the version's.
    """
    documents = {
        "architecture.json": {"format": FORMAT, **artifact.architecture.document()},
        "encoder.json": {"format": FORMAT, "inputs": artifact.encoder.document(), "classes": list(artifact.classes)},
        "training.json": artifact.training,
        "golden.json": artifact.golden,
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
    save_file({name: np.ascontiguousarray(w) for name, w in artifact.weights.items()}, folder / "weights.safetensors")
    files = {name: _entry((folder / name).read_bytes()) for name in FILES}
    manifest = json.dumps({"format": FORMAT, "files": files}, sort_keys=True).encode()
    (folder / MANIFEST).write_bytes(manifest)
    return hashlib.sha256(manifest).hexdigest()


def read(folder: Path, sha256: str) -> Artifact:
    """Read a version's folder.

    Raises:
        Corrupt: a file is absent, is not, to the bit, the one that was published, or is none that this release reads.
    """
    manifest = _bytes(folder, MANIFEST)
    if hashlib.sha256(manifest).hexdigest() != sha256:
        raise Corrupt(f"Expected a manifest of SHA-256 {sha256[:12]}…; the stored one differs.")
    files = json.loads(manifest)["files"]
    found = {name: _bytes(folder, name) for name in FILES}
    for name, body in found.items():
        if files.get(name) != _entry(body):
            raise Corrupt(f"File {name} of the version differs from its manifest.")
    try:
        return _parsed(found)
    except (ValueError, TypeError, LookupError, AttributeError, SafetensorError) as error:
        raise Corrupt("The version's files are not of a form that this release reads.") from error


def _parsed(found: Mapping[str, bytes]) -> Artifact:
    architecture = Architecture.from_document(json.loads(found["architecture.json"]))
    encoder = json.loads(found["encoder.json"])
    return Artifact(
        architecture=architecture,
        encoder=Encoder.from_document(encoder["inputs"]),
        classes=tuple(encoder["classes"]),
        weights=_weights(found["weights.safetensors"], architecture),
        training=json.loads(found["training.json"]),
        golden=json.loads(found["golden.json"]),
    )


def weights_sha256(weights: Mapping[str, NDArray[np.float32]]) -> str:
    """Give one digest of all weights: names, shapes and little-endian bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = np.ascontiguousarray(weights[name], "<f4")
        digest.update(f"{name}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _weights(body: bytes, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
    if int.from_bytes(body[:8], "little") > MAX_HEADER_BYTES:
        raise Corrupt("The weights' header is larger than 1 MB.")
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    header.pop("__metadata__", None)
    expected = architecture.shapes()
    if {name: ("F32", shape) for name, shape in expected.items()} != {
        name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()
    }:
        raise Corrupt("The weights are not those that the architecture implies.")
    loaded = load_tensors(body)
    return {name: loaded[name] for name in expected}


def _entry(body: bytes) -> dict[str, Any]:
    return {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def _bytes(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise Corrupt(f"File {name} of the version cannot be read.") from error
