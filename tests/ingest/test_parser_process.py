"""The parser process: what it answers, and what becomes of a request where it hangs or dies."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import re
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import uvloop

from app.errors import FitserveError, Invalid, Malformed, TooLarge
from app.ingest.parser_process import ParserProcess, SplitBody
from app.learning.tables.describe_column import describe
from app.learning.tables.table_file import TableFile, load_table

CSV = b"a,b,y\n1,x,no\n2.5,,yes\n"


def run(test: Callable[[ParserProcess], Awaitable[None]], **settings: Any) -> None:
    """Run a test against a parser process of its own; the process is gone afterwards."""

    async def main() -> None:
        parser = ParserProcess(**{"max_rows": 100, "max_columns": 5, "seconds": 120.0, **settings})
        try:
            await test(parser)
        finally:
            await parser.close()
        assert [] == children()

    # the service's own event loop
    uvloop.run(main())


def children() -> list[int]:
    """Return the ids of this process's living parser processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if (
                int(fields[1]) == os.getpid()
                and fields[0] != "Z"
                and b"parser_child" in (folder / "cmdline").read_bytes()
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_until_gone(pid: int) -> None:
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.01)


def write_body(folder: Path, body: Any) -> Path:
    path = folder / "body"
    path.write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
    return path


def test_a_process_parses_one_file_after_the_other_and_says_what_is_wrong(tmp_path: Path) -> None:
    out = tmp_path / "table"

    async def test(parser: ParserProcess) -> None:
        parsed = await parser.parse(write_body(tmp_path, CSV), "csv", out)
        assert (2, "y", out) == (parsed.rows, parsed.default_target, parsed.path)
        assert [describe(column) for column in load_table(out).columns] == parsed.columns
        (child,) = children()

        with pytest.raises(Invalid, match="Expected 3 cells as in the header, got 2 in row 1") as caught:
            await parser.parse(write_body(tmp_path, b"a,b,y\n1,2,3\n4,5\n"), "csv", out)
        assert (("rows", 1), "ragged_row") == (caught.value.faults[0].loc, caught.value.faults[0].code)
        with pytest.raises(Malformed, match="UTF-8"):
            await parser.parse(write_body(tmp_path, b"a,b\n\xff,2\n"), "csv", out)
        with pytest.raises(TooLarge, match="at most 5 columns, got 6"):
            await parser.parse(write_body(tmp_path, b"a,b,c,d,e,f\n1,2,3,4,5,6\n"), "csv", out)
        with pytest.raises(TooLarge, match="at most 100 rows, got 101"):
            await parser.parse(write_body(tmp_path, b"a\n" + b"1\n" * 101), "csv", out)

        corrected = await parser.parse(write_body(tmp_path, CSV), "csv", out, {"a": "categorical"})
        assert "categorical" == corrected.columns[0]["kind"]
        assert [child] == children()

    run(test)


def test_a_body_is_split_into_its_data_and_the_rest(tmp_path: Path) -> None:
    data = tmp_path / "data"
    inner = {"x": [[1.5, None]], "y": ["é\u2028"]}

    async def test(parser: ParserProcess) -> None:
        reply = await parser.split(write_body(tmp_path, {"data": inner, "target": "é\u2028\n"}), data)
        assert SplitBody({"target": "é\u2028\n"}, has_data=True) == reply
        assert inner == json.loads(data.read_bytes())

        assert SplitBody({"a": 1}, has_data=False) == await parser.split(write_body(tmp_path, {"a": 1}), data)
        with pytest.raises(Invalid, match="Expected a JSON object"):
            await parser.split(write_body(tmp_path, [1]), data)
        with pytest.raises(Malformed, match="Expected JSON"):
            await parser.split(write_body(tmp_path, b"{"), data)
        with pytest.raises(Invalid, match="finite numbers"):
            await parser.split(write_body(tmp_path, b'{"data": {"x": [[1e999]], "y": [1]}}'), data)
        for deep in (b'{"data": %s}', b'{"fit": %s}'):
            for depth in (500, 100_000):
                with pytest.raises(Malformed):
                    await parser.split(write_body(tmp_path, deep % (b"[" * depth + b"]" * depth)), data)
        assert 1 == len(children())

    run(test)


def test_each_of_the_files_that_come_at_once_gets_its_own_answer(tmp_path: Path) -> None:
    async def test(parser: ParserProcess) -> None:
        for i in range(8):
            (tmp_path / f"raw{i}").write_bytes(b"a,y\n" + b"1,2\n" * (i + 1))

        parsed = await asyncio.gather(
            *(parser.parse(tmp_path / f"raw{i}", "csv", tmp_path / f"out{i}") for i in range(8))
        )

        assert list(range(1, 9)) == [each.rows for each in parsed]
        assert 1 == len(children())

    run(test)


