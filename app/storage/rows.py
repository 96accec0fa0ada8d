"""What the rows of every table have in common: how a time is written, and how a list of rows is cut into pages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping


def now() -> str:
    """Return the present time as `timestamp` writes it."""
    return timestamp(datetime.now(UTC))


def timestamp(moment: datetime) -> str:
    """Return a time as RFC 3339 in UTC, to the millisecond. Such texts sort by time."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def page(
    connection: Connection,
    query: sa.Select[Any],
    order: sa.Column[Any],
    limit: int,
    after: str | None,
    *,
    descends: bool = True,
) -> tuple[Sequence[RowMapping], str | None]:
    """Return one page of a query's rows, and the cursor of the next page or None.

    Args:
        order: a unique text column to sort by. The cursor is its value in the last row of a page.
        limit: rows of a page at most.
        after: the cursor of the page before, None for the first page.
        descends: whether the last value comes first.
    """
    if after is not None:
        query = query.where(order < after if descends else order > after)
    query = query.order_by(order.desc() if descends else order).limit(limit + 1)
    rows = connection.execute(query).mappings().all()
    more = len(rows) > limit
    return rows[:limit], str(rows[limit - 1][order.name]) if more else None
