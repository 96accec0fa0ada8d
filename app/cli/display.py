"""A job's progress, a version and an evaluation, on a terminal or as lines of a log. Does not know the commands.

rich and the client's errors are imported when something is shown: `fitserve serve` needs neither.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from app.client import Client, Document, Job

#: most lines of progress of one job where there is no terminal
PROGRESS_LINES = 20
#: pause between two questions about the position within an epoch
POLL_SECONDS = 0.5
BAR_CHARACTERS, FRAMES_PER_SECOND = 28, 8
#: the confusion matrix of more classes is not shown: it would be wider than a terminal
MOST_SHOWN_CLASSES = 12
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that prints names as they are, also those with brackets."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def follow(client: Client, job: Job, console: Console, *, timeout: float | None = None) -> Job:
    """Show a job's progress until the job ends: as a live bar on a terminal, otherwise as lines.

    Raises:
        JobFailed, JobCancelled, TimedOut, ConnectionFailed: as `Client.wait`.
    """
    from rich.live import Live

    progress = Progress(console)
    with (
        Live(progress, console=console, refresh_per_second=FRAMES_PER_SECOND) if console.is_terminal else nullcontext()
    ):
        with _polling(client, job, progress) if console.is_terminal else nullcontext():
            job = client.wait(job, on_event=progress.on_event, timeout=timeout)
        progress.end()
    return job


class _Epoch(NamedTuple):
    """An epoch that has ended."""

    number: int
    total: int
    rows_per_second: float | None
    metrics: dict[str, float]


class _Position(NamedTuple):
    """Where a job is, also within an epoch."""

    epoch: int = 0
    epochs: int = 0
    fraction: float = 0.0
    eta_seconds: float | None = None


class Progress:
    """A job's progress, from its events and its own document; rich renders an object of this class as it is then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = "queued"
        self._epoch: _Epoch | None = None
        self._printed: _Epoch | None = None
        self._position = _Position()

    def on_event(self, event: Document) -> None:
        """Take in an event of the job."""
        if event["type"] == "status":
            self._status = event.get("status", "")
            if self._status in ("queued", "running"):
                # a job that is taken up again counts its epochs anew
                self._epoch, self._position = None, _Position()
        elif event["type"] == "epoch":
            metrics = {name: event[name] for name in METRICS if event.get(name) is not None}
            self._epoch = _Epoch(event["epoch"], event["epochs"], event.get("rows_per_second"), metrics)
            self._status = "running"
            every = math.ceil(self._epoch.total / PROGRESS_LINES)
            if not self._console.is_terminal and (self._epoch.number == 1 or self._epoch.number % every == 0):
                self._print(self._epoch)
        elif event["type"] == "warning":
            self._console.print(f"warning: {event.get('message', '')}", style="yellow", soft_wrap=True)

    def on_position(self, progress: Document) -> None:
        """Take in the `progress` of the job's document."""
        self._position = _Position(
            progress.get("epoch") or 0,
            progress.get("epochs") or 0,
            progress.get("fraction") or 0.0,
            progress.get("eta_seconds"),
        )

    def end(self) -> None:
        """Show the whole bar, or print the last epoch."""
        self._position = self._position._replace(fraction=1.0, eta_seconds=0)
        if not self._console.is_terminal and self._epoch is not None and self._printed is not self._epoch:
            self._print(self._epoch)

    def _print(self, epoch: _Epoch) -> None:
        self._printed = epoch
        self._console.print(f"{self._title()}  {_metrics_text(epoch)}", soft_wrap=True)

    def _title(self) -> str:
        ended = (0, 0) if self._epoch is None else (self._epoch.number, self._epoch.total)
        # events and positions come in separate requests; the one that is ahead is shown
        number, total = max(ended, (self._position.epoch, self._position.epochs), key=lambda pair: pair[0])
        if not number:
            return {"running": "starting"}.get(self._status, self._status)
        return f"epoch {number}/{total}"

    def __rich__(self) -> RenderableType:
        """Draw two lines: the bar with speed and time left, and the metrics of the last epoch."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table as Grid
        from rich.text import Text

        epoch, position = self._epoch, self._position
        fraction = max(position.fraction, 0.0 if epoch is None else epoch.number / epoch.total)
        rate, eta = None if epoch is None else epoch.rows_per_second, position.eta_seconds
        grid = Grid.grid(padding=(0, 2, 0, 0))
        grid.add_row(
            self._title(),
            ProgressBar(total=1.0, completed=fraction, width=BAR_CHARACTERS, pulse=not fraction),
            f"{fraction:4.0%}",
            "" if rate is None else f"{rate:,.0f} rows/s",
            "" if eta is None else f"eta {_duration(eta)}",
        )
        return Group(grid, Text("" if epoch is None else _metrics_text(epoch), style="dim"))


@contextmanager
def _polling(client: Client, job: Job, progress: Progress) -> Iterator[None]:
    """Meanwhile ask for the position within the epoch, in a thread: an event comes only at the end of an epoch."""
    from app.client import FitserveError

    is_over = threading.Event()

    def poll() -> None:
        while not is_over.wait(POLL_SECONDS):
            with suppress(FitserveError):
                progress.on_position(client.job(job).progress)

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def show_version(version: Document, console: Console) -> None:
    """Print the figures of a version that was trained."""
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


def show_evaluation(evaluation: Document, console: Console) -> None:
    """Print a version's scores, class by class, and its confusion matrix."""
    console.print(
        f"{evaluation['model']}@{evaluation['version']} on {evaluation['rows']} rows: "
        f"accuracy {_number(evaluation['accuracy'])}, loss {_number(evaluation['loss'])}",
        style="bold",
    )
    _show_classes(evaluation["per_class"], console)
    _show_confusion(evaluation["confusion_matrix"], console)


def _show_classes(classes: list[Document], console: Console) -> None:
    from rich.table import Table as Grid

    grid = Grid("class", title="per class", title_justify="left")
    for name in ("precision", "recall", "f1", "rows"):
        grid.add_column(name, justify="right")
    for scores in classes:
        numbers = (_number(scores[name]) for name in ("precision", "recall", "f1"))
        grid.add_row(str(scores["class"]), *numbers, str(scores["support"]))
    console.print(grid)


def _show_confusion(matrix: Document, console: Console) -> None:
    from rich.table import Table as Grid

    classes, counts = matrix["classes"], matrix["counts"]
    if len(classes) > MOST_SHOWN_CLASSES:
        console.print(f"The confusion matrix of {len(classes)} classes is in the answer as JSON.")
        return
    grid = Grid("true \\ predicted", title="confusion matrix", title_justify="left")
    for label in classes:
        grid.add_column(str(label), justify="right")
    for label, row in zip(classes, counts, strict=True):
        grid.add_row(str(label), *map(str, row))
    console.print(grid)


def _metrics_text(epoch: _Epoch) -> str:
    return "  ".join(f"{name} {_number(value)}" for name, value in epoch.metrics.items())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
