"""A version as a folder of files: written once, and checked whole whenever it is loaded.

    architecture.json   the network as plain data
    encoder.json        the encoder's state, and the classes
    weights.safetensors float32, exactly the names and shapes that the architecture implies
    training.json       specification, metrics, history
    golden.json         a few posted rows, and the probabilities that the version must answer
    manifest.json       size and SHA-256 of each file, written last

No loader of Keras, pickle or HDF5 ever reads a version, so that no file in it can become code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save_file

from app.errors import Corrupt
from app.learning.artifact.artifact import Artifact, GoldenRows, TrainingRecord
from app.learning.encoding.encoder import Encoder
from app.learning.network.architecture import Architecture

FORMAT = 1
MANIFEST = "manifest.json"
FILES = ("architecture.json", "encoder.json", "weights.safetensors", "training.json", "golden.json")
#: the largest header of the weights' file
MAX_HEADER_BYTES = 1024**2


def write_artifact(artifact: Artifact, folder: Path) -> str:
    """Write a version's files into an empty folder, the manifest last.

    Returns:
        The manifest's SHA-256, which is the version's.
    """
    documents = {
        "architecture.json": {"format": FORMAT, **artifact.architecture.document()},
        "encoder.json": {"format": FORMAT, "inputs": artifact.encoder.document(), "classes": list(artifact.classes)},
        "training.json": artifact.training.document(),
        "golden.json": artifact.golden.document(),
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
    save_file({name: np.ascontiguousarray(w) for name, w in artifact.weights.items()}, folder / "weights.safetensors")
    files = {name: _entry((folder / name).read_bytes()) for name in FILES}
    manifest = json.dumps({"format": FORMAT, "files": files}, sort_keys=True).encode()
    (folder / MANIFEST).write_bytes(manifest)
    return hashlib.sha256(manifest).hexdigest()


def load_artifact(folder: Path, sha256: str) -> Artifact:
    """Read a version's folder.

    Args:
        sha256: the manifest's SHA-256 when the version was published.

    Raises:
        Corrupt: a file is absent, differs from the published one by a bit, or is of a form that this release cannot read.
    """
    manifest = _read(folder, MANIFEST)
    if hashlib.sha256(manifest).hexdigest() != sha256:
        raise Corrupt(f"Expected a manifest of SHA-256 {sha256[:12]}…; the stored one differs.")
    entries = json.loads(manifest)["files"]
    files = {name: _read(folder, name) for name in FILES}
    for name, body in files.items():
        if entries.get(name) != _entry(body):
            raise Corrupt(f"File {name} of the version differs from its manifest.")
    try:
        return _parse(files)
    except (ValueError, TypeError, LookupError, AttributeError, SafetensorError) as error:
        raise Corrupt("The version's files are not of a form that this release reads.") from error


def _parse(files: Mapping[str, bytes]) -> Artifact:
    architecture = Architecture.from_document(json.loads(files["architecture.json"]))
    encoder = json.loads(files["encoder.json"])
    return Artifact(
        architecture=architecture,
        encoder=Encoder.from_document(encoder["inputs"]),
        classes=tuple(encoder["classes"]),
        weights=_parse_weights(files["weights.safetensors"], architecture),
        training=TrainingRecord.from_document(json.loads(files["training.json"])),
        golden=GoldenRows.from_document(json.loads(files["golden.json"])),
    )


def _parse_weights(body: bytes, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
    if int.from_bytes(body[:8], "little") > MAX_HEADER_BYTES:
        raise Corrupt("The weights' header is larger than 1 MB.")
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    header.pop("__metadata__", None)
    expected = architecture.shapes()
    if {name: ("F32", shape) for name, shape in expected.items()} != {
        name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()
    }:
        raise Corrupt("The weights are not those that the architecture implies.")
    weights = load_tensors(body)
    return {name: weights[name] for name in expected}


def _entry(body: bytes) -> dict[str, int | str]:
    return {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise Corrupt(f"File {name} of the version cannot be read.") from error
