"""Predictions the short way: plain requests about versions in memory, answered without ASGI, FastAPI or a thread.

What it can vouch for it answers with the bytes that the route would give. All else goes to the route as if it had come
there first: that decides, and words what is wrong. Knows no sockets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from app.errors import Busy, FitserveError
from app.fast_path.batcher import Answered
from app.fast_path.formats import LOOP_ROWS_BYTES, WireFormat, Written, dialect_of
from app.fast_path.parse import MatrixReader
from app.fast_path.version import LOOP_BYTES, FastVersion
from app.http.gate import HEADERS, RequestGate, identify, new_id
from app.http.policy import POLICY, allows
from app.metrics.request_durations import Series, Tally
from app.metrics.version_usage import Part, Stopwatch
from app.records.registry import Ref
from app.serving.predictor import LoadedVersion
from app.wiring import Services

logger = logging.getLogger(__name__)

#: heads that are known again, and their longest, in bytes
MAX_HEADS, MAX_KNOWN_BYTES = 1024, 1024
#: what a prediction waits for the database to say what a reference means now; then what it last meant stands
PATIENCE_SECONDS = 0.25
_HEAD = b"%bcontent-length: %d\r\ncontent-type: %b\r\n%bx-request-id: %b\r\n"
_HEADERS = b"".join(b"%b: %b\r\n" % header for header in HEADERS)


#: names in lower case, and values
Headers = list[tuple[bytes, bytes]]


class Asked(NamedTuple):
    """A plain request: what it is about, how it speaks, and when it began."""

    ref: Ref
    dialect: WireFormat
    path: str
    headers: Headers
    #: those there were when its own was looked at
    keys: object
    request_id: str
    began: float


class _Head(NamedTuple):
    """What a head asked for when it was last read, and the size of the body behind it."""

    asked: Asked
    size: int


class Answer(NamedTuple):
    """An answer with status 200: the lines of its head that are its own, and its body."""

    head: bytes
    body: bytes


#: is told the answer, once, on the event loop; None where the route has to answer
Tell = Callable[[Answer | Busy | None], None]


class _Come(NamedTuple):
    """A request that is whole, when it entered the lane, and who is told its answer."""

    asked: Asked
    body: bytes
    entered: float
    tell: Tell
    series: Series


class FastPath:
    """The short way.

    Args:
        tally: counts what is answered here.
        edge: what every request passes, this way too.
    """

    def __init__(self, services: Services, tally: Tally, edge: RequestGate) -> None:
        self._services = services
        self._tally = tally
        self._edge = edge
        self._lane = services.lanes.predictions
        #: a longer body is refused by the route
        self.most_bytes = services.settings.max_predict_bytes
        self._reader = MatrixReader()
        self._served: WeakKeyDictionary[LoadedVersion, FastVersion] = WeakKeyDictionary()
        self._heads: dict[bytes, _Head] = {}
        self._asking: dict[Ref, asyncio.Task[LoadedVersion | None]] = {}
        # the event loop keeps no task alive
        self._tasks = set[asyncio.Task[None]]()

    def plain(self, path: bytes, headers: Headers) -> Asked | None:
        """Give what a POST asks for; None where it is not plain, or may not be answered.

        Args:
            path: as it came, with its query.
        """
        # before the key is looked at: they may change meanwhile
        keys = self._services.keys.known
        named = dict(headers)
        spoken = dialect_of(path, named)
        # a header that came twice, and what only the route can undo
        if spoken is None or len(named) != len(headers) or b"content-encoding" in named:
            return None
        if not self._is_short(named.get(b"content-length", b"0")) or not self._may(named):
            return None
        if self._edge.refusal("POST", named) is not None:
            return None
        dialect, ref = spoken
        return Asked(ref, dialect, path.decode(), headers, keys, identify(named), time.perf_counter())

    def _is_short(self, length: bytes) -> bool:
        # Python refuses to read thousands of digits
        return length.isdigit() and len(length) < 20 and int(length) <= self.most_bytes

    def _may(self, headers: dict[bytes, bytes]) -> bool:
        if not self._services.settings.needs_key:
            return True
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        scopes = self._services.keys.scopes(key.decode("latin-1")) if scheme == b"Bearer" else None
        return scopes is not None and allows(scopes, POLICY["predict"])

    def recall(self, request: bytes) -> tuple[Asked, bytes] | None:
        """Read a whole request whose head is known; gives what it asks for, and its body.

        Clients send the same head again and again: to parse and judge it takes as long as all else.
        """
        end = request.find(b"\r\n\r\n") + 4
        head = self._heads.get(request[:end])
        if head is None or len(request) != end + head.size or head.asked.keys is not self._services.keys.known:
            return None
        asked = head.asked
        return Asked(*asked[:5], new_id(), time.perf_counter()), request[end:]

    def learn(self, asked: Asked, head: bytes, size: int) -> None:
        """Know a plain request's head again, where it may come again: with a body of the same size, and no id."""
        if len(head) <= MAX_KNOWN_BYTES and b"x-request-id" not in head.lower():
            if len(self._heads) >= MAX_HEADS:
                del self._heads[next(iter(self._heads))]
            self._heads[head] = _Head(asked, size)

    def answer(self, asked: Asked, body: bytes, tell: Tell) -> None:
        """Answer a request soon, or at once."""
        entered = self._lane.enter()
        if entered is None:
            tell(self._lane.refusal())
            return
        series = self._tally.series("POST", asked.dialect.route)
        series.active += 1
        come = _Come(asked, body, entered, tell, series)
        loaded = self._services.version_cache.known(asked.ref)
        if loaded is None:
            self._start(self._find(come))
        else:
            self._serve(loaded, come)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _find(self, come: _Come) -> None:
        loaded = None
        try:
            loaded = await self._ask(come.asked.ref)
        finally:
            if loaded is None:
                self._leave(come, None)
        if loaded is not None:
            self._serve(loaded, come)

    def _serve(self, loaded: LoadedVersion, come: _Come) -> None:
        dialect, body = come.asked.dialect, come.body
        read = served = None
        try:
            served = self._served.get(loaded)
            if served is None:
                served = self._served[loaded] = FastVersion(loaded, self._lane)
            if len(body) <= LOOP_BYTES:
                read = dialect.read(served, body, self._reader)
        except FitserveError:
            # the route says it
            pass
        except Exception:
            # what is wrong here need not be wrong there
            logger.exception("the short way failed")
            served = None
        if served is None:
            self._leave(come, None)
        elif read is not None:
            tell = partial(self._write, come, served, read.about, time.perf_counter())
            served.ask(read.rows, come.entered, tell)
        elif dialect.long is not None and len(body) > LOOP_ROWS_BYTES:
            self._start(self._serve_long(partial(dialect.long, served, loaded, body), served.key, come))
        else:
            self._leave(come, None)

    def _write(
        self, come: _Come, served: FastVersion, about: Any, read_at: float, found: Answered | Busy | None
    ) -> None:
        if not isinstance(found, Answered):
            self._leave(come, found)
            return
        written = None
        try:
            written = come.asked.dialect.write(served, found, about)
            self._count(come, served, read_at, found)
        except Exception:
            logger.exception("an answer could not be written, or not be counted")
        self._leave(come, written)

    def _count(self, come: _Come, served: FastVersion, read_at: float, found: Answered) -> None:
        ns: dict[Part, int] = {
            "queue": int((found.began - read_at) * 1e9),
            "input": int((read_at - come.entered) * 1e9),
            "infer": int((found.ended - found.began) * 1e9),
            "output": int((time.perf_counter() - found.ended) * 1e9),
        }
        self._services.usage.add_shared(served.key, len(found.best), ns, executions=found.is_first)

    async def _serve_long(self, work: Callable[[Stopwatch], Written | None], key: str, come: _Come) -> None:
        found: Written | Busy | None = None
        watch = Stopwatch()

        def run() -> Written | None:
            watch.end("queue")
            return work(watch)

        try:
            found = await self._lane.work(run, come.entered)
            if found is not None:
                watch.end("output")
                self._services.usage.add(key, watch)
        except Busy as error:
            found = error
        except FitserveError:
            # the route says it
            pass
        except Exception:
            logger.exception("a long body could not be answered")
        finally:
            self._end(come, found)

    def _leave(self, come: _Come, found: Written | Busy | None) -> None:
        # what the route answers ends there
        self._lane.leave(has_ended=found is not None)
        self._end(come, found)

    def _end(self, come: _Come, found: Written | Busy | None) -> None:
        come.series.active -= 1
        if not isinstance(found, Written):
            come.tell(found)
            return
        asked = come.asked
        seconds = time.perf_counter() - asked.began
        come.series.add(seconds)
        self._edge.log.add(asked.request_id, "POST", asked.path, 200, seconds)
        lines, media_type, body = found
        head = _HEAD % (lines, len(body), media_type, _HEADERS, asked.request_id.encode())
        come.tell(Answer(head, body))

    async def _ask(self, ref: Ref) -> LoadedVersion | None:
        """Ask the database, once for all who wait; None where the route has to say what is wrong."""
        begun = self._asking.get(ref)
        if begun is not None:
            await asyncio.wait([begun], timeout=PATIENCE_SECONDS)
            # it may have looked before the commit that this request comes after
            loaded = self._services.version_cache.known(ref)
            if loaded is not None:
                return loaded
        task = self._asking.get(ref)
        if task is None:
            task = self._asking[ref] = asyncio.create_task(self._load(ref))
        await asyncio.wait([task], timeout=PATIENCE_SECONDS)
        return task.result() if task.done() else self._services.version_cache.last_known(ref)

    async def _load(self, ref: Ref) -> LoadedVersion | None:
        try:
            return await asyncio.to_thread(self._services.version_cache.get, ref)
        except FitserveError:
            return None
        except Exception:
            logger.exception("a version could not be looked up")
            return None
        finally:
            del self._asking[ref]
