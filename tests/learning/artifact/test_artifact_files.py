"""A version's folder: read as it was written, or refused."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from app.errors import Corrupt
from app.learning.artifact.artifact import Artifact, GoldenRows, TrainingRecord, weights_sha256
from app.learning.artifact.artifact_files import FILES, MANIFEST, load_artifact, write_artifact
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.inputs import Input
from app.learning.network.architecture import Architecture, Dense

ARCHITECTURE = Architecture(2, (Dense(3, "relu"), Dense(2, "softmax")))
WEIGHTS = {
    name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for name, shape in ARCHITECTURE.shapes().items()
}
ENCODER = Encoder(
    (
        Input("é", "numeric", "impute", marks_missing=True, impute=0.1, mean=1e300, scale=5e-324),
        Input("c", "categorical", "error", marks_missing=False, categories=("a", "b")),
    )
)


def artifact(**changes: Any) -> Artifact:
    parts: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "encoder": ENCODER,
        "classes": ("no", "yes"),
        "weights": WEIGHTS,
        "training": TrainingRecord({"target": "t"}, {}, []),
        "golden": GoldenRows([{"é": 0.1, "c": "a"}], [[0.25, 0.75]]),
    }
    return Artifact(**parts | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "version").mkdir()
    return tmp_path / "version"


def sign(folder: Path, **documents: bytes) -> str:
    """Replace files and give them a manifest that fits: what somebody could do who can write to the store."""
    for name, body in documents.items():
        (folder / name).write_bytes(body)
    bodies = {name: (folder / name).read_bytes() for name in FILES}
    files = {name: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for name, b in bodies.items()}
    manifest = json.dumps({"format": 1, "files": files}).encode()
    (folder / MANIFEST).write_bytes(manifest)
    return hashlib.sha256(manifest).hexdigest()


@pytest.mark.parametrize("classes", [("no", "yes"), (0, 1), (2**63, 2**64 - 1), (0.5, 1.0), (False, True)])
def test_a_version_is_read_as_it_was_written(folder: Path, classes: tuple[Any, ...]) -> None:
    made = artifact(classes=classes)

    found = load_artifact(folder, write_artifact(made, folder))

    assert (made.architecture, made.encoder, made.classes) == (found.architecture, found.encoder, found.classes)
    assert [type(label) for label in made.classes] == [type(label) for label in found.classes]
    assert (made.training, made.golden) == (found.training, found.golden)
    assert {name: w.tobytes() for name, w in WEIGHTS.items()} == {n: w.tobytes() for n, w in found.weights.items()}
    assert list(ARCHITECTURE.shapes()) == list(found.weights)
    assert {*FILES, MANIFEST} == {file.name for file in folder.iterdir()}


def test_the_same_version_has_the_same_digest(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()

    assert write_artifact(artifact(), folder) == write_artifact(artifact(), tmp_path / "other")


def test_a_number_that_json_has_no_word_for_is_never_written(folder: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_artifact(artifact(training=TrainingRecord({}, {"train": {"loss": float("nan")}}, [])), folder)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_any_flipped_bit_is_refused(folder: Path, name: str) -> None:
    sha256 = write_artifact(artifact(), folder)
    body = (folder / name).read_bytes()
    bits = random.Random(name).sample(range(8 * len(body)), 40)

    for bit in [0, 8 * len(body) - 1, *bits]:
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(flipped)

        with pytest.raises(Corrupt):
            load_artifact(folder, sha256)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_file_that_is_cut_longer_or_absent_is_refused(folder: Path, name: str) -> None:
    sha256 = write_artifact(artifact(), folder)
    body = (folder / name).read_bytes()

    for changed in (body[:-1], body + b"\0", b""):
        (folder / name).write_bytes(changed)
        with pytest.raises(Corrupt, match="manifest"):
            load_artifact(folder, sha256)
    (folder / name).unlink()
    with pytest.raises(Corrupt, match=f"File {name} of the version cannot be read"):
        load_artifact(folder, sha256)


def test_another_versions_manifest_is_refused(folder: Path) -> None:
    sha256 = write_artifact(artifact(), folder)
    write_artifact(artifact(classes=("a", "b")), folder)

    with pytest.raises(Corrupt, match="Expected a manifest of SHA-256"):
        load_artifact(folder, sha256)


@pytest.mark.parametrize(
    "weights",
    [
        {name: w for name, w in WEIGHTS.items() if name != "1.bias"},
        {**WEIGHTS, "2.kernel": np.zeros(1, np.float32)},
        {**WEIGHTS, "0.kernel": WEIGHTS["0.kernel"].T.copy()},
        {**WEIGHTS, "0.kernel": WEIGHTS["0.kernel"].ravel()},
        {**WEIGHTS, "0.bias": WEIGHTS["0.bias"].astype(np.float64)},
        {**WEIGHTS, "0.bias": WEIGHTS["0.bias"].astype(np.int32)},
    ],
    ids=["absent", "added", "transposed", "flat", "float64", "int32"],
)
def test_weights_that_the_architecture_does_not_imply_are_refused(folder: Path, weights: Any) -> None:
    write_artifact(artifact(), folder)
    sha256 = sign(folder, **{"weights.safetensors": save(weights)})

    with pytest.raises(Corrupt, match="not those that the architecture implies"):
        load_artifact(folder, sha256)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("weights.safetensors", b""),
        ("weights.safetensors", (2**40).to_bytes(8, "little")),
        ("weights.safetensors", (9).to_bytes(8, "little") + b"no JSON!!"),
        ("weights.safetensors", (2).to_bytes(8, "little") + b"[]"),
        ("weights.safetensors", save(WEIGHTS)[:-4]),
        ("architecture.json", b"no JSON"),
        ("architecture.json", b'{"inputs": 2, "parts": [{"type": "lambda", "code": "print()"}]}'),
        ("architecture.json", b'{"inputs": 2}'),
        ("encoder.json", b'{"inputs": [{"name": "a", "kind": "pickle"}], "classes": []}'),
        ("encoder.json", b"[]"),
        ("golden.json", b"\xff"),
    ],
)
def test_a_signed_file_of_another_make_is_refused(folder: Path, name: str, body: bytes) -> None:
    write_artifact(artifact(), folder)
    sha256 = sign(folder, **{name: body})

    with pytest.raises(Corrupt):
        load_artifact(folder, sha256)


def test_the_digest_of_the_weights_tells_values_names_and_shapes_apart() -> None:
    changed = [
        WEIGHTS,
        {**WEIGHTS, "0.bias": WEIGHTS["0.bias"] + np.float32(1e-7)},
        {**WEIGHTS, "0.bias": WEIGHTS["0.bias"][None]},
        {("9.bias" if name == "0.bias" else name): w for name, w in WEIGHTS.items()},
    ]

    assert len(changed) == len({weights_sha256(weights) for weights in changed})
    assert weights_sha256(WEIGHTS) == weights_sha256(dict(reversed(WEIGHTS.items())))
