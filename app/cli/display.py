"""What people see of a job and its figures on a terminal, or in a log. Does not know the commands.

rich and the client's errors are imported when something is shown: `fitserve serve` needs neither.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from app.client import Client, Job

#: lines of progress where there is no terminal
PROGRESS_LINES = 20
#: how often the position within an epoch is asked for
POLL_SECONDS = 0.5
#: a larger confusion matrix is shown as JSON only
SHOWN_CLASSES = 12
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")


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


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
