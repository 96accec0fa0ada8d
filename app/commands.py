"""The commands that talk to a service: train, evaluate, predict. Knows the client, and nothing behind it.

The client and rich are imported when a command runs: `fitserve serve` needs neither.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from app.client import Client, Job, Prediction

#: lines of progress where there is no terminal
PROGRESS_LINES = 20
#: how often the position within an epoch is asked for
POLL_SECONDS = 0.5
#: a larger confusion matrix is shown as JSON only
SHOWN_CLASSES = 12
#: characters of CSV in one predict request, well below the service's default limit
BATCH_CHARACTERS = 2_000_000
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")

Url = Annotated[
    str | None, typer.Option("--url", help="The service; default FITSERVE_URL, else http://127.0.0.1:8000.")
]
Key = Annotated[str | None, typer.Option("--key", help="The API key; default FITSERVE_API_KEY.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]
Ref = Annotated[str, typer.Argument(metavar="REF", help="NAME, NAME@VERSION or NAME@ALIAS.", show_default=False)]
Table = Annotated[
    Path, typer.Argument(metavar="FILE", help="CSV, TSV, JSON, NPZ, …", exists=True, dir_okay=False, show_default=False)
]
Rows = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="CSV, or JSON in one of the forms of predict; - is standard input.",
        allow_dash=True,
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (train, evaluate, predict):
        app.command()(command)


def train(
    file: Table,
    model: Annotated[
        str, typer.Option("--model", help="The model's name; the job adds a version.", show_default=False)
    ],
    target: Annotated[str | None, typer.Option(help="Column to predict; default the last.")] = None,
    spec: Annotated[
        Path | None, typer.Option(help="JSON file with the rest of the training request.", exists=True, dir_okay=False)
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Leave this column out; may be repeated.")] = None,
    layers: Annotated[str | None, typer.Option(help="Units of the hidden layers, such as 64,32.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of stochastic gradient descent.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Upload a table, train a model on it and show its progress."""
    request = _read_spec(spec)
    _put(request, "features", exclude=exclude or None)
    _put(request, "network", layers=_layers(layers))
    _put(request, "optimizer", learning_rate=learning_rate)
    _put(request, "fit", epochs=epochs, batch_size=batch_size, seed=seed)
    if target is not None:
        request["target"] = target
    console = make_console(stderr=True)
    with connect(url, key) as client:
        dataset = client.upload(file)
        console.print(f"data set {dataset.id}: {dataset.rows} rows, {len(dataset.columns)} columns")
        for warning in dataset.warnings:
            console.print(f"warning: {warning}", style="yellow")
        job = client.train(model, dataset=dataset, **request)
        try:
            job = follow(client, job, console)
        except KeyboardInterrupt:
            address = f"{client.base_url}/api/v1/jobs/{job.id}"
            console.print(f"job {job.id} goes on; to end it: curl -X POST {address}/cancel", soft_wrap=True)
            raise typer.Exit(130) from None
        if as_json:
            print(json.dumps(job.document))
        else:
            show_version(client.version(job.ref), make_console())


