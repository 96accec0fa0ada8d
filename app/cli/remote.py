"""The commands that talk to a service: train, evaluate and predict. Uses the client, and nothing else of the application.

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
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from app.cli.display import follow, make_console, show_evaluation, show_version

if TYPE_CHECKING:
    from app.client import Client, Document, Prediction

#: characters of CSV in one predict request: a fourth of the service's default limit
BATCH_CHARACTERS = 2_000_000

Url = Annotated[
    str | None, typer.Option("--url", help="Address of the service; default FITSERVE_URL, else http://127.0.0.1:8000.")
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


def train(
    file: Table,
    model: Annotated[
        str, typer.Option("--model", help="The model's name; the job adds a version.", show_default=False)
    ],
    target: Annotated[str | None, typer.Option(help="Column to predict; by default the last.")] = None,
    spec: Annotated[
        Path | None, typer.Option(help="JSON file with the rest of the training request.", exists=True, dir_okay=False)
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Leave this column out; may be repeated.")] = None,
    layers: Annotated[str | None, typer.Option(help="Units of the hidden layers, such as 64,32.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of one training step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate of stochastic gradient descent.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is random.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Upload a table, train a model on it and show its progress."""
    request = _read_spec(spec)
    _overrule(request, "features", exclude=exclude or None)
    _overrule(request, "network", layers=_layers(layers))
    _overrule(request, "optimizer", learning_rate=learning_rate)
    _overrule(request, "fit", epochs=epochs, batch_size=batch_size, seed=seed)
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
        evaluation = client.evaluate(ref, file=file)
    if as_json:
        print(json.dumps(evaluation))
    else:
        show_evaluation(evaluation, make_console())


def predict(ref: Ref, file: Rows, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Classify the rows of a file; prints CSV: each row's prediction and the probability of each class.

    A large CSV file is sent in parts; with --json each part's answer is a line.
    """
    with connect(url, key) as client, _open_text(file) as text:
        for number, prediction in enumerate(_predictions(client, ref, text)):
            if as_json:
                print(json.dumps(prediction.document))
            else:
                _show_warnings(prediction)
                _write_csv(prediction, with_header=number == 0)


@contextmanager
def connect(url: str | None, key: str | None) -> Iterator[Client]:
    """Open a client; an error of the client or of a file ends the command with a line and exit code 1."""
    from app.client import ApiError, Client, FitserveError

    try:
        client = Client(url, key)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--url") from None
    try:
        with client:
            yield client
    except BrokenPipeError:
        # the reader of standard output has closed it; typer ends quietly
        raise
    except (FitserveError, OSError, ValueError, csv.Error) as error:
        typer.echo(f"fitserve: {error}", err=True)
        # with a single fault, the detail is its message
        for fault in error.errors if isinstance(error, ApiError) and len(error.errors) > 1 else ():
            place = ".".join(str(part) for part in fault.get("loc", ()))
            typer.echo(f"  {place}: {fault.get('message', '')}", err=True)
        raise typer.Exit(1) from None


def _read_spec(path: Path | None) -> Document:
    if path is None:
        return {}
    try:
        spec = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"expected a JSON file: {error}", param_hint="--spec") from None
    if not isinstance(spec, dict) or {"data", "dataset"} & set(spec):
        raise typer.BadParameter('expected a JSON object without "data" and "dataset"', param_hint="--spec")
    return spec


def _overrule(spec: Document, part: str, **flags: object) -> None:
    """Set the values of the flags that are there in a part of the specification, which may come from a file."""
    values = {name: value for name, value in flags.items() if value is not None}
    if values:
        spec[part] = (spec.get(part) or {}) | values


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
    """Return the predictions for a JSON document, or for each part of a CSV file."""
    first_line = text.readline()
    if first_line.lstrip()[:1] in ("{", "["):
        document = json.loads(first_line + text.read())
        forms = {"records": document} if isinstance(document, list) else document
        # the client's name of the matrix "x" is `rows`
        arguments: Document = {{"x": "rows"}.get(name, name): value for name, value in forms.items()}
        if set(arguments) not in ({"records"}, {"columns"}, {"rows"}):
            raise ValueError('expected JSON with one of "records", "columns" and "x", or a list of records')
        yield client.predict(ref, **arguments)
        return
    # the service takes commas; the header shows the delimiter of the file
    delimiter = max(",;\t|", key=first_line.count)
    for part in _parts(csv.reader(chain([first_line], text), delimiter=delimiter, strict=True)):
        yield client.predict(ref, csv=part)


def _parts(rows: Iterator[list[str]]) -> Iterator[str]:
    """Return CSV in parts of about `BATCH_CHARACTERS`, each with the header; there is at least one part."""
    header, is_first = next(rows, []), True
    while True:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        row = None
        for row in rows:
            writer.writerow(row)
            if out.tell() >= BATCH_CHARACTERS:
                break
        if row is None and not is_first:
            return
        is_first = False
        yield out.getvalue()


def _write_csv(prediction: Prediction, *, with_header: bool) -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    if with_header:
        out.writerow(["prediction", *(f"probability_{label}" for label in prediction.classes)])
    for label, probabilities in zip(prediction.predictions, prediction.probabilities, strict=True):
        out.writerow([label, *probabilities])


def _show_warnings(prediction: Prediction) -> None:
    total = prediction.document.get("warnings_total") or len(prediction.warnings)
    if total:
        first = prediction.warnings[0]
        where = f"row {first.get('row')}, column {first.get('column')}: {first.get('code')}"
        typer.echo(f"fitserve: {total} warnings, the first: {where}", err=True)
