"""The commands that talk to a service: train, evaluate, predict. Knows the client and the terminal, and nothing behind them.

The client and rich are imported when a command runs: `fitserve serve` needs neither.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from app.cli.display import follow, make_console, show_evaluation, show_version

if TYPE_CHECKING:
    from app.client import Client, Prediction

#: characters of CSV in one predict request, well below the service's default limit
BATCH_CHARACTERS = 2_000_000

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
