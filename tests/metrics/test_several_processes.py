"""Metrics of several processes: what is added up, what is not, and what an ended process leaves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from app.metrics.several_processes import Totals, added
from tests.processes import until
from tests.service import ROOT

PAGE = """\
# HELP fitserve_jobs Jobs by status.
# TYPE fitserve_jobs gauge
fitserve_jobs{status="queued"} 3.0
# HELP streams Open.
# TYPE streams gauge
streams 2.0
# HELP answers_total Answers.
# TYPE answers_total counter
answers_total{route="/a\\"b"} 5.0
# HELP seconds Times.
# TYPE seconds histogram
seconds_bucket{le="1.0"} 1.0
seconds_bucket{le="+Inf"} 4.0
seconds_count 4.0
seconds_sum 6.5
"""


def test_counters_histograms_and_gauges_are_added_and_what_all_say_is_said_once() -> None:
    lines = added([PAGE, PAGE]).decode().splitlines()

    assert 'fitserve_jobs{status="queued"} 3.0' in lines
    assert "streams 4.0" in lines
    assert 'answers_total{route="/a\\"b"} 10.0' in lines
    assert ['seconds_bucket{le="1.0"} 2.0', 'seconds_bucket{le="+Inf"} 8.0'] == [x for x in lines if "bucket" in x]
    assert {"seconds_count 8.0", "seconds_sum 13.0", "# TYPE answers_total counter"} <= set(lines)


def test_one_page_is_given_as_it_is() -> None:
    assert PAGE == added([PAGE]).decode()


SERVE = """
import asyncio, sys
from pathlib import Path
from app.metrics.several_processes import Totals
page = Path(sys.argv[1]).read_bytes()
asyncio.run(Totals(Path(sys.argv[2]), lambda: page).serve())
"""


def test_what_an_ended_process_had_counted_counts_on_and_its_gauges_do_not(tmp_path: Path) -> None:
    (tmp_path / "page").write_text(PAGE)
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-c", SERVE, str(tmp_path / "page"), str(folder)]
    other = subprocess.Popen(command, cwd=ROOT)

    async def run() -> list[str]:
        totals = Totals(folder, PAGE.encode)
        serving = asyncio.create_task(totals.serve())
        await asyncio.to_thread(until, lambda: len(list(folder.glob("*.socket"))) == 2)
        # somebody else's look at the same time changes nothing
        pages = list(await asyncio.gather(totals.page(), Totals(folder, bytes).page()))
        other.kill()
        await asyncio.to_thread(other.wait)
        pages += [await totals.page(), await totals.page()]
        serving.cancel()
        return [page.decode() for page in pages]

    found = asyncio.run(run())

    assert ["10.0"] * 4 == [page.partition('answers_total{route="/a\\"b"} ')[2].split()[0] for page in found]
    assert ["4.0", "4.0", "2.0", "2.0"] == [page.partition("\nstreams ")[2].split()[0] for page in found]
    assert {f"{os.getpid()}.socket", f"{os.getpid()}.page", "ended.page", "lock"} == {
        path.name for path in folder.iterdir()
    }
