"""The commands as processes: progress with and without a terminal, figures, files in parts, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app import __version__
from app.client import Client, Job
from tests.conftest import PENGUINS
from tests.service import ROOT, Service

SECONDS = 240


def command(service: Service | None, *arguments: str | Path) -> tuple[list[str], dict[str, str]]:
    """Return a command line, and an environment that names the service."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FITSERVE_")}
    # variables that some terminals and CI systems set would change the output
    environment = {**environment, "COLUMNS": "100", "TERM": "xterm", "NO_COLOR": ""} | (
        {} if service is None else {"FITSERVE_URL": service.url}
    )
    return [sys.executable, "-m", "app", *map(str, arguments)], environment


def run(service: Service | None, *arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without a terminal."""
    line, environment = command(service, *arguments)
    return subprocess.run(
        line, cwd=ROOT, env=environment, input=stdin, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def read_terminal(master: int) -> str:
    """Return all output of a terminal, until its last writer has closed it."""
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:
            # Linux reports a closed terminal as an error
            return shown.decode()
        if not part:
            return shown.decode()
        shown += part


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """Return a file with a part of a training request."""
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"fit": {"epochs": 500, "shuffle": False}, "tags": {"from": "file"}}))
    return path


def test_train_prints_lines_of_progress_and_takes_every_flag(service: Service, spec: Path) -> None:
    flags = ["--target", "species", "--exclude", "year", "--exclude", "sex", "--layers", "8,4", "--epochs", "30"]
    flags += ["--batch-size", "64", "--learning-rate", "0.05", "--seed", "7", "--spec", str(spec)]

    done = run(service, "train", PENGUINS, "--model", "commands", *flags, "--json")

    assert 0 == done.returncode, done.stderr
    job = json.loads(done.stdout)
    assert ("succeeded", "commands", 1) == (job["status"], job["model"], job["version"])
    spec_of_job = job["spec"]
    assert ("species", ["year", "sex"], {"from": "file"}) == (
        spec_of_job["target"],
        spec_of_job["features"]["exclude"],
        spec_of_job["tags"],
    )
    assert [8, 4] == [layer["units"] for layer in spec_of_job["network"]["layers"]]
    # a flag overrules the file; other values of the file stay
    assert (30, 64, 7, False, 0.05) == (
        *(spec_of_job["fit"][name] for name in ("epochs", "batch_size", "seed", "shuffle")),
        spec_of_job["optimizer"]["learning_rate"],
    )
    assert "\x1b" not in done.stderr
    assert re.search(r"^data set ds_\w+: 344 rows, \d columns$", done.stderr, re.MULTILINE)
    epochs = [int(n) for n in re.findall(r"^epoch (\d+)/30 .*loss \d.*val_accuracy \d", done.stderr, re.MULTILINE)]
    assert [1, *range(2, 31, 2)] == epochs


def test_train_shows_a_live_bar_on_a_terminal(service: Service) -> None:
    line, environment = command(service, "train", PENGUINS, "--model", "commands-bar", "--epochs", "8")
    environment["NO_COLOR"] = "1"
    line += ["--target", "species"]
    master, slave = pty.openpty()

    process = subprocess.Popen(line, cwd=ROOT, env=environment, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = read_terminal(master)
    os.close(master)

    assert 0 == process.wait(SECONDS), shown
    assert "\x1b[?25l" in shown  # the cursor is hidden while the bar moves …
    assert "\x1b[?25h" in shown  # … and comes back
    assert "━" in shown
    assert "100%" in shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"epoch 8/8 .*rows/s", text)
    assert "commands-bar@1" in text
    assert re.search(r"validation accuracy \W*\d\.\d{4}", text)


def test_interrupting_train_leaves_the_job_and_says_how_to_end_it(service: Service, client: Client) -> None:
    line, environment = command(service, "train", PENGUINS, "--model", "commands-long", "--epochs", "100000")
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("data set ")
    deadline = time.monotonic() + 60
    while not (jobs := list(client.jobs(model="commands-long"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)

    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=60)

    assert 130 == process.returncode
    assert f"curl -X POST {service.url}/api/v1/jobs/{jobs[0].id}/cancel" in output
    assert not client.job(jobs[0]).is_terminal
    client.cancel(jobs[0])


def test_evaluate_prints_figures_or_json(service: Service, penguins: Job) -> None:
    shown, plain = (
        run(service, "evaluate", "penguins", PENGUINS),
        run(service, "evaluate", "penguins", PENGUINS, "--json"),
    )

    assert (0, 0) == (shown.returncode, plain.returncode)
    evaluation = json.loads(plain.stdout)
    assert f"penguins@{penguins.version} on 344 rows: accuracy {evaluation['accuracy']:.4f}, loss" in shown.stdout
    for label in ("Adelie", "Chinstrap", "Gentoo", "precision", "confusion matrix"):
        assert label in shown.stdout


def test_predict_prints_csv_for_every_form_of_file(service: Service, penguins: Job, tmp_path: Path) -> None:
    table = "island,bill_length_mm,body_mass_g\nBiscoe,50.4,5750\nDream,39.5,3250\n"
    files = {"commas.csv": table, "semicolons.csv": "\ufeff" + table.replace(",", ";")}
    records = list(csv.DictReader(io.StringIO(table)))
    files |= {"records.json": json.dumps({"records": records}), "list.json": json.dumps(records)}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda name: run(service, "predict", "penguins", tmp_path / name), files))
    answers.append(run(service, "predict", penguins.ref, "-", stdin=table))

    assert {0} == {answer.returncode for answer in answers}
    assert 1 == len({answer.stdout for answer in answers})
    rows = list(csv.DictReader(io.StringIO(answers[0].stdout)))
    assert ["prediction", "probability_Adelie", "probability_Chinstrap", "probability_Gentoo"] == list(rows[0])
    assert "Gentoo" == rows[0]["prediction"]
    assert re.match(r"fitserve: \d+ warnings, the first: row 0, column \w+: imputed\n", answers[0].stderr)


def test_predict_sends_a_large_file_in_parts_and_keeps_its_order(
    service: Service, penguins: Job, client: Client, tmp_path: Path
) -> None:
    # 2.4 MB: one part of 2 MB, and one with the rest
    count, pad = 26_000, "x" * 80
    table = "island,bill_length_mm,note\n" + "".join(f"Dream,{35 + i % 20},{pad}\n" for i in range(count))
    path = tmp_path / "large.csv"
    path.write_text(table)
    expected = client.predict("penguins", rows=[["Dream", 35 + i, *[None] * 5] for i in range(20)]).predictions

    shown, plain = run(service, "predict", "penguins", path), run(service, "predict", "penguins", path, "--json")

    assert [expected[i % 20] for i in range(count)] == [
        row["prediction"] for row in csv.DictReader(io.StringIO(shown.stdout))
    ]
    parts = [json.loads(line) for line in plain.stdout.splitlines()]
    assert 2 == len(parts)
    assert count == sum(len(part["predictions"]) for part in parts)


def test_an_error_of_the_service_is_one_line_and_exit_code_1(service: Service, penguins: Job, tmp_path: Path) -> None:
    bad, text = tmp_path / "bad.csv", tmp_path / "text.csv"
    bad.write_text("a,b\n1,x\n2\n")
    text.write_text("body_mass_g\nheavy\nlight\n")
    cases: dict[str, list[str | Path]] = {
        r"fitserve: There is no model 'nobody'\. \(404 not_found\)": ["predict", "nobody", text],
        r"fitserve: .*got 1 in row 1 \(line 3\)\. \(422 invalid\)": ["train", bad, "--model", "m"],
        r"fitserve: Expected the target column 'species'.*": ["evaluate", "penguins", text],
        r"fitserve: .*'body_mass_g', got a text in row 0\. \(422 invalid\)\n  0.body_mass_g: .*\n  1.body_mass_g: .*": [
            *("predict", "penguins", text),
        ],
        r"fitserve: no answer from http://127\.0\.0\.1:9: .*": ["predict", "m", text, "--url", "http://127.0.0.1:9"],
    }

    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda arguments: run(service, *arguments), cases.values()))

    for expected, done in zip(cases, ended, strict=True):
        assert (1, "") == (done.returncode, done.stdout), done
        assert re.fullmatch(expected, done.stderr.strip()), done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nowhere.csv", "--model", "m"], "nowhere.csv"),
        (["train", str(PENGUINS)], "--model"),
        (["train", str(PENGUINS), "--model", "m", "--layers", "8,many"], "expected numbers such as 64,32"),
        (["train", str(PENGUINS), "--model", "m", "--epochs", "0"], "--epochs"),
        (["train", str(PENGUINS), "--model", "m", "--spec", str(PENGUINS)], "expected a JSON file"),
        (["predict", "m", "nowhere.csv"], "nowhere.csv"),
        (["predict", "m", str(PENGUINS), "--url", "localhost:8000"], "expected an address such as"),
        (["predict", "m", str(PENGUINS), "--url", "http://host:port"], "expected an address such as"),
        (["forecast"], "forecast"),
    ],
)
def test_a_wrong_call_says_what_was_expected_and_is_exit_code_2(arguments: list[str], words: str) -> None:
    done = run(None, *arguments)

    assert (2, "") == (done.returncode, done.stdout)
    # typer may break the message over lines, inside a frame
    assert words.replace(" ", "") in re.sub(r"[\s│]", "", done.stderr), done.stderr


def test_the_version_is_printed() -> None:
    assert f"{__version__}\n" == run(None, "version").stdout
