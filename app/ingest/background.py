"""Large uploads, which are answered first and parsed afterwards, one at a time; a restart takes up what a stop left."""

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

#: how long parsing waits for a database or a disk that cannot be written
RETRY_SECONDS = 5.0
#: the label of the staging folders that background parsing works in
STAGING = "intake"


class BackgroundParser:
    """Parses the data sets that are stored and not yet parsed: those of the status "processing" in the database."""

    def __init__(self, datasets: Datasets, blobs: Blobs, parser: ParserProcess) -> None:
        self._datasets, self._blobs, self._parser = datasets, blobs, parser
        self._has_news = asyncio.Event()

    async def close(self) -> None:
        """End the parser process."""
        await self._parser.close()

    def wake(self) -> None:
        """Have `run` look for data sets now: there is a new one."""
        self._has_news.set()

    async def run(self, every: float | None = None) -> None:
        """Parse the data sets that there are, and then each new one; to be run as a task.

        Args:
            every: longest time in seconds between two looks into the database; other processes take uploads, too.
        """
        while True:
            self._has_news.clear()
            try:
                for dataset in await asyncio.to_thread(self._datasets.processing):
                    await self._parse(dataset)
            except (Unavailable, StorageFull):
                logger.warning("a data set must wait", exc_info=True)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await self._has_news.wait()

    async def _parse(self, dataset: Dataset) -> None:
        """Parse one data set, and note in the database that it is ready, or why it failed."""
        with self._blobs.staging(STAGING) as folder:
            try:
                raw = self._datasets.raw_path(dataset)
                parsed = await self._parser.parse(raw, dataset.format, folder / "table")
                await asyncio.to_thread(self._datasets.finish, dataset.id, parsed)
            except (NotFound, Conflict):
                # the data set was deleted meanwhile
                logger.info("data set gone", extra={"dataset_id": dataset.id})
            except (StorageFull, Unavailable):
                raise
            except FitserveError as error:
                await asyncio.to_thread(self._datasets.fail, dataset.id, error.code, error.message)
            except Exception:
                # a fault of the service fails the one data set, so that the others do not wait for it
                logger.exception("a data set could not be read", extra={"dataset_id": dataset.id})
                await asyncio.to_thread(self._datasets.fail, dataset.id, "internal", "The service could not read it.")
