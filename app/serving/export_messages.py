"""What the service and an export process say to each other: one `ExportRequest`, and one `ExportCard` in return."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.system.json_lines import Codec

#: the formats that an export process writes
FileFormat = Literal["keras", "saved_model", "onnx", "litert"]


@dataclass(frozen=True)
class ExportRequest:
    """Write a version as a file, or as a folder, of another program.

    Args:
        source: the version's own folder.
        sha256: of the version.
        out: the file or folder, which is written.
    """

    source: Path
    sha256: str
    form: FileFormat
    out: Path
    type: Literal["export"] = "export"


@dataclass(frozen=True)
class ExportCard:
    """What the file takes, and how exact it is.

    Args:
        takes: "raw" numbers, or "encoded" rows.
        inputs: the names of the numbers in their order, or the width of an encoded row.
        largest_difference: between the file's probabilities and the version's, on some rows of the training data.
        checked_on_rows: how many rows these are.
        environment: the libraries that wrote the file, with their versions.
    """

    takes: Literal["raw", "encoded"]
    inputs: list[str] | int
    largest_difference: float
    checked_on_rows: int
    environment: dict[str, str]
    type: Literal["card"] = "card"


REQUESTS: Codec[ExportRequest] = Codec(ExportRequest)
CARDS: Codec[ExportCard] = Codec(ExportCard)
