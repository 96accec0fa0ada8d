"""Heads that came before, by their bytes: clients send the same head again and again."""

from __future__ import annotations

from app.fast_path.request import Head

#: heads that are kept, and the longest of them, in bytes
MAX_HEADS, MAX_HEAD_BYTES = 1024, 1024


class KnownHeads:
    """What the last heads said, and the size of the body behind each.

    To parse and to judge a head takes as long as everything else that a prediction of one row takes.
    """

    def __init__(self) -> None:
        self._heads: dict[bytes, tuple[Head, int]] = {}

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """Return the head and the body of a whole request whose head is known, else None."""
        end = data.find(b"\r\n\r\n") + 4
        known = self._heads.get(data[:end])
        if known is None or len(data) != end + known[1]:
            return None
        return known[0], data[end:]

    def add(self, head: Head, data: bytes, size: int) -> None:
        """Keep a head for requests with a body of the same size, unless it is long or has an id, which comes once.

        Args:
            data: the bytes of the head.
        """
        if len(data) <= MAX_HEAD_BYTES and b"x-request-id" not in data.lower():
            if len(self._heads) >= MAX_HEADS:
                del self._heads[next(iter(self._heads))]
            self._heads[data] = head, size
