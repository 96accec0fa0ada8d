"""How a job's steps are computed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("loop", sa.String(length=16), nullable=True))
