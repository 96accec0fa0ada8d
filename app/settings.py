"""Settings: `FITSERVE_*` variables, each with a flag of the same name on `fitserve serve` and `work`."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.names import WORKER

#: a database in memory is none that several processes share
_DATABASE = re.compile(r"sqlite:///(?!:memory:).|postgresql(\+psycopg)?://.")
#: what every client can send in a header, and every server reads back the same
_KEY = r"^[!-~]*$"
MIB = 1024**2
GIB = 1024**3
Bytes = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=1)]
Days = Annotated[float, Field(ge=0, le=36500)]


class Settings(BaseSettings):
    """Everything that can be set; the descriptions are the reference printed by `--help` and the README."""

    model_config = SettingsConfigDict(
        env_prefix="FITSERVE_", env_ignore_empty=True, frozen=True, extra="ignore", hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on; off loopback a key is required.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(Path("models"), description="Folder of data sets, versions and the database.")
    database_url: str = Field(
        "", description="Metadata and queue; default sqlite:///{data_dir}/fitserve.db.", repr=False
    )
    store_url: str = Field("", description="Where blobs live; default the data directory.")
    api_key: str | None = Field(
        None,
        min_length=16,
        pattern=_KEY,
        description="The admin key, at least 16 characters.",
        repr=False,
    )
    api_key_file: Path | None = Field(None, description="A file that holds the admin key.")
    insecure_no_auth: bool = Field(False, description="Serve off loopback without keys. Do not.")
    allowed_hosts: str = Field("", description="More Host names to accept on loopback, separated by commas.")
    workers: int = Field(1, ge=0, le=256, description="Training jobs at once; 0 leaves training to `fitserve work`.")
    processes: int = Field(1, ge=1, le=64, description="API processes, which share the address and the data directory.")
    worker_name: str = Field("worker", pattern=f"^{WORKER}$", description="Stable, unique name of a worker.")
    serve_on: Literal["auto", "cpu", "gpu"] = Field("auto", description="Where predictions are computed.")
    fast_path: bool = Field(
        True, description="Answer plain predictions ahead of the routes; false leaves that out and changes no answer."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line shown.")

    max_upload_bytes: Bytes = Field(GIB, description="Largest data set or training body.")
    max_parsed_at_once_bytes: Bytes = Field(
        64 * MIB, description="Larger uploads are answered 202 and parsed afterwards."
    )
    max_predict_bytes: Bytes = Field(8 * MIB, description="Largest predict body.")
    max_predict_cells: Count = Field(10_000_000, description="Most features, or probabilities, of one prediction.")
    max_json_bytes: Bytes = Field(64 * MIB, description="Largest JSON data body.")
    max_rows: Count = Field(10_000_000, description="Most rows of a data set.")
    max_columns: Count = Field(10_000, description="Most columns of a data set.")
    max_classes: Count = Field(1_000, ge=2, description="Most classes of a target.")
    max_features: Count = Field(65_536, description="Widest encoded row.")
    max_parameters: Count = Field(100_000_000, description="Largest network.")
    max_job_seconds: Count = Field(3600, description="Longest training run; a spec's max_seconds cannot exceed it.")
    max_ingest_seconds: Count = Field(600, description="Longest time to parse one upload.")
    max_ingest_bytes: int = Field(0, ge=0, description="Memory of a process that parses; 0 is half of the machine's.")
    max_training_bytes: int = Field(
        0,
        ge=0,
        description="Memory of a job's encoded rows, beyond which they stay on disk; 0 is half of the machine's.",
    )
    max_queued_jobs: Count = Field(1000, description="Jobs that may wait.")
    max_streams: Count = Field(200, description="Event streams open at once.")
    max_predictions: int = Field(
        0, ge=0, le=256, description="Predictions computed at once in a process; 0 is one for each core."
    )
    max_waiting_predictions: Count = Field(256, description="Predictions that may wait in a process.")
    predict_seconds: float = Field(30, gt=0, description="Longest time that a prediction waits and is computed.")
    max_evaluations: int = Field(2, ge=1, le=64, description="Evaluations at work at once in a process.")
    max_uploads: int = Field(16, ge=1, le=256, description="Uploads at work at once in a process.")
    max_submissions: int = Field(16, ge=1, le=256, description="Training requests at work at once in a process.")
    max_waiting: Count = Field(64, description="Evaluations, uploads and training requests each that may wait there.")
    request_seconds: float = Field(
        1800, gt=0, description="Longest time that one of them waits, is received and is worked on."
    )
    max_loaded_bytes: Bytes = Field(GIB, description="Memory for versions kept loaded for serving.")
    checkpoint_seconds: float = Field(
        5, ge=0, description="Least time between two checkpoints of a job, which are made at the end of an epoch."
    )
    keep_unused_datasets_days: Days = Field(0, description="Data sets that no version or open job came from; 0 keeps.")
    keep_events_days: Days = Field(90, description="Events of jobs that have ended; 0 keeps.")
    keep_jobs_days: Days = Field(0, description="Records of jobs that have ended; 0 keeps.")
    keep_checkpoints_days: Days = Field(7, description="Checkpoints of failed and cancelled jobs; 0 keeps.")
    keep_engine_days: Days = Field(1, description="The queue's own rows of jobs that have ended; 0 keeps.")
    sweep_seconds: float = Field(600, gt=0, description="How often what is too old is removed.")
    header_seconds: float = Field(10, gt=0, description="Time a client has to send its request head.")
    body_seconds: float = Field(60, gt=0, description="Longest pause inside a request body.")
    drain_seconds: float = Field(15, gt=0, le=20, description="Time that requests in flight have at shutdown.")

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if value and not _DATABASE.match(value):
            # the rest may hold a password
            raise ValueError(f"expected sqlite:///PATH or postgresql://…, got scheme {value.partition(':')[0][:40]!r}")
        # the driver that is installed
        return re.sub("^postgresql://", "postgresql+psycopg://", value)

    @field_validator("store_url")
    @classmethod
    def _known_store(cls, value: str) -> str:
        if value and not value.startswith("file:///"):
            raise ValueError(f"expected file:///PATH or nothing, got scheme {value.partition(':')[0][:40]!r}")
        return value

    @property
    def resolved_database_url(self) -> str:
        """The database's address, by default a file in the data directory."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'fitserve.db'}"

    @property
    def resolved_store(self) -> Path:
        """The local folder of blobs."""
        return Path(unquote(self.store_url.removeprefix("file://"))) if self.store_url else self.data_dir

    @property
    def json_bytes(self) -> int:
        """The largest JSON body of data, which is an upload too."""
        return min(self.max_upload_bytes, self.max_json_bytes)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def needs_key(self) -> bool:
        """Whether requests must carry a key: off loopback, or where one is configured."""
        is_configured = self.api_key is not None or self.api_key_file is not None
        return is_configured or not (self.is_loopback or self.insecure_no_auth)

    def configured_key(self) -> str | None:
        """Give the admin key of `api_key` or `api_key_file`, or None.

        Raises:
            ValueError: what the file holds is no key.
            OSError: the file cannot be read.
        """
        if self.api_key is not None or self.api_key_file is None:
            return self.api_key
        try:
            key = self.api_key_file.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError("FITSERVE_API_KEY_FILE: expected text in UTF-8") from error
        if len(key) < 16 or not re.fullmatch(_KEY, key):
            raise ValueError(
                f"FITSERVE_API_KEY_FILE: expected at least 16 letters, digits and signs of ASCII, got {len(key)} characters"
            )
        return key
