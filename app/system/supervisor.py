"""A child process that is started again whenever it dies. Knows nothing of what it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress

logger = logging.getLogger(__name__)

#: one that dies is started again after this, doubled each time up to the last
RESTART_SECONDS = (0.2, 10.0)


class SupervisedProcess:
    """Keeps one child alive; it is spawned from the thread of the event loop, whose end is to kill it.

    Args:
        name: in the log.
        descriptors: what the child inherits.
        says_ready: whether the child says by a line on its standard output that it does its work.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        descriptors: Sequence[int] = (),
        says_ready: bool = False,
    ) -> None:
        self._name, self._command, self._environment = name, command, environment
        self._descriptors, self._says_ready = descriptors, says_ready
        self._child: asyncio.subprocess.Process | None = None
        self._is_wanted = True
        self.is_ready = asyncio.Event()

    async def run(self) -> None:
        """Start it, again and again, until it is to stop; to be run as a task."""
        delay, longest = RESTART_SECONDS
        while self._is_wanted:
            started = asyncio.get_running_loop().time()
            try:
                await self._live()
            except OSError:
                logger.exception("%s not started", self._name)
            lived = asyncio.get_running_loop().time() - started
            delay = RESTART_SECONDS[0] if lived > longest else min(delay * 2, longest)
            if self._is_wanted:
                await asyncio.sleep(delay)

    def terminate(self) -> None:
        """Ask it to end, for good."""
        self._is_wanted = False
        if self._child is not None and self._child.returncode is None:
            with suppress(ProcessLookupError):
                self._child.terminate()

    async def stop(self, seconds: float) -> None:
        """Ask it to end, for good, and kill it where it takes longer."""
        self.terminate()
        if self._child is None:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._child.wait()
        except TimeoutError:
            self._child.kill()

    async def _live(self) -> None:
        self._child = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            pass_fds=self._descriptors,
            stdout=asyncio.subprocess.PIPE if self._says_ready else None,
        )
        if self._child.stdout is not None and await self._child.stdout.readline():
            self.is_ready.set()
        code = await self._child.wait()
        if self._is_wanted:
            logger.error("%s ended", self._name, extra={"exit_code": code})
