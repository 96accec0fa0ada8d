"""A conversation with a child process: each message is a line of JSON. Knows no message, and no kind of child.

`ChildProcess` is the parent's side, `ParentProcess` the child's.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
from asyncio.subprocess import PIPE
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Generic, TypeVar, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from app.system.child_process import command

#: lines of a child's standard error that are kept for the log, and characters of each
LAST_LINES, LINE_CHARACTERS = 40, 500
#: how long the end of a dead child's standard error is waited for
LAST_LINES_SECONDS = 1.0
#: longest line that a child may send
MAX_LINE_BYTES = 64 * 1024**2
#: nothing is built at the import, where it would delay each start of the service
_CONFIG = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants", defer_build=True)

Message = TypeVar("Message")
Request = TypeVar("Request")
Reply = TypeVar("Reply")


class UnexpectedMessage(ValueError):
    """A line is not a message of this conversation."""


class MessageTooLong(ValueError):
    """A line is longer than `MAX_LINE_BYTES`."""


class Codec(Generic[Message]):
    """Messages as lines of JSON.

    Args:
        kind: a dataclass, or a union of dataclasses that differ in the value of their field `type`.
    """

    def __init__(self, kind: Any) -> None:
        self._members = get_args(kind) or (kind,)
        self._adapter: TypeAdapter[Message]
        if len(self._members) > 1:
            union: Any = Annotated[kind, Field(discriminator="type")]
            self._adapter = TypeAdapter(union, config=_CONFIG)
        else:
            # pydantic takes the configuration of a single dataclass from its class alone
            self._adapter = TypeAdapter(with_config(_CONFIG)(kind))

    def prepare(self) -> None:
        """Have pydantic build the validator and the serializer now, and not at the first message."""
        self._adapter.rebuild()

    def encode(self, message: Message) -> bytes:
        """Return a message as a line."""
        return self._adapter.dump_json(message) + b"\n"

    def decode(self, line: bytes) -> Message:
        """Return the message of a line.

        Raises:
            UnexpectedMessage: the line is not JSON, is of another type, or lacks a field or has a wrong one.
        """
        try:
            return self._adapter.validate_json(line)
        except ValidationError as error:
            names = " or ".join(member.__name__ for member in self._members)
            fault = error.errors(include_url=False)[0]
            reason = ": ".join([*map(str, fault["loc"]), fault["msg"]])
            raise UnexpectedMessage(f"Expected {names}, got {line[:200]!r}; {reason}") from error


class ChildProcess(Generic[Request, Reply]):
    """A child process, as its parent sees it. It dies with the thread that spawned it."""

    def __init__(self, process: asyncio.subprocess.Process, requests: Codec[Request], replies: Codec[Reply]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout
        self._requests, self._replies = requests, replies
        #: the end of what the child has written to its standard error
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._listener = asyncio.create_task(self._keep_last_lines(process.stderr))

    @classmethod
    async def spawn(
        cls,
        module: str,
        *arguments: str,
        requests: Codec[Request],
        replies: Codec[Reply],
        environment: Mapping[str, str] = os.environ,
    ) -> ChildProcess[Request, Reply]:
        """Start a child that runs a module; to be called in the thread whose end is to kill the child."""
        process = await asyncio.create_subprocess_exec(
            *command(module, *arguments), env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=MAX_LINE_BYTES
        )
        return cls(process, requests, replies)

    @property
    def is_alive(self) -> bool:
        """Whether the child can take a request."""
        return self._process.returncode is None and not self._stdin.is_closing()

    async def send(self, request: Request) -> None:
        """Send a request; where the child is dead, `read` says so."""
        with suppress(ConnectionError):
            self._stdin.write(self._requests.encode(request))
            await self._stdin.drain()

    async def read(self) -> Reply | None:
        """Return the next reply, or None where the child has ended; `last_lines` are complete then.

        Raises:
            UnexpectedMessage, MessageTooLong
        """
        try:
            line = await self._stdout.readline()
        except ConnectionError:
            line = b""
        except ValueError as error:
            # how asyncio reports a line beyond the limit
            raise MessageTooLong(f"Expected a line of at most {MAX_LINE_BYTES} bytes.") from error
        if line.endswith(b"\n"):
            return self._replies.decode(line)
        await asyncio.wait({self._listener}, timeout=LAST_LINES_SECONDS)
        return None

    def interrupt(self) -> None:
        """Send the child SIGTERM."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    async def kill(self) -> None:
        """End the child and wait until it has ended."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await asyncio.shield(self._process.wait())

    async def _keep_last_lines(self, stderr: asyncio.StreamReader) -> None:
        async for line in stderr:
            self.last_lines.append(line.decode(errors="replace").rstrip()[:LINE_CHARACTERS])


class ParentProcess(Generic[Request, Reply]):
    """The parent of this process, as the process itself sees it.

    Standard output belongs to the replies from here on; what a library prints goes to standard error.
    """

    def __init__(self, requests: Codec[Request], replies: Codec[Reply]) -> None:
        self._requests, self._replies = requests, replies
        for codec in (requests, replies):
            codec.prepare()
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    @property
    def has_request(self) -> bool:
        """Whether a request, or the end of all requests, is there to be read; before the first `read` only."""
        return bool(select.select([sys.stdin], [], [], 0)[0])

    def read(self) -> Request | None:
        """Wait for the next request and return it, or None where no more will come."""
        line = sys.stdin.buffer.readline()
        return self._requests.decode(line) if line.endswith(b"\n") else None

    def send(self, reply: Reply) -> None:
        """Send a reply."""
        self._out.write(self._replies.encode(reply))
        self._out.flush()