def evaluate(ref: Ref, file: Table, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Score a model on a file of labelled rows."""
    with connect(url, key) as client:
        found = client.evaluate(ref, file=file)
    if as_json:
        print(json.dumps(found))
    else:
        show_evaluation(found, make_console())


def predict(ref: Ref, file: Rows, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Classify the rows of a file; prints CSV: each row's prediction and the probability of each class.

    A large CSV file is sent in parts; with --json each part's answer is a line.
    """
    with connect(url, key) as client, _open_text(file) as text:
        for number, prediction in enumerate(_predictions(client, ref, text)):
            if as_json:
                print(json.dumps(prediction.document))
                continue
            _warn(prediction)
            out = csv.writer(sys.stdout, lineterminator="\n")
            if number == 0:
                out.writerow(["prediction", *(f"probability_{label}" for label in prediction.classes)])
            for label, probabilities in zip(prediction.predictions, prediction.probabilities, strict=True):
                out.writerow([label, *probabilities])


@contextmanager
def connect(url: str | None, key: str | None) -> Iterator[Client]:
    """Give a client; what goes wrong with it becomes lines on standard error and exit code 1."""
    from app.client import ApiError, Client, FitserveError

    try:
        client = Client(url, key)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--url") from None
    try:
        with client:
            yield client
    except BrokenPipeError:
        # the reader of standard output has had enough; typer ends quietly
        raise
    except (FitserveError, OSError, ValueError, csv.Error) as error:
        typer.echo(f"fitserve: {error}", err=True)
        # where there is one fault, the detail is its message
        for fault in error.errors if isinstance(error, ApiError) and len(error.errors) > 1 else ():
            place = ".".join(str(part) for part in fault.get("loc", ()))
            typer.echo(f"  {place}: {fault.get('message', '')}", err=True)
        raise typer.Exit(1) from None


def make_console(*, stderr: bool = False) -> Console:
    """Give a console that prints names as they are, whatever brackets are in them."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def follow(client: Client, job: Job, console: Console, *, timeout: float | None = None) -> Job:
    """Show a job's progress until it ends: a live bar on a terminal, else some lines.

    Raises:
        JobFailed, JobCancelled, TimedOut, ConnectionFailed: as `Client.wait`.
    """
    from rich.live import Live

    progress = Progress(console)
    with Live(progress, console=console, refresh_per_second=8) if console.is_terminal else nullcontext():
        with _polling(client, job, progress) if console.is_terminal else nullcontext():
            job = client.wait(job, on_event=progress.hear, timeout=timeout)
        progress.end()
    return job


class Progress:
    """A job's position, from its events and its own document; renders itself for rich."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = "queued"
        self._epoch: dict[str, Any] = {}
        self._printed: dict[str, Any] = {}
        self._position: dict[str, Any] = {}

    def hear(self, event: dict[str, Any]) -> None:
        """Take in an event."""
        if event["type"] == "status":
            self._status = event.get("status", "")
            if self._status in ("queued", "running"):
                # a job that is taken up again begins anew
                self._epoch, self._position = {}, {}
        elif event["type"] == "epoch":
            self._epoch, self._status = event, "running"
            every = math.ceil(event["epochs"] / PROGRESS_LINES)
            if not self._console.is_terminal and (event["epoch"] == 1 or event["epoch"] % every == 0):
                self._print_epoch()
        elif event["type"] == "warning":
            self._console.print(f"warning: {event.get('message', '')}", style="yellow", soft_wrap=True)

    def place(self, position: dict[str, Any]) -> None:
        """Take in a job's `progress`."""
        self._position = position

    def end(self) -> None:
        """Show the whole bar, or the last line."""
        self._position = {**self._position, "fraction": 1.0, "eta_seconds": 0}
        if not self._console.is_terminal and self._epoch and self._printed is not self._epoch:
            self._print_epoch()

    def _print_epoch(self) -> None:
        self._printed = self._epoch
        self._console.print(f"{self._title()}  {self._figures()}", soft_wrap=True)

    def _title(self) -> str:
        if not self._epoch and not self._position.get("epoch"):
            return {"running": "starting"}.get(self._status, self._status)
        # events and position come on their own ways; the one that is ahead is shown
        place = max(self._epoch, self._position, key=lambda each: each.get("epoch") or 0)
        return f"epoch {place['epoch']}/{place['epochs']}"

    def _figures(self) -> str:
        shown = [f"{name} {_number(self._epoch.get(name))}" for name in METRICS if self._epoch.get(name) is not None]
        return "  ".join(shown)

    def __rich__(self) -> RenderableType:
        """Draw two lines: the bar with speed and time left, and the figures of the last epoch."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table as Grid
        from rich.text import Text

        reached = self._epoch.get("epoch", 0) / self._epoch.get("epochs", 1)
        fraction = max(reached, self._position.get("fraction") or 0.0)
        grid = Grid.grid(padding=(0, 2, 0, 0))
        rate, eta = self._epoch.get("rows_per_second"), self._position.get("eta_seconds")
        grid.add_row(
            self._title(),
            ProgressBar(total=1.0, completed=fraction, width=28, pulse=not fraction),
            f"{fraction:4.0%}",
            "" if rate is None else f"{rate:,.0f} rows/s",
            "" if eta is None else f"eta {_duration(eta)}",
        )
        return Group(grid, Text(self._figures(), style="dim"))


@contextmanager
def _polling(client: Client, job: Job, progress: Progress) -> Iterator[None]:
    """Ask for the position within the epoch meanwhile: events come at the end of one."""
    from app.client import FitserveError

    over = threading.Event()

    def poll() -> None:
        while not over.wait(POLL_SECONDS):
            with suppress(FitserveError):
                progress.place(client.job(job).progress)

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def show_version(version: dict[str, Any], console: Console) -> None:
    """Print what training made."""
    from rich.table import Table as Grid

    metrics = version.get("metrics") or {}
    training, validation = metrics.get("train") or {}, metrics.get("validation") or {}
    grid = Grid(title=f"{version['model']}@{version['version']}", show_header=False, title_justify="left")
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_row("validation accuracy", _number(validation.get("accuracy")), style="bold")
    grid.add_row("validation loss", _number(validation.get("loss")))
    grid.add_row("training accuracy", _number(training.get("accuracy")))
    grid.add_row("training loss", _number(training.get("loss")))
    grid.add_row("epochs", str(len(version.get("history") or ())))
    grid.add_row("classes", str(len(version.get("classes") or ())))
    grid.add_row("parameters", f"{version.get('parameters') or 0:,}")
    console.print(grid)


def show_evaluation(found: dict[str, Any], console: Console) -> None:
    """Print a version's scores, class by class, and its confusion matrix."""
    from rich.table import Table as Grid

    console.print(
        f"{found['model']}@{found['version']} on {found['rows']} rows: "
        f"accuracy {_number(found['accuracy'])}, loss {_number(found['loss'])}",
        style="bold",
    )
    grid = Grid("class", title="per class", title_justify="left")
    for name in ("precision", "recall", "f1", "rows"):
        grid.add_column(name, justify="right")
    for each in found["per_class"]:
        grid.add_row(
            str(each["class"]), *(_number(each[n]) for n in ("precision", "recall", "f1")), str(each["support"])
        )
    console.print(grid)
    classes, counts = found["confusion_matrix"]["classes"], found["confusion_matrix"]["counts"]
    if len(classes) > SHOWN_CLASSES:
        console.print(f"The confusion matrix of {len(classes)} classes is in the answer as JSON.")
        return
    matrix = Grid("true \\ predicted", title="confusion matrix", title_justify="left")
    for label in classes:
        matrix.add_column(str(label), justify="right")
    for label, row in zip(classes, counts, strict=True):
        matrix.add_row(str(label), *map(str, row))
    console.print(matrix)


def _read_spec(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"expected a JSON file: {error}", param_hint="--spec") from None
    if not isinstance(found, dict) or {"data", "dataset"} & set(found):
        raise typer.BadParameter('expected a JSON object without "data" and "dataset"', param_hint="--spec")
    return found


def _put(request: dict[str, Any], part: str, **values: Any) -> None:
    """Let the flags that were given overrule the file."""
    given = {name: value for name, value in values.items() if value is not None}
    if given:
        request[part] = {**(request.get(part) or {}), **given}


def _layers(text: str | None) -> list[dict[str, int]] | None:
    if text is None:
        return None
    try:
        return [{"units": int(units)} for units in text.split(",") if units.strip()]
    except ValueError:
        raise typer.BadParameter(f"expected numbers such as 64,32, got {text!r}", param_hint="--layers") from None


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    if str(path) != "-":
        # typer's own check would look for a file named -
        if not path.exists() or path.is_dir():
            raise typer.BadParameter(f"file {str(path)!r} does not exist", param_hint="FILE")
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
        return
    text = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="")
    try:
        yield text
    finally:
        text.detach()


