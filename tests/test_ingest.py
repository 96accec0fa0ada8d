"""The ingest child as a real process: what it answers, and what becomes of it when it hangs or dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from app.errors import Invalid, Malformed, TooLarge
from app.ingest import Ingest
from app.learning.table import load

CSV = b"a,b,y\n1,x,no\n2.5,,yes\n"


def run(test: Callable[[Ingest], Awaitable[None]], seconds: float = 120) -> None:
    """Run a test against a child of its own; the child is gone afterwards."""

    async def main() -> None:
        ingest = Ingest(max_rows=100, max_columns=5, seconds=seconds)
        try:
            await test(ingest)
        finally:
            await ingest.close()
        assert [] == children()

    asyncio.run(main())


def children() -> list[int]:
    """Give the ids of this process's living ingest children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if (
                int(fields[1]) == os.getpid()
                and fields[0] != "Z"
                and b"ingest_child" in (folder / "cmdline").read_bytes()
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def given(folder: Path, body: Any) -> Path:
    path = folder / "body"
    path.write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
    return path


def test_a_child_parses_one_file_after_the_other_and_says_what_is_wrong(tmp_path: Path) -> None:
    out = tmp_path / "table"

    async def test(ingest: Ingest) -> None:
        parsed = await ingest.parse(given(tmp_path, CSV), "csv", out)
        assert (2, "y", out) == (parsed.rows, parsed.default_target, parsed.path)
        assert [column.describe() for column in load(out).columns] == parsed.columns
        (child,) = children()

        with pytest.raises(Invalid, match="Expected 3 cells as in the header, got 2 in row 1") as caught:
            await ingest.parse(given(tmp_path, b"a,b,y\n1,2,3\n4,5\n"), "csv", out)
        assert (("rows", 1), "ragged_row") == (caught.value.faults[0].loc, caught.value.faults[0].code)
        with pytest.raises(Malformed, match="UTF-8"):
            await ingest.parse(given(tmp_path, b"a,b\n\xff,2\n"), "csv", out)
        with pytest.raises(TooLarge, match="at most 5 columns, got 6"):
            await ingest.parse(given(tmp_path, b"a,b,c,d,e,f\n1,2,3,4,5,6\n"), "csv", out)
        with pytest.raises(TooLarge, match="at most 100 rows, got 101"):
            await ingest.parse(given(tmp_path, b"a\n" + b"1\n" * 101), "csv", out)

        corrected = await ingest.parse(given(tmp_path, CSV), "csv", out, {"a": "categorical"})
        assert "categorical" == corrected.columns[0]["kind"]
        assert [child] == children()

    run(test)


def test_a_body_is_split_into_its_data_and_the_rest(tmp_path: Path) -> None:
    data = tmp_path / "data"
    inner = {"x": [[1.5, None]], "y": ["é\u2028"]}

    async def test(ingest: Ingest) -> None:
        reply = await ingest.split(given(tmp_path, {"data": inner, "target": "é\u2028\n"}), data)
        assert {"rest": {"target": "é\u2028\n"}, "has_data": True} == reply
        assert inner == json.loads(data.read_bytes())

        assert {"rest": {"a": 1}, "has_data": False} == await ingest.split(given(tmp_path, {"a": 1}), data)
        with pytest.raises(Invalid, match="Expected a JSON object"):
            await ingest.split(given(tmp_path, [1]), data)
        with pytest.raises(Malformed, match="Expected JSON"):
            await ingest.split(given(tmp_path, b"{"), data)
        with pytest.raises(Invalid, match="finite numbers"):
            await ingest.split(given(tmp_path, b'{"data": {"x": [[1e999]], "y": [1]}}'), data)
        for deep in (b'{"data": %s}', b'{"fit": %s}'):
            for depth in (500, 100_000):
                with pytest.raises(Malformed):
                    await ingest.split(given(tmp_path, deep % (b"[" * depth + b"]" * depth)), data)
        assert 1 == len(children())

    run(test)


def test_files_that_come_at_once_get_each_their_own_answer(tmp_path: Path) -> None:
    async def test(ingest: Ingest) -> None:
        for i in range(8):
            (tmp_path / f"raw{i}").write_bytes(b"a,y\n" + b"1,2\n" * (i + 1))

        parsed = await asyncio.gather(
            *(ingest.parse(tmp_path / f"raw{i}", "csv", tmp_path / f"out{i}") for i in range(8))
        )

        assert list(range(1, 9)) == [each.rows for each in parsed]
        assert 1 == len(children())

    run(test)


def test_the_description_of_many_long_texts_still_fits(tmp_path: Path) -> None:
    long = [f"{i}{'é' * 1_500_000}" for i in range(12)]  # 200 MB as JSON in ASCII

    async def test(ingest: Ingest) -> None:
        parsed = await ingest.parse(given(tmp_path, {"columns": {"a": long, "y": long}}), "json", tmp_path / "out")
        assert 12 == parsed.columns[0]["unique"]
        assert len(json.dumps(parsed.columns)) < 20_000

    run(test)


def test_a_child_that_was_killed_is_followed_by_another(tmp_path: Path) -> None:
    async def test(ingest: Ingest) -> None:
        await ingest.start()
        (child,) = children()
        os.kill(child, signal.SIGSTOP)
        parsing = asyncio.create_task(ingest.parse(given(tmp_path, CSV), "csv", tmp_path / "out"))
        await asyncio.sleep(0.1)

        os.kill(child, signal.SIGKILL)

        with pytest.raises(Invalid, match="could not be parsed"):
            await parsing
        assert 2 == (await ingest.parse(given(tmp_path, CSV), "csv", tmp_path / "out")).rows
        assert child not in children()

    run(test)


def test_a_file_that_takes_too_long_is_given_up_with_its_child(tmp_path: Path) -> None:
    async def test(ingest: Ingest) -> None:
        await ingest.start()
        (child,) = children()
        os.kill(child, signal.SIGSTOP)

        with pytest.raises(Invalid, match=r"Expected a file that parses within 0.5 seconds"):
            await ingest.parse(given(tmp_path, CSV), "csv", tmp_path / "out")

        assert [] == children()

    run(test, seconds=0.5)


def test_a_request_that_is_given_up_leaves_no_answer_for_the_next(tmp_path: Path) -> None:
    async def test(ingest: Ingest) -> None:
        await ingest.start()
        (child,) = children()
        os.kill(child, signal.SIGSTOP)
        parsing = asyncio.create_task(ingest.parse(given(tmp_path, CSV), "csv", tmp_path / "out"))
        await asyncio.sleep(0.1)

        parsing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await parsing

        assert {"rest": {}, "has_data": False} == await ingest.split(given(tmp_path, {}), tmp_path / "data")
        assert child not in children()

    run(test)
