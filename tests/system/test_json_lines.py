"""A conversation in lines of JSON: what is a message and what is not, and children that die or say too much."""

from __future__ import annotations

import asyncio
import math
import os
import textwrap
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from app.system.json_lines import MAX_LINE_BYTES, ChildProcess, Codec, MessageTooLong, UnexpectedMessage
from tests.service import ROOT


@dataclass(frozen=True)
class Ask:
    text: str
    path: Path
    number: float
    type: Literal["ask"] = "ask"


@dataclass(frozen=True)
class Stop:
    type: Literal["stop"] = "stop"


QUESTIONS: Codec[Ask | Stop] = Codec(Ask | Stop)
ASKS: Codec[Ask] = Codec(Ask)
ECHO = """
    import os, signal, sys, time
    from app.system.json_lines import ParentProcess
    from tests.system.test_json_lines import ASKS, QUESTIONS, Stop

    parent = ParentProcess(QUESTIONS, ASKS)
    print("a library prints")
    while (request := parent.read()) is not None:
        if isinstance(request, Stop):
            print("the last words", file=sys.stderr)
            os.kill(os.getpid(), signal.SIGKILL)
        parent.send(request)
"""
Child = ChildProcess[Ask | Stop, Ask]


def run(folder: Path, task: str, test: Callable[[Child], Awaitable[None]]) -> None:
    """Run a test against a child that carries out this code; the child is gone afterwards."""
    (folder / "task.py").write_text(textwrap.dedent(task))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}

    async def main() -> None:
        child = await Child.spawn("task", requests=QUESTIONS, replies=ASKS, environment=environment)
        try:
            await test(child)
        finally:
            await child.kill()
        assert not child.is_alive

    asyncio.run(main())


@pytest.mark.parametrize("number", [1.0, 1e-320, -0.0, 1.7976931348623157e308, math.inf])
def test_a_message_comes_back_as_it_was(number: float) -> None:
    message = Ask("é\u2028\n\x00", Path("/a folder/é"), number)

    assert message == QUESTIONS.decode(QUESTIONS.encode(message)) == ASKS.decode(ASKS.encode(message))
    assert 1 == QUESTIONS.encode(message).count(b"\n")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\n", "Invalid JSON"),
        (b'{"type":"stop"', "Invalid JSON"),
        (b"[]", "Input should be an object"),
        (b'{"text":"a"}', "Unable to extract tag using discriminator 'type'"),
        (b'{"type":"go"}', "'ask', 'stop'"),
        (b'{"type":"ask","text":"a","path":"/"}', "ask: number: Field required"),
        (b'{"type":"ask","text":"a","path":"/","number":"1"}', "ask: number: Input should be a valid number"),
        (b'{"type":"stop","text":"a"}', "stop: text: Unexpected keyword argument"),
    ],
)
def test_a_line_that_is_no_message_is_refused_with_the_reason(line: bytes, reason: str) -> None:
    with pytest.raises(UnexpectedMessage, match=f"Expected Ask or Stop, got .*{reason}"):
        QUESTIONS.decode(line)


def test_a_message_of_the_other_side_is_refused() -> None:
    with pytest.raises(UnexpectedMessage, match="Expected Ask, got"):
        ASKS.decode(QUESTIONS.encode(Stop()))


def test_a_child_answers_and_what_a_library_prints_is_no_reply(tmp_path: Path) -> None:
    async def test(child: Child) -> None:
        for text in ("one", "two" * 100_000):
            await child.send(Ask(text, tmp_path, 1.5))
            assert Ask(text, tmp_path, 1.5) == await child.read()

    run(tmp_path, ECHO, test)


def test_a_child_that_dies_ends_the_replies_and_leaves_its_last_words(tmp_path: Path) -> None:
    async def test(child: Child) -> None:
        await child.send(Stop())
        assert await child.read() is None
        assert ["a library prints", "the last words"] == list(child.last_lines)
        await child.send(Ask("too late", tmp_path, 1))
        assert await child.read() is None

    run(tmp_path, ECHO, test)


def test_a_reply_that_is_cut_off_is_none(tmp_path: Path) -> None:
    async def test(child: Child) -> None:
        assert await child.read() is None

    run(tmp_path, """print('{"type":"ask","text":"a","path":"/","number":1}', end="", flush=True)""", test)


def test_a_reply_that_is_too_long_is_refused(tmp_path: Path) -> None:
    async def test(child: Child) -> None:
        with pytest.raises(MessageTooLong, match=f"at most {MAX_LINE_BYTES} bytes"):
            await child.read()

    run(tmp_path, f"print('a' * {MAX_LINE_BYTES + 1}, flush=True)\nimport time; time.sleep(60)", test)


def test_an_interrupt_is_sigterm(tmp_path: Path) -> None:
    task = """
        import signal, time
        from pathlib import Path
        from app.system.json_lines import ParentProcess
        from tests.system.test_json_lines import ASKS, QUESTIONS, Ask

        parent, numbers = ParentProcess(QUESTIONS, ASKS), []
        signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
        parent.send(Ask("ready", Path("/"), 0))
        while not numbers:
            time.sleep(0.01)
        parent.send(Ask("interrupted", Path("/"), numbers[0]))
    """

    async def test(child: Child) -> None:
        assert Ask("ready", Path("/"), 0) == await child.read()
        child.interrupt()
        assert Ask("interrupted", Path("/"), 15) == await child.read()

    run(tmp_path, task, test)
