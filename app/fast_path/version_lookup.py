"""The version that a reference means, where memory alone cannot say it. Knows no request."""

from __future__ import annotations

import asyncio

from app.fast_path.attempt import attempt
from app.records.ref import Ref
from app.serving.predictor import LoadedVersion
from app.serving.version_cache import VersionCache

#: longest wait for the database to resolve a reference; after it the last known version is used
LOOKUP_SECONDS = 0.25


class VersionLookup:
    """Asks the database, in a thread, once for all requests that wait for the same reference."""

    def __init__(self, cache: VersionCache) -> None:
        self._cache = cache
        self._lookups: dict[Ref, asyncio.Task[LoadedVersion | None]] = {}

    async def get(self, ref: Ref) -> LoadedVersion | None:
        """Return the version, loaded; None where the route has to say what is wrong."""
        earlier = self._lookups.get(ref)
        if earlier is not None:
            await asyncio.wait([earlier], timeout=LOOKUP_SECONDS)
            # the earlier lookup may have read the database before the commit that this request comes after
            loaded = self._cache.find_now(ref)
            if loaded is not None:
                return loaded
        lookup = self._lookups.get(ref)
        if lookup is None:
            lookup = self._lookups[ref] = asyncio.create_task(self._load(ref))
        await asyncio.wait([lookup], timeout=LOOKUP_SECONDS)
        return lookup.result() if lookup.done() else self._cache.find_last(ref)

    async def _load(self, ref: Ref) -> LoadedVersion | None:
        try:
            return await asyncio.to_thread(attempt, self._cache.get, ref)
        finally:
            del self._lookups[ref]
