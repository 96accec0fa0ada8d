"""The metrics of several processes as those of one. Knows nothing of what they count.

Each process gives its page on a socket of its own. Who is asked for all of them writes each down and adds them up: what a
process had counted when it was last asked counts on after its end, so that no sum ever falls.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

ASK_SECONDS = 2.0
#: gauges that say the same in every process, or of which the newest or largest one counts
_OF_ALL = frozenset(
    {
        *("fitserve_jobs", "fitserve_insecure_no_auth", "target_info", "python_info"),
        *("process_start_time_seconds", "process_max_fds"),
    }
)
#: what ended processes had counted
_ENDED = "ended"
_END = b"# EOF\n"


class Totals:
    """One process's part in it.

    Args:
        folder: the same for all processes, and empty at the start of the first one.
        page: gives this process's own metrics in Prometheus's text format; it is called in a thread.
    """

    def __init__(self, folder: Path, page: Callable[[], bytes]) -> None:
        self._folder, self._page = folder, page

    async def serve(self) -> None:
        """Give this process's page to those who ask; to be run as a task."""

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                writer.write(await asyncio.to_thread(self._page) + _END)
                await writer.drain()
            finally:
                writer.close()

        server = await asyncio.start_unix_server(answer, self._folder / f"{os.getpid()}.socket")
        async with server:
            await server.serve_forever()

    async def page(self) -> bytes:
        """Give the metrics of all processes, in Prometheus's text format."""
        sockets = list(self._folder.glob("*.socket"))
        pages = await asyncio.gather(*(_ask(each) for each in sockets))
        return await asyncio.to_thread(self._add_up, dict(zip(sockets, pages, strict=True)))

    def _add_up(self, pages: Mapping[Path, bytes | None]) -> bytes:
        with self._alone():
            for socket, page in pages.items():
                # somebody else may have noticed its end meanwhile
                if page is not None and socket.exists():
                    _write(socket.with_suffix(".page"), page)
                elif page is None and socket.exists() and not _is_alive(int(socket.stem)):
                    self._end(socket)
            return added(path.read_text(encoding="utf-8") for path in self._folder.glob("*.page"))

    def _end(self, socket: Path) -> None:
        ended, last = self._folder / f"{_ENDED}.page", socket.with_suffix(".page")
        kept = [path.read_text(encoding="utf-8") for path in (ended, last) if path.exists()]
        _write(ended, added(kept, gauges=False))
        last.unlink(missing_ok=True)
        socket.unlink()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


async def _ask(socket: Path) -> bytes | None:
    try:
        async with asyncio.timeout(ASK_SECONDS):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                page = await reader.read()
            finally:
                writer.close()
    except OSError:
        # TimeoutError is one
        return None
    # one that died while it answered gave a part
    return page if page.endswith(_END) else None


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _write(path: Path, page: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(page)
    new.replace(path)


def added(pages: Iterable[str], *, gauges: bool = True) -> bytes:
    """Add up pages in Prometheus's text format, sample by sample.

    Args:
        gauges: whether they are kept: those of an ended process say nothing.
    """
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            if not gauges and family.type not in ("counter", "histogram", "summary"):
                continue
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            found = values.setdefault(family.name, {})
            for sample in family.samples:
                at = sample.name, tuple(sample.labels.items())
                same = family.name in _OF_ALL
                found[at] = max(found.get(at, sample.value), sample.value) if same else found.get(at, 0) + sample.value
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    return generate_latest(_Families(families.values()))


class _Families:
    """What `generate_latest` takes for a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
