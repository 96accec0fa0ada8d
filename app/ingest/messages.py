"""What the service and a parser process say to each other. Knows neither of them.

The service sends one request at a time. The parser process sends `Taken` as soon as it has read the request, and then
one `Answer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from app.errors import Fault
from app.learning.tables.column import ColumnKind
from app.learning.tables.describe_column import ColumnDescription
from app.learning.tables.incoming_table import TableLimits
from app.system.json_lines import Codec


@dataclass(frozen=True)
class Parse:
    """Parse a raw file into a table file.

    Args:
        form: the raw file's format, one of those of `read_raw_file`.
        out: the table file, which is written.
        kinds: kinds that a client corrected, by column.
    """

    raw: Path
    form: str
    out: Path
    limits: TableLimits
    kinds: Mapping[str, ColumnKind]
    type: Literal["parse"] = "parse"


@dataclass(frozen=True)
class Split:
    """Take the member `data` of a JSON body out into a file of its own."""

    body: Path
    data: Path
    type: Literal["split"] = "split"


@dataclass(frozen=True)
class Transcode:
    """Turn a Parquet or Arrow file into the frame that predictions are read from."""

    raw: Path
    form: str
    out: Path
    limits: TableLimits
    type: Literal["transcode"] = "transcode"


@dataclass(frozen=True)
class ToArrow:
    """Turn a JSON object of columns into an Arrow stream."""

    columns: Path
    out: Path
    type: Literal["to_arrow"] = "to_arrow"


@dataclass(frozen=True)
class Parsed:
    """The table file is written; its description."""

    rows: int
    columns: list[ColumnDescription]
    warnings: list[str]
    default_target: str
    type: Literal["parsed"] = "parsed"


@dataclass(frozen=True)
class Divided:
    """The body's data is in a file, if there was any.

    Args:
        rest: the body without its data, as JSON text: it may be nested more deeply than a message.
    """

    rest: str
    has_data: bool
    type: Literal["divided"] = "divided"


@dataclass(frozen=True)
class Written:
    """The file is written."""

    type: Literal["written"] = "written"


@dataclass(frozen=True)
class Refused:
    """The file cannot be used: an error of `app.errors`, by its code."""

    code: str
    message: str
    faults: tuple[Fault, ...]
    type: Literal["refused"] = "refused"


@dataclass(frozen=True)
class Taken:
    """The request was read. Where the process dies before, another one may be asked."""

    type: Literal["taken"] = "taken"


@dataclass(frozen=True)
class Answer:
    """What became of the request.

    Args:
        is_last: the process exits now, so that the memory that it took goes back to the system.
    """

    reply: Annotated[Parsed | Divided | Written | Refused, Field(discriminator="type")]
    is_last: bool
    type: Literal["answer"] = "answer"


ParserRequest = Parse | Split | Transcode | ToArrow
ParserReply = Parsed | Divided | Written | Refused
ParserMessage = Taken | Answer

REQUESTS: Codec[ParserRequest] = Codec(ParserRequest)
MESSAGES: Codec[ParserMessage] = Codec(ParserMessage)
