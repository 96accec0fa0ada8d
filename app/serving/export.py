"""Versions as files for other programs. Keras itself runs in a child: this module never imports it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from app.errors import Invalid, NotReady
from app.learning.artifact import Artifact
from app.records.registry import Version
from app.system.child_process import command

logger = logging.getLogger(__name__)

Form = Literal["keras", "saved_model", "onnx", "litert", "weights"]
#: the file or folder of each form that the child writes
_FILES = {"keras": "model.keras", "saved_model": "saved_model", "onnx": "model.onnx", "litert": "model.tflite"}
#: these are TensorFlow's own, whichever backend trains
_OF_TENSORFLOW = ("saved_model", "litert")
EXPORT_SECONDS = 120.0
#: of what a child that failed said, in the log
SAID_CHARACTERS = 4000


async def export_version(artifact: Artifact, version: Version, source: Path, form: Form, folder: Path) -> bytes:
    """Write a version as a zip.

    Args:
        source: the version's own folder.
        form: "weights" gives `weights.safetensors` and `architecture.json`; "saved_model" a folder named by the
            version, so that TensorFlow Serving serves what the zip unpacks to; the others a file.
        folder: an empty one to work in.

    Returns:
        The zip: the model, `encoder.json`, and `card.json`, which says what goes in and how exact it is.

    Raises:
        Invalid: the form is TensorFlow's own, and TensorFlow is not installed.
        NotReady: the child did not end well in time.
    """
    if form in _OF_TENSORFLOW and importlib.util.find_spec("tensorflow") is None:
        raise Invalid.at(("format",), f"Expected TensorFlow to be installed for the format {form!r}, and it is not.")
    card: dict[str, Any] = {
        "model": version.model,
        "version": version.version,
        "classes": list(artifact.classes),
        "format": form,
        "weights_sha256": version.document["weights_sha256"],
    }
    files = {"encoder.json": source / "encoder.json"}
    if form == "weights":
        files |= {name: source / name for name in ("weights.safetensors", "architecture.json")}
        card |= {"takes": "encoded", "inputs": artifact.architecture.inputs}
    else:
        out = folder / _FILES[form]
        card |= await _in_child(source, version.sha256, form, out)
        files[str(version.version) if form == "saved_model" else out.name] = out
    return await asyncio.to_thread(_zip, folder / "export.zip", files, card)


def _zip(path: Path, files: dict[str, Path], card: dict[str, Any]) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, top in files.items():
            for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
                archive.write(file, str(Path(name, file.relative_to(top))) if top.is_dir() else name)
        archive.writestr("card.json", json.dumps(card, indent=2))
    return path.read_bytes()


async def _in_child(source: Path, sha256: str, form: Form, out: Path) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *command("app.serving.export_child", str(source), sha256, form, str(out)),
        env={**os.environ, **({"KERAS_BACKEND": "tensorflow"} if form in _OF_TENSORFLOW else {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(EXPORT_SECONDS):
            line, said = await process.communicate()
    except TimeoutError as error:
        raise NotReady(f"The export did not end within {EXPORT_SECONDS:g} seconds; try again.") from error
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    if process.returncode != 0:
        logger.error("export failed", extra={"said": said.decode(errors="replace")[-SAID_CHARACTERS:]})
        raise NotReady("The export's process failed; its log says why.")
    card: dict[str, Any] = json.loads(line)
    return card
