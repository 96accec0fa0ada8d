"""A child process that is started again whenever it dies. Knows nothing of what the child does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress

logger = logging.getLogger(__name__)

#: a child that dies is started again after the first; each further death doubles the time, up to the second
RESTART_SECONDS = (0.2, 10.0)


class SupervisedProcess:
    """Keeps one child process alive. The child is spawned from the event loop's thread, whose end kills it.

    Args:
        name: of the child, in the log.
        descriptors: file descriptors that the child inherits.
        says_ready: whether the child writes a line to its standard output once it does its work; `is_ready` is set
            then.
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
        """Start the child, again and again, until `terminate` or `stop`; to be run as a task."""
        shortest, longest = RESTART_SECONDS
        delay = shortest
        while self._is_wanted:
            started = asyncio.get_running_loop().time()
            try:
                await self._live()
            except OSError:
                logger.exception("%s not started", self._name)
            lived = asyncio.get_running_loop().time() - started
            delay = shortest if lived > longest else min(delay * 2, longest)
            if self._is_wanted:
                await asyncio.sleep(delay)

    def terminate(self) -> None:
        """Send the child SIGTERM, and do not start it again."""
        self._is_wanted = False
        if self._child is not None and self._child.returncode is None:
            with suppress(ProcessLookupError):
                self._child.terminate()

    async def stop(self, seconds: float) -> None:
        """Terminate the child and wait for its end; kill it where that takes longer than this."""
        self.terminate()
        if self._child is None:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._child.wait()
        except TimeoutError:
            self._child.kill()

    async def _live(self) -> None:
        """Start the child and wait for its end."""
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
