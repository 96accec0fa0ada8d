"""`python -m app.cli.demo`: the main job from end to end, on a service of its own. Uses the client alone.

Uploads a table, trains a model, evaluates it and predicts; shows each step with its `curl` line. Nothing stays behind.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli.display import follow, make_console, show_evaluation, show_version
from app.client import Client, FitserveError, Job

if TYPE_CHECKING:
    from rich.console import Console

TABLE = Path("examples/penguins.csv")
TARGET = "species"
#: a small network reaches more on this table
LEAST_ACCURACY = 0.95
READY_SECONDS = 60.0
TRAIN_SECONDS = 150.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.1
#: lines of the service's log that are shown after an error
LOG_LINES = 25
ADDRESS = re.compile(r"serving on (http://\S+)")
COLUMNS = ("island", "bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g", "sex", "year")
ROWS = [
    ("Torgersen", 38.2, 18.4, 184, 3500, "female", 2007),
    ("Biscoe", 49.1, 15.6, 222, 5450, "male", 2009),
    ("Dream", 49.6, 18.7, 200, None, "male", 2008),
]
#: the columns of `ROWS` that are shown beside the predictions, and their short names
SHOWN = {"island": "island", "bill_length_mm": "bill", "flipper_length_mm": "flipper", "body_mass_g": "mass"}


class DemoFailed(Exception):
    """The demonstration did not show what it should."""


def main() -> int:
    """Run the demonstration and return the exit code."""
    console, began = make_console(), time.monotonic()
    # a signal becomes SystemExit, so that the service is stopped and the folder removed
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    if not TABLE.is_file():
        message = f"demo: expected the table {TABLE} in {Path.cwd()}; run the demo in a clone of the repository"
        console.print(message, soft_wrap=True)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="fitserve-demo-"))
    log = folder / "service.log"
    try:
        with _service(folder / "data", log, console) as url, Client(url, "") as client:
            _show(client, console)
    except (DemoFailed, FitserveError) as error:
        console.print(f"demo: {error}", style="bold red", soft_wrap=True)
        if log.is_file():
            lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            console.print("the service's last lines:", *lines, sep="\n  ", style="dim", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    console.print(f"\nDone in {time.monotonic() - began:.0f} seconds", style="bold green")
    return 0


def _show(client: Client, console: Console) -> None:
    api = f"{client.base_url}/api/v1"
    _step(
        console,
        "Upload a table",
        f"curl -H 'Content-Type: text/csv' --data-binary @{TABLE} '{api}/datasets?name={TABLE.name}'",
    )
    dataset = client.upload(TABLE)
    console.print(f"data set {dataset.id}: {dataset.rows} rows, {len(dataset.columns)} columns")

    request = {"dataset": dataset.id, "target": TARGET}
    _step(console, "Train a model on it", _post(f"{api}/models/penguins/train", request))
    job = client.train("penguins", dataset=dataset, target=TARGET)
    console.print(f"curl -N -H 'Accept: text/event-stream' {api}/jobs/{job.id}/events", style="cyan", soft_wrap=True)
    job = follow(client, job, console, timeout=TRAIN_SECONDS)
    show_version(client.version(job.ref), console)

    _step(console, "Evaluate it", _post(f"{api}/models/penguins/evaluate", {"dataset": dataset.id}))
    _evaluate(client, job, dataset.id, console)

    records: list[dict[str, object]] = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    _step(console, "Predict", _post(f"{api}/models/penguins/predict", {"records": records}))
    _predict(client, records, console)


def _evaluate(client: Client, job: Job, dataset_id: str, console: Console) -> None:
    evaluation = client.evaluate(job.ref, dataset=dataset_id)
    console.print("On the whole table; the validation accuracy above is of held-out rows.", style="dim")
    show_evaluation(evaluation, console)
    accuracy = evaluation["accuracy"]
    if accuracy is None or accuracy < LEAST_ACCURACY:
        raise DemoFailed(f"expected an accuracy of at least {LEAST_ACCURACY}, got {accuracy}")


def _predict(client: Client, records: list[dict[str, object]], console: Console) -> None:
    from rich.table import Table

    prediction = client.predict("penguins", records=records)
    table = Table(*SHOWN.values(), TARGET, "probability", "note")
    notes = {
        warning["row"]: f"{SHOWN.get(warning['column'], warning['column'])} {warning['code']}"
        for warning in prediction.warnings
    }
    for row, record in enumerate(records):
        cells = ["–" if record[name] is None else str(record[name]) for name in SHOWN]
        probability = max(prediction.probabilities[row])
        table.add_row(*cells, str(prediction.predictions[row]), f"{probability:.3f}", notes.get(row, ""))
    console.print(table)


@contextmanager
def _service(data: Path, log: Path, console: Console) -> Iterator[str]:
    """Run a service on a free port, yield its address, and stop it at the end.

    Raises:
        DemoFailed: the service did not start, or did not stop as it should.
    """
    arguments = ["-m", "app", "serve", "--host", "127.0.0.1", "--port", "0", "--data-dir", str(data)]
    # settings in the environment are meant for another service
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FITSERVE_")}
    _step(console, "Start the service", shlex.join(["python", *arguments]))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        began = time.monotonic()
        with console.status("waiting until it is ready"):
            url = _await_ready(process, log, began + READY_SECONDS)
        console.print(f"ready after {time.monotonic() - began:.1f} seconds; documentation at {url}/docs")
        yield url
        _step(console, "Stop the service", f"kill -TERM {process.pid}")
        process.terminate()
        if (code := _await_end(process)) != 0:
            raise DemoFailed(f"expected the service to stop with exit code 0, got {code}")
    finally:
        if process.poll() is None:
            process.terminate()
            _await_end(process)


def _await_ready(process: subprocess.Popen[bytes], log: Path, deadline: float) -> str:
    """Return the address that the service prints, once the service takes requests there."""
    while time.monotonic() < deadline:
        address = ADDRESS.search(log.read_text(errors="replace"))
        if address is not None:
            with Client(address[1], "") as client:
                if client.is_ready():
                    return address[1]
        if process.poll() is not None:
            raise DemoFailed(f"the service ended with exit code {process.returncode}")
        time.sleep(POLL_SECONDS)
    raise DemoFailed(f"the service was not ready within {READY_SECONDS:.0f} seconds")


def _await_end(process: subprocess.Popen[bytes]) -> int | None:
    """Return the exit code of a process that was asked to stop, or None where it had to be killed."""
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def _step(console: Console, title: str, command: str) -> None:
    console.print(f"\n{title}", style="bold")
    console.print(command, style="cyan", soft_wrap=True)


def _post(url: str, body: Mapping[str, object]) -> str:
    return f"curl -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))} {url}"


if __name__ == "__main__":
    sys.exit(main())
