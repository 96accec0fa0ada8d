"""The history of aliases, why a data set could not be read, names of keys."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables and columns that the release before lacks."""
    op.create_table(
        "alias_moves",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("at", sa.String(length=32), nullable=False),
    )
    op.create_index("ix_alias_moves_alias", "alias_moves", ["model", "alias"], unique=False)
    op.execute(
        "INSERT INTO alias_moves (model, alias, version, reason, at) "
        "SELECT model, alias, version, 'set', updated_at FROM aliases ORDER BY updated_at"
    )
    with op.batch_alter_table("datasets") as table:
        table.add_column(sa.Column("error", sa.JSON(), nullable=True))
    with op.batch_alter_table("keys") as table:
        table.add_column(sa.Column("name", sa.String(length=200), nullable=True))
