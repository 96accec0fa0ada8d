"""A plain prediction on its way through the fast path. Knows no sockets and no network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from app.errors import Busy
from app.fast_path.formats import Response, WireFormat
from app.metrics.request_durations import Series
from app.records.ref import Ref

#: names in lower case, and values, in the order in which they came
Headers = list[tuple[bytes, bytes]]
#: takes a request and its response, once, on the event loop; None where the route has to answer
OnResponse = Callable[["Request", Response | Busy | None], None]


class Head(NamedTuple):
    """What the head of a request says; equal heads say the same.

    Args:
        keys: the set of keys in force when the head was authorised.
        series: counts the responses of the route.
    """

    ref: Ref
    format: WireFormat
    path: str
    headers: Headers
    keys: object
    series: Series


@dataclass(slots=True, eq=False)
class Request:
    """One prediction: its head, its body as it comes, and who takes its response.

    Args:
        began: when the request came, by `time.perf_counter`.
        entered: when the request entered the lane of predictions.
        keep_alive, disconnected, response_complete: uvicorn reads and sets them: a request stands in the place of one of
            uvicorn's cycles.
    """

    head: Head
    id: str
    began: float
    on_response: OnResponse
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    is_whole: bool = False
    entered: float = 0.0
    keep_alive: bool = True
    disconnected: bool = False
    response_complete: bool = False
    #: uvicorn wakes with it whoever waits for the body of a cycle; nobody waits for a request's
    message_event: ClassVar[asyncio.Event] = asyncio.Event()

    def take(self, part: bytes) -> None:
        """Take the next part of the body."""
        self.parts.append(part)
        self.size += len(part)

    @property
    def body(self) -> bytes:
        """All of the body that has come."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
