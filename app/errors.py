"""The facts that can go wrong. Knows nothing of HTTP: `app.http.problems` gives each its status.

FitserveError
├── Malformed          the bytes are not what they claim to be
├── Invalid            well-formed, but wrong; carries where
├── NotFound
├── Conflict
├── TooLarge
├── UnsupportedMedia
├── NotAcceptable
├── Unauthorized
├── Forbidden
├── NotReady           will be; try again
├── Overloaded         a quota is used up; try again
├── Busy               more work than can be done in time; says when to try again
├── Unavailable        the database cannot be reached; try again
├── StorageFull
└── Corrupt            stored bytes do not match their digest
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

#: as many faults as one answer lists
FAULT_LIMIT = 20


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and where.

    Args:
        loc: path to the value, such as `("data", "records", 3, "age")`; rows of data count from 0, here and in
            messages.
        message: what was expected and what came.
        code: a stable machine word.
    """

    loc: tuple[str | int, ...]
    message: str
    code: str = "invalid"


class FitserveError(Exception):
    """Something expected went wrong; the message says what was expected and what came."""

    code = "internal"

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.faults = tuple(faults[:FAULT_LIMIT])


class Malformed(FitserveError):
    """The bytes are not what they claim to be."""

    code = "malformed"


class Invalid(FitserveError):
    """Well-formed but wrong."""

    code = "invalid"

    @classmethod
    def at(cls, loc: tuple[str | int, ...], message: str) -> Invalid:
        """Make an error about one place."""
        return cls(message, [Fault(loc, message)])


class NotFound(FitserveError):
    """There is no such thing."""

    code = "not_found"

    def __init__(self, noun: str, name: str) -> None:
        super().__init__(f"There is no {noun} {name[:80]!r}.")


class Conflict(FitserveError):
    """The present state does not allow it."""

    code = "conflict"


class TooLarge(FitserveError):
    """Over a limit."""

    code = "too_large"


class UnsupportedMedia(FitserveError):
    """A Content-Type or Content-Encoding that this route does not read."""

    code = "unsupported_media_type"


class NotAcceptable(FitserveError):
    """An Accept that this route cannot answer."""

    code = "not_acceptable"


class Unauthorized(FitserveError):
    """A key was expected and none, or an unknown one, came."""

    code = "unauthorized"


class Forbidden(FitserveError):
    """The caller may not do this."""

    code = "forbidden"


class NotReady(FitserveError):
    """Not yet, or no longer; try again shortly."""

    code = "not_ready"


class Overloaded(FitserveError):
    """A quota is used up; try again later."""

    code = "overloaded"


class Busy(FitserveError):
    """More work came than can be done in time.

    Args:
        retry_seconds: when there will be room.
    """

    code = "overloaded"

    def __init__(self, message: str, retry_seconds: int) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class Unavailable(FitserveError):
    """The database cannot be reached, or cannot answer."""

    code = "unavailable"


class StorageFull(FitserveError):
    """The disk is full."""

    code = "storage_full"


class Corrupt(FitserveError):
    """Stored bytes do not match their digest."""

    code = "checksum_mismatch"


@contextmanager
def disk_full_is_a_fact() -> Iterator[None]:
    """Raise `StorageFull` where the operating system says that no space is left."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise StorageFull("The disk is full; nothing was stored.") from error
        raise


def is_disk_full(error: Exception) -> bool:
    """Tell whether an error means that no space (or quota) is left on a disk."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in full
    # safetensors says it in words alone
    return any(f"(os error {number})" in str(error) for number in full)