def test_the_description_of_many_long_texts_still_fits(tmp_path: Path) -> None:
    long = [f"{i}{'é' * 1_500_000}" for i in range(12)]  # 200 MB as JSON in ASCII

    async def test(parser: ParserProcess) -> None:
        parsed = await parser.parse(write_body(tmp_path, {"columns": {"a": long, "y": long}}), "json", tmp_path / "out")
        assert 12 == parsed.columns[0]["unique"]
        assert len(json.dumps(parsed.columns)) < 20_000

    run(test)


@pytest.mark.parametrize("is_reaped", [False, True])
def test_a_request_that_meets_a_dead_process_goes_to_another(tmp_path: Path, is_reaped: bool) -> None:
    async def test(parser: ParserProcess) -> None:
        for _ in range(2):
            await parser.parse(write_body(tmp_path, CSV), "csv", tmp_path / "out")
            (child,) = children()

            os.kill(child, signal.SIGKILL)
            if is_reaped:
                await asyncio.to_thread(wait_until_gone, child)

            assert 2 == (await parser.parse(write_body(tmp_path, CSV), "csv", tmp_path / "out")).rows
            assert child not in children()

    run(test)


def test_a_request_that_its_process_never_took_goes_to_another(tmp_path: Path) -> None:
    async def test(parser: ParserProcess) -> None:
        await parser.start()
        (child,) = children()
        os.kill(child, signal.SIGSTOP)
        parsing = asyncio.create_task(parser.parse(write_body(tmp_path, CSV), "csv", tmp_path / "out"))
        await asyncio.sleep(0.1)

        os.kill(child, signal.SIGKILL)

        assert 2 == (await parsing).rows

    run(test)


