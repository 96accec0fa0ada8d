"""Predictions the short way: plain requests about versions in memory, answered ahead of the routes.

What it can vouch for it answers with the bytes that the route would give. All else goes to the route as if it had come
there first: that decides, and words what is wrong.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from functools import lru_cache
from weakref import WeakKeyDictionary

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import POLICY, allows
from app.api.served import Served
from app.api.tally import Tally
from app.errors import FitserveError
from app.inference import Loaded
from app.learning.matrices import MatrixReader
from app.learning.spec import REF_PATTERN
from app.registry import Ref
from app.wiring import Services

logger = logging.getLogger(__name__)

PREFIX, SUFFIX = "/api/v1/models/", "/predict"
#: media types, as they come, and how such a body is read
FORMS = {
    b"application/json": "json",
    b"application/json; charset=utf-8": "json",
    b"application/octet-stream": "float32",
    b"application/x-npy": "npy",
}
#: what a prediction waits for the database to say what a reference means now; then what it last meant stands
PATIENCE_SECONDS = 0.25
_ACCEPTED = frozenset({b"*/*", b"application/json"})


class Hot:
    """ASGI middleware ahead of the routes.

    Args:
        tally: counts what is answered here.
    """

    def __init__(self, app: ASGIApp, given: Services, tally: Tally) -> None:
        self.app = app
        self._given = given
        self._tally = tally
        self._reader = MatrixReader()
        self._served: WeakKeyDictionary[Loaded, Served] = WeakKeyDictionary()
        self._asking: dict[Ref, asyncio.Task[Loaded | None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        asked = self._plain(scope)
        if asked is None:
            await self.app(scope, receive, send)
            return
        body, began = _Body(receive), time.perf_counter()
        series = self._tally.series(scope.get("scheme", "http"), scope["http_version"])
        series.active += 1
        try:
            found = await self._answer(*asked, body)
            if found is not None:
                answer, headers = found
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": answer})
                series.add(time.perf_counter() - began)
                return
        finally:
            series.active -= 1
        await self.app(scope, body.replay, send)

    def _plain(self, scope: Scope) -> tuple[Ref, str] | None:
        """Give what a request is about and in which form; None where it is not plain, or may not be answered."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["query_string"]:
            return None
        ref = _ref(scope["path"])
        if ref is None:
            return None
        headers = dict(scope["headers"])
        form = FORMS.get(headers.get(b"content-type", b""))
        if form is None or len(headers) != len(scope["headers"]) or b"content-encoding" in headers:
            return None
        length = headers.get(b"content-length", b"0")
        if headers.get(b"accept", b"*/*") not in _ACCEPTED or not self._is_short(length) or not self._may(headers):
            return None
        return ref, form

    def _is_short(self, length: bytes) -> bool:
        # Python refuses to read thousands of digits
        return length.isdigit() and len(length) < 20 and int(length) <= self._given.settings.max_predict_bytes

    def _may(self, headers: dict[bytes, bytes]) -> bool:
        if not self._given.settings.needs_key:
            return True
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        scopes = self._given.keys.scopes(key.decode("latin-1")) if scheme == b"Bearer" else None
        return scopes is not None and allows(scopes, POLICY["predict"])

    async def _answer(self, ref: Ref, form: str, receive: _Body) -> tuple[bytes, list[tuple[bytes, bytes]]] | None:
        body = await receive.read(self._given.settings.max_predict_bytes)
        lane = self._given.lanes.predictions
        if body is None or lane.is_full:
            return None
        inference, entered = self._given.inference, lane.enter()
        try:
            loaded = inference.known(ref) or await self._ask(ref)
            if loaded is None:
                return None
            served = self._served.get(loaded)
            if served is None:
                served = self._served[loaded] = Served(loaded, inference.most_rows(loaded))
            answer = await served.answer(form, body, self._reader)
        except Exception:
            # what is wrong here need not be wrong there
            logger.exception("the short way failed")
            return None
        finally:
            lane.leave(entered)
        return None if answer is None else (answer, served.headers(answer))

    async def _ask(self, ref: Ref) -> Loaded | None:
        """Ask the database, once for all who wait; None where the route has to say what is wrong."""
        begun = self._asking.get(ref)
        if begun is not None:
            await asyncio.wait([begun], timeout=PATIENCE_SECONDS)
            # it may have looked before the commit that this request comes after
            loaded = self._given.inference.known(ref)
            if loaded is not None:
                return loaded
        task = self._asking.get(ref)
        if task is None:
            task = self._asking[ref] = asyncio.create_task(self._load(ref))
        await asyncio.wait([task], timeout=PATIENCE_SECONDS)
        return task.result() if task.done() else self._given.inference.last_known(ref)

    async def _load(self, ref: Ref) -> Loaded | None:
        try:
            return await asyncio.to_thread(self._given.inference.get, ref)
        except FitserveError:
            return None
        finally:
            del self._asking[ref]


@lru_cache(maxsize=4096)
def _ref(path: str) -> Ref | None:
    """Read a reference out of the path of a prediction; None for another path."""
    ref = path.removeprefix(PREFIX).removesuffix(SUFFIX)
    is_one = path == f"{PREFIX}{ref}{SUFFIX}" and re.search(REF_PATTERN, ref)
    return Ref.parse(ref) if is_one else None


class _Body:
    """A request's body, read once here and perhaps once more by a route."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._came: deque[Message] = deque()
        self._failure: TimeoutError | None = None

    async def read(self, limit: int) -> bytes | None:
        """Give the whole body; None where it is larger than `limit` bytes, or does not come whole."""
        size, is_whole = 0, False
        while not is_whole:
            try:
                message = await self._receive()
            except TimeoutError as error:
                self._failure = error
                return None
            self._came.append(message)
            if message["type"] != "http.request":
                return None
            size += len(message.get("body", b""))
            if size > limit:
                return None
            is_whole = not message.get("more_body", False)
        if len(self._came) == 1:
            return bytes(message.get("body", b""))
        return b"".join(message.get("body", b"") for message in self._came)

    async def replay(self) -> Message:
        """Receive it again from its start, for whoever is asked next."""
        if self._came:
            return self._came.popleft()
        if self._failure is not None:
            raise self._failure
        return await self._receive()