def _predictions(client: Client, ref: str, text: TextIO) -> Iterator[Prediction]:
    first = text.readline()
    if first.lstrip()[:1] in ("{", "["):
        document = json.loads(first + text.read())
        forms = (
            {"records": document}
            if isinstance(document, list)
            else {"rows" if n == "x" else n: document[n] for n in document}
        )
        if set(forms) not in ({"records"}, {"columns"}, {"rows"}):
            raise ValueError('expected JSON with one of "records", "columns" and "x", or a list of records')
        yield client.predict(ref, **forms)
        return
    # the service takes commas; the header shows what the file has
    delimiter = max(",;\t|", key=first.count)
    for part in _parts(csv.reader(chain([first], text), delimiter=delimiter, strict=True)):
        yield client.predict(ref, csv=part)


def _parts(lines: Iterator[list[str]]) -> Iterator[str]:
    """Give CSV in parts of about `BATCH_CHARACTERS`, each with the header; one part at least."""
    header, is_first = next(lines, []), True
    while True:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        row = None
        for row in lines:
            writer.writerow(row)
            if out.tell() >= BATCH_CHARACTERS:
                break
        if row is None and not is_first:
            return
        is_first = False
        yield out.getvalue()


def _warn(prediction: Prediction) -> None:
    total = prediction.document.get("warnings_total") or len(prediction.warnings)
    if total:
        first = prediction.warnings[0]
        where = f"row {first.get('row')}, column {first.get('column')}: {first.get('code')}"
        typer.echo(f"fitserve: {total} warnings, the first: {where}", err=True)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
