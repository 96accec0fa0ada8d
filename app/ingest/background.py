"""Large uploads, read after they were answered, one at a time; what a stop interrupted is taken up at the next start."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from app.errors import Conflict, FitserveError, NotFound, StorageFull, Unavailable
from app.ingest.parser_process import ParserProcess
from app.records.dataset import Dataset
from app.records.datasets import Datasets
from app.storage.blobs import Blobs

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
#: the label of staging folders that it works in
STAGING = "intake"


class BackgroundParser:
    """The queue of data sets that are stored and not yet read; its truth is their status in the database."""

    def __init__(self, datasets: Datasets, blobs: Blobs, ingest: ParserProcess) -> None:
        self._datasets, self._blobs, self._ingest = datasets, blobs, ingest
        self._news = asyncio.Event()

    async def close(self) -> None:
        """End its child."""
        await self._ingest.close()

    def wake(self) -> None:
        """Say that there is a new one."""
        self._news.set()

    async def run(self, every: float | None = None) -> None:
        """Read what there is, and then what comes; to be run as a task.

        Args:
            every: look also after so many seconds: other processes take uploads, too.
        """
        while True:
            self._news.clear()
            try:
                for dataset in await asyncio.to_thread(self._datasets.processing):
                    await self._read(dataset)
            except (Unavailable, StorageFull):
                logger.warning("a data set must wait", exc_info=True)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await self._news.wait()

    async def _read(self, dataset: Dataset) -> None:
        with self._blobs.staging(STAGING) as folder:
            try:
                raw = self._datasets.raw_path(dataset)
                parsed = await self._ingest.parse(raw, dataset.format, folder / "table")
                await asyncio.to_thread(self._datasets.finish, dataset.id, parsed)
            except (NotFound, Conflict):
                # it was deleted meanwhile
                logger.info("data set gone", extra={"dataset_id": dataset.id})
            except (StorageFull, Unavailable):
                raise
            except FitserveError as error:
                await asyncio.to_thread(self._datasets.fail, dataset.id, error.code, error.message)
            except Exception:
                # the others are not to wait for it
                logger.exception("a data set could not be read", extra={"dataset_id": dataset.id})
                await asyncio.to_thread(self._datasets.fail, dataset.id, "internal", "The service could not read it.")
