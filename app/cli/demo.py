"""`python -m app.cli.demo`: the main job from end to end, on a service of its own. Knows the client alone.

A table goes in, a model is trained, evaluated and asked; each step is shown with its `curl` line. Nothing stays.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.display import follow, make_console, show_evaluation, show_version
from app.client import Client, FitserveError, Job

if TYPE_CHECKING:
    from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path("examples/penguins.csv")
TARGET = "species"
#: what a small network reaches on this table with room to spare
LEAST_ACCURACY = 0.95
READY_SECONDS = 60.0
TRAIN_SECONDS = 150.0
STOP_SECONDS = 30.0
LOG_LINES = 25
RECORDS: list[dict[str, Any]] = [
    {
        "island": "Torgersen",
        "bill_length_mm": 38.2,
        "bill_depth_mm": 18.4,
        "flipper_length_mm": 184,
        "body_mass_g": 3500,
        "sex": "female",
        "year": 2007,
    },
    {
        "island": "Biscoe",
        "bill_length_mm": 49.1,
        "bill_depth_mm": 15.6,
        "flipper_length_mm": 222,
        "body_mass_g": 5450,
        "sex": "male",
        "year": 2009,
    },
    {
        "island": "Dream",
        "bill_length_mm": 49.6,
        "bill_depth_mm": 18.7,
        "flipper_length_mm": 200,
        "body_mass_g": None,
        "sex": "male",
        "year": 2008,
    },
]


class DemoFailed(Exception):
    """The demonstration did not show what it should."""


def main() -> int:
    """Run the demonstration; gives the exit code."""
    console, began = make_console(), time.monotonic()
    # so that the service is stopped and the folder removed
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    if not (ROOT / TABLE).is_file():
        console.print(f"demo: expected the table at {ROOT / TABLE}; run the demo from a clone of the repository")
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
    dataset = client.upload(ROOT / TABLE)
    console.print(f"data set {dataset.id}: {dataset.rows} rows, {len(dataset.columns)} columns")

    request: dict[str, Any] = {"dataset": dataset.id, "target": TARGET}
    _step(console, "Train a model on it", _post(f"{api}/models/penguins/train", request))
    job = client.train("penguins", **request)
    console.print(f"curl -N -H 'Accept: text/event-stream' {api}/jobs/{job.id}/events", style="cyan", soft_wrap=True)
    job = follow(client, job, console, timeout=TRAIN_SECONDS)
    show_version(client.version(job.ref), console)

    _step(console, "Evaluate it", _post(f"{api}/models/penguins/evaluate", {"dataset": dataset.id}))
    _evaluate(client, job, dataset.id, console)

    _step(console, "Predict", _post(f"{api}/models/penguins/predict", {"records": RECORDS}))
    _predict(client, console)


def _evaluate(client: Client, job: Job, dataset_id: str, console: Console) -> None:
    found = client.evaluate(job.ref, dataset=dataset_id)
    console.print("On the whole table; the validation accuracy above is of held-out rows.", style="dim")
    show_evaluation(found, console)
    accuracy = found["accuracy"]
    if accuracy is None or accuracy < LEAST_ACCURACY:
        raise DemoFailed(f"expected an accuracy of at least {LEAST_ACCURACY}, got {accuracy}")


def _predict(client: Client, console: Console) -> None:
    from rich.table import Table

    answer = client.predict("penguins", records=RECORDS)
    columns = {"island": "island", "bill_length_mm": "bill", "flipper_length_mm": "flipper", "body_mass_g": "mass"}
    table = Table(*columns.values(), TARGET, "probability", "note")
    notes = {each["row"]: f"{columns.get(each['column'], each['column'])} {each['code']}" for each in answer.warnings}
    for row, record in enumerate(RECORDS):
        cells = ["–" if record[name] is None else str(record[name]) for name in columns]
        probability = max(answer.probabilities[row])
        table.add_row(*cells, str(answer.predictions[row]), f"{probability:.3f}", notes.get(row, ""))
    console.print(table)


@contextmanager
def _service(data: Path, log: Path, console: Console) -> Iterator[str]:
    """Run a service on a free port; gives its address, and stops it at the end.

    Raises:
        DemoFailed: it did not come up, or did not stop as it should.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["-m", "app", "serve", "--host", "127.0.0.1", "--port", str(port), "--data-dir", str(data)]
    # settings of another service are not for this one
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FITSERVE_")}
    _step(console, "Start the service", shlex.join(["python", *arguments]))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        with console.status("waiting until it is ready"):
            seconds = _await_ready(process, url)
        console.print(f"ready after {seconds:.1f} seconds; documentation at {url}/docs")
        yield url
        _step(console, "Stop the service", f"kill -TERM {process.pid}")
        process.terminate()
        if (code := _await_end(process)) != 0:
            raise DemoFailed(f"expected the service to stop with exit code 0, got {code}")
    finally:
        if process.poll() is None:
            process.terminate()
            _await_end(process)


def _await_ready(process: subprocess.Popen[bytes], url: str) -> float:
    began = time.monotonic()
    with Client(url, "") as client:
        while not client.is_ready():
            if process.poll() is not None:
                raise DemoFailed(f"the service ended with exit code {process.returncode}")
            if time.monotonic() - began > READY_SECONDS:
                raise DemoFailed(f"the service was not ready within {READY_SECONDS:.0f} seconds")
            time.sleep(0.1)
    return time.monotonic() - began


def _await_end(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for a process that was told to stop; gives its exit code, or None where it had to be killed."""
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def _step(console: Console, title: str, command: str) -> None:
    console.print(f"\n{title}", style="bold")
    console.print(command, style="cyan", soft_wrap=True)


def _post(url: str, body: dict[str, Any]) -> str:
    return f"curl -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))} {url}"


if __name__ == "__main__":
    sys.exit(main())