def test_a_file_whose_process_dies_is_not_tried_again(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    async def test(parser: ParserProcess) -> None:
        parsing = asyncio.create_task(parser.parse(pipe, "csv", tmp_path / "out"))
        # opens once the child reads
        with await asyncio.to_thread(pipe.open, "wb"):
            (child,) = children()
            os.kill(child, signal.SIGKILL)
            with pytest.raises(Invalid, match="could not be parsed"):
                await parsing

        assert 2 == (await parser.parse(write_body(tmp_path, CSV), "csv", tmp_path / "out")).rows
        assert child not in children()

    run(test)


def test_a_file_that_needs_too_much_memory_ends_its_process(tmp_path: Path) -> None:
    bounds = {"max_rows": 10_000_000, "max_columns": 5, "seconds": 60.0, "memory_bytes": 200 * 1024**2}

    async def test(parser: ParserProcess) -> None:
        with pytest.raises(TooLarge, match="read in 200 MB of memory"):
            await parser.parse(write_body(tmp_path, {"records": [{"a": 1}] * 2_000_000}), "json", tmp_path / "out")

        assert 2 == (await parser.parse(write_body(tmp_path, CSV), "csv", tmp_path / "out")).rows

    run(test, **bounds)


#: 200 million and 5 as Parquet writes them into a file's footer, the second made as long as the first
DECLARED, FALSE = b"\x80\x88\xde\xbe\x01", b"\x8a\x80\x80\x80\x00"


def test_a_bomb_is_not_decoded_whatever_it_declares(tmp_path: Path) -> None:
    bomb, liar = tmp_path / "bomb", tmp_path / "liar"
    pl.select(pl.repeat(1, 200_000_000, dtype=pl.Int8)).write_parquet(bomb, row_group_size=200_000_000)
    body = bomb.read_bytes()
    footer = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    assert 3 == body.count(DECLARED, footer)
    # the first count is the whole file's; the others are of its row group
    liar.write_bytes(body[:footer] + body[footer:].replace(DECLARED, FALSE, 1))

    async def test(parser: ParserProcess) -> None:
        await parser.parse(write_body(tmp_path, CSV), "csv", tmp_path / "out")
        (child,) = children()
        before = peak_bytes(child)

        with pytest.raises(TooLarge, match="at most 100 rows, got 200000000"):
            await parser.parse(bomb, "parquet", tmp_path / "out")
        assert 5 == (await parser.parse(liar, "parquet", tmp_path / "out")).rows

        assert [child] == children()
        assert peak_bytes(child) < before + 100_000_000

    run(test)


def peak_bytes(pid: int, name: str = "VmHWM") -> int:
    """Return the most memory that a process has held, or another figure that the kernel keeps of it."""
    (found,) = re.findall(rf"{name}:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found) * 1024


def test_a_file_of_four_times_the_memory_is_parsed_within_it(tmp_path: Path) -> None:
    free = 28 * 1024**2
    names = [f"c{i}" for i in range(100)]
    rng = random.Random(0)
    cells = [[f"{rng.gauss(0, 1):.9f}" for _ in names[1:]] + [rng.choice(["no", "yes"])] for _ in range(1000)]
    part = "".join(",".join(row) + "\n" for row in cells).encode()
    count = 4 * free // len(part) + 1
    with (tmp_path / "large").open("wb") as file:
        file.write(",".join(names).encode() + b"\n")
        for _ in range(count):
            file.write(part)

    def own_bytes() -> int:
        """Return the memory that a process holds once it has parsed a small file."""
        found = 0

        async def test(parser: ParserProcess) -> None:
            nonlocal found
            await parser.parse(write_body(tmp_path, CSV), "csv", tmp_path / "out")
            found = peak_bytes(children()[0], "RssAnon")

        run(test)
        return found

    own = own_bytes()
    peaks: list[int] = []

    async def test(parser: ParserProcess) -> None:
        await parser.start()
        (child,) = children()
        parsing = asyncio.create_task(parser.parse(tmp_path / "large", "csv", tmp_path / "out"))
        while not parsing.done():
            # RssAnon leaves out the pages of files, which the kernel takes back; the process is gone once it has answered
            with suppress(OSError, ValueError):
                peaks.append(peak_bytes(child, "RssAnon"))
            await asyncio.sleep(0.01)
        parsed = await parsing
        assert (1000 * count, names) == (parsed.rows, [column["name"] for column in parsed.columns])
        assert TableFile(parsed.path).slice(0, 1000, ["c99"]).column("c99").cells(1000) == [row[-1] for row in cells]

    run(test, max_rows=10_000_000, max_columns=100, memory_bytes=own + free)

    assert 4 * free <= (tmp_path / "large").stat().st_size
    assert free // 4 < max(peaks) - own <= free


def binary_seeds() -> dict[str, bytes]:
    """Return a table with a column of each type that is read, in each binary format."""
    frame = pl.DataFrame(
        {
            "n": pl.Series([1, None, 3] * 20, dtype=pl.Int32),
            "f": pl.Series([0.5, None, 1.5] * 20),
            "w": pl.Series(["x", "longer than twelve", None] * 20),
            "c": pl.Series(["x", "y", None] * 20, dtype=pl.Categorical),
            "t": pl.Series([True, None, False] * 20),
            "d": pl.Series([date(2020, 1, 31), None, None] * 20),
        }
    )
    files = {form: io.BytesIO() for form in ("parquet", "arrow_file", "arrow_stream")}
    frame.write_parquet(files["parquet"])
    frame.write_ipc(files["arrow_file"])
    frame.write_ipc_stream(files["arrow_stream"])
    return {form: file.getvalue() for form, file in files.items()}


@pytest.mark.parametrize("form", ["parquet", "arrow_file", "arrow_stream"])
def test_a_binary_file_that_is_damaged_is_an_error_or_a_table(tmp_path: Path, form: str) -> None:
    whole = binary_seeds()[form]
    rng = random.Random(0)
    bodies = [whole[: len(whole) * i // 20] for i in range(20)]
    for _ in range(100):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(body))
            body[at : at + rng.choice([0, 1, 1, 4])] = rng.choice(
                [b"\xff\xff\xff\x7f", rng.randbytes(1), b"\0", b"\x80" * 5]
            )
        bodies.append(bytes(body))

    async def test(parser: ParserProcess) -> None:
        facts = 0
        for body in bodies:
            try:
                parsed = await parser.parse(write_body(tmp_path, body), form, tmp_path / "out")
                assert parsed.rows == load_table(parsed.path).rows
            except FitserveError:
                facts += 1
        assert 60 == (await parser.parse(write_body(tmp_path, whole), form, tmp_path / "out")).rows
        assert 20 <= facts < len(bodies)

    run(test, max_columns=10)


def test_a_file_that_takes_too_long_ends_its_process(tmp_path: Path) -> None:
    async def test(parser: ParserProcess) -> None:
        await parser.start()
        (child,) = children()
        os.kill(child, signal.SIGSTOP)

        with pytest.raises(Invalid, match=r"Expected a file that parses within 0.5 seconds"):
            await parser.parse(write_body(tmp_path, CSV), "csv", tmp_path / "out")

        assert [] == children()

    run(test, seconds=0.5)


def test_a_cancelled_request_leaves_no_answer_for_the_next(tmp_path: Path) -> None:
    async def test(parser: ParserProcess) -> None:
        await parser.start()
        (child,) = children()
        os.kill(child, signal.SIGSTOP)
        parsing = asyncio.create_task(parser.parse(write_body(tmp_path, CSV), "csv", tmp_path / "out"))
        await asyncio.sleep(0.1)

        parsing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await parsing

        assert SplitBody({}, has_data=False) == await parser.split(write_body(tmp_path, {}), tmp_path / "data")
        assert child not in children()

    run(test)
