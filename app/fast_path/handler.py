"""Plain predictions about versions in memory, answered without ASGI, FastAPI or a thread. Knows no sockets.

A request that the fast path can answer has the very response of its route. All others go to the route, which decides, and
says what is wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from app.errors import Busy
from app.fast_path.attempt import attempt
from app.fast_path.batcher import Result
from app.fast_path.formats import LOOP_ROWS_BYTES, Response
from app.fast_path.known_heads import KnownHeads
from app.fast_path.parse import MatrixReader
from app.fast_path.request import Head, Headers, OnResponse, Request
from app.fast_path.routes import find_format
from app.fast_path.version import LOOP_BYTES, FastVersion
from app.fast_path.version_lookup import VersionLookup
from app.http.gate import RequestGate, identify, new_id
from app.http.policy import POLICY, allows
from app.metrics.request_durations import Tally
from app.metrics.version_usage import Part, Stopwatch
from app.serving.predictor import LoadedVersion
from app.wiring import Services


class FastPath:
    """The fast path of one process.

    Args:
        tally: counts the responses.
        gate: the checks and the access log of every request.
    """

    def __init__(self, services: Services, tally: Tally, gate: RequestGate) -> None:
        self._services = services
        self._tally = tally
        self._gate = gate
        self._lane = services.lanes.predictions
        #: a longer body is refused by the route
        self.most_bytes = services.settings.max_predict_bytes
        self._reader = MatrixReader()
        self._lookup = VersionLookup(services.version_cache)
        self._versions: WeakKeyDictionary[LoadedVersion, FastVersion] = WeakKeyDictionary()
        self._heads = KnownHeads()
        # the event loop itself keeps no task alive
        self._tasks = set[asyncio.Task[None]]()

    def read_head(self, path: bytes, headers: Headers, on_response: OnResponse) -> Request | None:
        """Return the request that the head of a POST begins; None where the route has to look at it.

        Args:
            path: as it came, with its query.
        """
        # the keys are read before the caller's key is looked up: they may change meanwhile
        keys = self._services.keys.known
        named = dict(headers)
        found = find_format(path, named)
        # a header that came twice, and an encoded body, are for the route
        if found is None or len(named) != len(headers) or b"content-encoding" in named:
            return None
        if not self._is_short(named.get(b"content-length", b"0")) or not self._is_allowed(named):
            return None
        if self._gate.refusal("POST", named) is not None:
            return None
        format_, ref = found
        series = self._tally.series("POST", format_.route)
        head = Head(ref, format_, path.decode(), headers, keys, series)
        return Request(head, identify(named), time.perf_counter(), on_response)

    def _is_short(self, length: bytes) -> bool:
        # Python refuses to read thousands of digits
        return length.isdigit() and len(length) < 20 and int(length) <= self.most_bytes

    def _is_allowed(self, headers: dict[bytes, bytes]) -> bool:
        if not self._services.settings.needs_key:
            return True
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        scopes = self._services.keys.scopes(key.decode("latin-1")) if scheme == b"Bearer" else None
        return scopes is not None and allows(scopes, POLICY["predict"])

    def recall(self, data: bytes, on_response: OnResponse) -> Request | None:
        """Return the whole request that these bytes are, where its head came before and the keys are still the same."""
        known = self._heads.find(data)
        if known is None or known[0].keys is not self._services.keys.known:
            return None
        request = Request(known[0], new_id(), time.perf_counter(), on_response)
        request.take(known[1])
        return request

    def remember(self, request: Request, head: bytes) -> None:
        """Keep the bytes of a request's head, so that `recall` finds the next request with that head."""
        self._heads.add(request.head, head, request.size)

    def answer(self, request: Request) -> None:
        """Answer a whole request, at once or soon."""
        entered = self._lane.enter()
        if entered is None:
            request.on_response(request, self._lane.refusal())
            return
        request.entered = entered
        request.head.series.active += 1
        loaded = self._services.version_cache.find_now(request.head.ref)
        if loaded is None:
            self._start(self._look_up(request))
        else:
            self._compute(request, loaded)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self, request: Request) -> None:
        loaded = None
        try:
            loaded = await self._lookup.get(request.head.ref)
        finally:
            if loaded is None:
                self._leave(request, None)
        if loaded is not None:
            self._compute(request, loaded)

    def _compute(self, request: Request, loaded: LoadedVersion) -> None:
        version = self._versions.get(loaded) or attempt(self._add_version, loaded)
        if version is None:
            self._leave(request, None)
            return
        format_, body = request.head.format, request.body
        read = attempt(format_.read, version, body, self._reader) if len(body) <= LOOP_BYTES else None
        if read is not None:
            rows, details = read
            on_result = partial(self._respond, request, version, details, time.perf_counter())
            version.submit(rows, request.entered, on_result)
        elif format_.answer_long is not None and len(body) > LOOP_ROWS_BYTES:
            self._start(self._answer_long(request, version.key, partial(format_.answer_long, version, loaded, body)))
        else:
            self._leave(request, None)

    def _add_version(self, loaded: LoadedVersion) -> FastVersion:
        version = self._versions[loaded] = FastVersion(loaded, self._lane)
        return version

    def _respond(
        self, request: Request, version: FastVersion, details: Any, read_at: float, result: Result | Busy | None
    ) -> None:
        if isinstance(result, Result):
            self._leave(request, attempt(self._write, request, version, details, read_at, result))
        else:
            self._leave(request, result)

    def _write(self, request: Request, version: FastVersion, details: Any, read_at: float, result: Result) -> Response:
        response = request.head.format.write(version, result, details)
        ns: dict[Part, int] = {
            "queue": int((result.began - read_at) * 1e9),
            "input": int((read_at - request.entered) * 1e9),
            "infer": int((result.ended - result.began) * 1e9),
            "output": int((time.perf_counter() - result.ended) * 1e9),
        }
        self._services.usage.add_shared(version.key, len(result.best), ns, executions=result.is_first)
        return response

    async def _answer_long(self, request: Request, key: str, work: Callable[[Stopwatch], Response | None]) -> None:
        response: Response | Busy | None = None
        watch = Stopwatch()

        def run() -> Response | None:
            watch.end("queue")
            return attempt(work, watch)

        try:
            response = await self._lane.work(run, request.entered)
            if response is not None:
                watch.end("output")
                self._services.usage.add(key, watch)
        except Busy as error:
            response = error
        finally:
            self._finish(request, response)

    def _leave(self, request: Request, response: Response | Busy | None) -> None:
        # a request that the route answers ends there
        self._lane.leave(has_ended=response is not None)
        self._finish(request, response)

    def _finish(self, request: Request, response: Response | Busy | None) -> None:
        head = request.head
        head.series.active -= 1
        if isinstance(response, Response):
            seconds = time.perf_counter() - request.began
            head.series.add(seconds)
            self._gate.log.add(request.id, "POST", head.path, 200, seconds)
        request.on_response(request, response)
