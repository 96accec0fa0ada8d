"""A training process, as its worker sees it: spawned warm, asked once, heard line by line. Knows no jobs."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import suppress
from typing import Any

from app.system.child_process import SAID_LINES, command, keep_said


class TrainingProcess:
    """One training process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        #: the last lines of its standard error
        self.said: deque[str] = deque(maxlen=SAID_LINES)
        assert process.stderr is not None
        self._listener = asyncio.create_task(keep_said(process.stderr, self.said))

    @classmethod
    async def spawn(cls, environment: dict[str, str]) -> TrainingProcess:
        """Start a child that imports Keras and then waits for its request."""
        process = await asyncio.create_subprocess_exec(
            *command("app.jobs.training_child"),
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=64 * 1024**2,
        )
        return cls(process)

    async def ask(self, request: dict[str, Any]) -> None:
        """Send the one request; where the child is dead, `event` says so."""
        assert self.process.stdin is not None
        with suppress(ConnectionError):
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            await self.process.stdin.drain()

    async def event(self) -> dict[str, Any] | None:
        """Give the next event, or None when the child has ended."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def interrupt(self) -> None:
        """Ask the child for a checkpoint and its end."""
        with suppress(ProcessLookupError):
            self.process.terminate()

    async def kill(self) -> None:
        """End the child now and wait for that."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await asyncio.shield(self.process.wait())
