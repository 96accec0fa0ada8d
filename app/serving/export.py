"""Versions as files for other programs. An export process runs Keras: this module never imports it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from app.errors import Invalid, NotReady
from app.learning.artifact.artifact import Artifact
from app.records.version import Version
from app.serving.export_messages import CARDS, REQUESTS, ExportCard, ExportRequest
from app.system.json_lines import ChildProcess

logger = logging.getLogger(__name__)

Form = Literal["keras", "saved_model", "onnx", "litert", "weights"]
#: the file or folder of each form that the export process writes
_FILES = {"keras": "model.keras", "saved_model": "saved_model", "onnx": "model.onnx", "litert": "model.tflite"}
#: formats that only TensorFlow writes, whichever backend trains
_OF_TENSORFLOW = ("saved_model", "litert")
#: longest time that an export process may take
EXPORT_SECONDS = 120.0
#: how much of the standard error of a failed export process goes to the log
SAID_CHARACTERS = 4000


async def export_version(artifact: Artifact, version: Version, source: Path, form: Form, folder: Path) -> bytes:
    """Write a version as a zip.

    Args:
        source: the version's own folder.
        form: "weights" is `weights.safetensors` and `architecture.json`; "saved_model" a folder named by the version,
            so that TensorFlow Serving serves what the zip unpacks to; each other form is one file.
        folder: an empty one to work in.

    Returns:
        The zip: the model, `encoder.json`, and `card.json`, which says what the model takes and how exact it is.

    Raises:
        Invalid: the form is TensorFlow's own, and TensorFlow is not installed.
        NotReady: the export process did not end well in time.
    """
    if form in _OF_TENSORFLOW and importlib.util.find_spec("tensorflow") is None:
        raise Invalid.at(("format",), f"Expected TensorFlow to be installed for the format {form!r}, and it is not.")
    card: dict[str, object] = {
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
        written = asdict(await _write_file(ExportRequest(source, version.sha256, form, out)))
        card |= {name: value for name, value in written.items() if name != "type"}
        files[str(version.version) if form == "saved_model" else out.name] = out
    return await asyncio.to_thread(_zip, folder / "export.zip", files, card)


def _zip(path: Path, files: Mapping[str, Path], card: Mapping[str, object]) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, top in files.items():
            for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
                archive.write(file, str(Path(name, file.relative_to(top))) if top.is_dir() else name)
        archive.writestr("card.json", json.dumps(card, indent=2))
    return path.read_bytes()


async def _write_file(request: ExportRequest) -> ExportCard:
    """Have an export process write the file.

    Raises:
        NotReady: the process did not end well in time.
    """
    backend = {"KERAS_BACKEND": "tensorflow"} if request.form in _OF_TENSORFLOW else {}
    process = await ChildProcess.spawn(
        "app.serving.export_child", requests=REQUESTS, replies=CARDS, environment={**os.environ, **backend}
    )
    try:
        async with asyncio.timeout(EXPORT_SECONDS):
            await process.send(request)
            card = await process.read()
    except TimeoutError as error:
        raise NotReady(f"The export did not end within {EXPORT_SECONDS:g} seconds; try again.") from error
    finally:
        await process.kill()
    if card is None:
        logger.error("export failed", extra={"said": "\n".join(process.last_lines)[-SAID_CHARACTERS:]})
        raise NotReady("The export's process failed; its log says why.")
    return card
