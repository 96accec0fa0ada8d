"""The tables of the metadata database. `migrations/` brings an older database to this schema."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

metadata = sa.MetaData()
Json = sa.JSON
#: SQLite numbers rows by itself only for INTEGER keys
Big = BigInteger().with_variant(Integer, "sqlite")

datasets = Table(
    "datasets",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(200)),
    Column("status", String(16), nullable=False),
    Column("format", String(32), nullable=False),
    Column("rows", Big),
    Column("size_bytes", Big, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("raw_key", String(200), nullable=False),
    Column("table_key", String(200)),
    Column("columns", Json, nullable=False),
    Column("warnings", Json, nullable=False),
    Column("default_target", Text),
    Column("error", Json),
    Column("created_at", String(32), nullable=False),
    UniqueConstraint("sha256", "format", name="uq_datasets_content"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("model", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("workflow_id", String(80), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("claim", String(64)),
    Column("device", String(32)),
    Column("loop", String(16)),
    Column("dataset_id", String(64), nullable=False),
    Column("table_key", String(200), nullable=False),
    Column("validation_table_key", String(200)),
    Column("spec", Json, nullable=False),
    Column("progress", Json, nullable=False),
    Column("metrics", Json, nullable=False),
    Column("version", Integer),
    Column("error", Json),
    Column("last_event", Integer, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("started_at", String(32)),
    Column("finished_at", String(32)),
    Index("ix_jobs_status", "status"),
    Index("ix_jobs_model", "model"),
    Index("ix_jobs_dataset", "dataset_id"),
)

events = Table(
    "events",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("id", Integer, primary_key=True),
    Column("at", String(32), nullable=False),
    Column("type", String(16), nullable=False),
    Column("body", Json, nullable=False),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key_sha256", String(64), primary_key=True),
    Column("body_sha256", String(64), nullable=False),
    Column("job_id", String(64), nullable=False),
    Column("created", Big, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("latest_version", Integer, nullable=False),
    Column("created_at", String(32), nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("model", String(64), ForeignKey("models.name"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("job_id", String(64), nullable=False, unique=True),
    Column("key", String(200), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("document", Json, nullable=False),
    Column("is_deleted", Boolean, nullable=False),
    Column("created_at", String(32), nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("model", String(64), ForeignKey("models.name"), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("updated_at", String(32), nullable=False),
)

#: every move of every alias, oldest first; `version` is null where the alias was removed
alias_moves = Table(
    "alias_moves",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("model", String(64), nullable=False),
    Column("alias", String(64), nullable=False),
    Column("version", Integer),
    Column("reason", String(16), nullable=False),
    Column("at", String(32), nullable=False),
    Index("ix_alias_moves_alias", "model", "alias"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("name", String(200)),
    Column("scopes", Json, nullable=False),
    Column("created_at", String(32), nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("slots", Integer, nullable=False),
    Column("document", Json, nullable=False),
    Column("beat_at", String(32), nullable=False),
)
