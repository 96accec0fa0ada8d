"""The client and a real service: every form of data, a job followed through a crash, errors as exceptions."""

from __future__ import annotations

import csv
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from app.client import (
    Client,
    Conflict,
    Document,
    Invalid,
    Job,
    JobCancelled,
    JobFailed,
    NotFound,
    TimedOut,
    TooLarge,
    Unauthorized,
)
from tests.conftest import PENGUINS, Start
from tests.service import Service

X = np.array([[0.0, 0.5], [1.0, 1.5]] * 6)
Y = np.array([0, 1] * 6)
RECORDS: list[Document] = [
    {"island": "Biscoe", "bill_length_mm": 50.4, "body_mass_g": 5750},
    {"island": "Dream", "bill_length_mm": None},
]


@pytest.fixture(scope="module")
def trained(client: Client) -> tuple[Job, list[Document]]:
    """Return the ended job of the model `client`, trained on arrays, and its events."""
    events: list[Document] = []
    job = client.train("client", data={"x": X, "y": Y}, validation=None, fit={"epochs": 3}, tags={"who": "client"})
    return client.wait(job, on_event=events.append, timeout=200), events


def test_every_form_is_uploaded_and_read(client: Client, tmp_path: Path) -> None:
    rows = [{"a": i / 2, "b": "uv"[i % 2]} for i in range(6)]
    table = tmp_path / "table.csv"
    table.write_text("a,b\n" + "".join(f"{row['a']},{row['b']}\n" for row in rows))
    tabs = tmp_path / "table.TSV"
    tabs.write_text(table.read_text().replace(",", "\t"))
    document = tmp_path / "table.json"
    document.write_text(json.dumps({"records": rows}))
    arrays = tmp_path / "table.npz"
    np.savez(arrays, x=X, y=Y)

    datasets = {
        source: client.upload(source)
        for source in (table, str(tabs), document, arrays)
    } | {
        "bytes": client.upload(table.read_bytes() + b"9,u\n", content_type="text/csv", name="bytes"),
        "columns": client.upload({"columns": {"a": np.arange(4), "b": list("uvuv")}}),
        "matrix": client.upload({"x": X + 1, "y": Y}),
    }  # fmt: skip

    assert ["csv", "tsv", "json", "npz", "csv", "json", "json"] == [dataset.format for dataset in datasets.values()]
    assert [6, 6, 6, 12, 7, 4, 12] == [dataset.rows for dataset in datasets.values()]
    assert ["table.csv", "table.TSV", "table.json", "table.npz", "bytes", None, None] == [
        dataset.name for dataset in datasets.values()
    ]
    assert datasets[table] == client.upload(table) == client.dataset(datasets[table].id)
    assert {dataset.id for dataset in datasets.values()} <= {dataset.id for dataset in client.datasets()}


def test_kinds_are_corrected_and_data_sets_deleted(client: Client) -> None:
    dataset = client.upload(b"zip,y\n1,a\n2,b\n", content_type="text/csv")

    assert "categorical" == client.set_kinds(dataset.id, {"zip": "categorical"}).columns[0]["kind"]

    client.delete_dataset(dataset.id)
    with pytest.raises(NotFound):
        client.dataset(dataset.id)


def test_a_job_is_followed_by_its_events_to_its_version(client: Client, trained: tuple[Job, list[Document]]) -> None:
    job, events = trained

    assert ("succeeded", "client", 1, "client@1", True) == (
        job.status,
        job.model,
        job.version,
        job.ref,
        job.is_terminal,
    )
    assert list(range(1, len(events) + 1)) == [event["id"] for event in events]
    assert [1, 2, 3] == [event["epoch"] for event in events if event["type"] == "epoch"]
    assert "succeeded" == events[-1]["status"]
    assert job in list(client.jobs(model="client", status="succeeded"))
    # waiting for an ended job passes on all its events again
    again: list[Document] = []
    assert job == client.wait(job.id, on_event=again.append)
    assert events == again


def test_the_same_idempotency_key_returns_the_same_job(client: Client, trained: tuple[Job, list[Document]]) -> None:
    jobs = [client.train("client-once", data={"x": X, "y": Y}, idempotency_key="client-1") for _ in range(2)]

    assert jobs[0].id == jobs[1].id
    with pytest.raises(Conflict, match="Idempotency-Key"):
        client.train("client-once", data={"x": X, "y": 1 - Y}, idempotency_key="client-1")
    client.cancel(jobs[0])
    with pytest.raises(JobCancelled):
        client.wait(jobs[0])


def test_rows_are_predicted_in_every_form(client: Client, penguins: Job) -> None:
    names = [column["name"] for column in client.version("penguins")["inputs"]]
    rows = [[record.get(name) for name in names] for record in RECORDS]
    text = ",".join(names) + "\n" + "".join(",".join("" if c is None else str(c) for c in row) + "\n" for row in rows)

    expected = client.predict("penguins", records=RECORDS)

    others = [
        client.predict("penguins", rows=rows),
        client.predict(penguins.ref, columns=dict(zip(names, zip(*rows, strict=True), strict=True))),
        client.predict("penguins", csv=text),
        client.predict("penguins@default", csv=text.encode()),
    ]
    assert "Gentoo" == expected.predictions[0]
    assert (2, 3) == np.shape(expected.probabilities)
    for other in others:
        assert (expected.predictions, expected.probabilities) == (other.predictions, other.probabilities)
        assert penguins.version == other.version
    assert {"imputed"} == {warning["code"] for warning in expected.warnings}


def test_arrays_are_predicted_and_top_k_returns_the_best(client: Client, trained: tuple[Job, list[Document]]) -> None:
    whole = client.predict("client", rows=X[:2])
    best = client.predict("client", rows=X[:2].astype(np.float32), top_k=1)

    assert ([], [0, 1]) == (whole.top, whole.classes)
    assert [] == best.probabilities
    assert [[label] for label in whole.predictions] == [[entry["class"] for entry in row] for row in best.top]


def test_data_sets_data_and_files_are_scored_alike(client: Client, penguins: Job, tmp_path: Path) -> None:
    dataset = client.upload(PENGUINS)
    with PENGUINS.open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    document = tmp_path / "penguins.json"
    document.write_text(json.dumps({"records": records}))

    evaluation = client.evaluate("penguins", dataset=dataset)

    assert evaluation["accuracy"] >= 0.95
    assert evaluation == client.evaluate("penguins", dataset=dataset.id)
    assert evaluation == client.evaluate(penguins.ref, data={"records": records})
    assert evaluation == client.evaluate("penguins", file=PENGUINS) == client.evaluate("penguins", file=document)


def test_aliases_versions_and_exports(client: Client, trained: tuple[Job, list[Document]], tmp_path: Path) -> None:
    assert {"best": 1, "default": 1} == client.alias("client", "best", 1)["aliases"]
    assert client.version("client") == client.version("client@best") == client.version("client@1")
    assert {"who": "client"} == client.version("client")["tags"]
    assert "client" in [model["name"] for model in client.models()]

    path = client.export("client@best", tmp_path / "client.zip", format="weights")

    with zipfile.ZipFile(path) as archive:
        assert "weights.safetensors" in archive.namelist()
    assert [path] == list(tmp_path.iterdir())
    with pytest.raises(Invalid):
        client.export("client", tmp_path / "other.zip", format="pickle")
    assert [path] == list(tmp_path.iterdir())


def test_a_dry_run_says_what_the_job_would_be(client: Client, penguins: Job) -> None:
    dataset = client.upload(PENGUINS)

    dry_run = client.dry_run("penguins", dataset=dataset, target="species", fit={"epochs": 15})

    spec = penguins.document["spec"]
    assert dry_run["spec"] == {name: spec[name] for name in dry_run["spec"]}
    assert ["Adelie", "Chinstrap", "Gentoo"] == [entry["class"] for entry in dry_run["classes"]]
    assert client.version(penguins.ref)["parameters"] == dry_run["parameters"]
    with pytest.raises(Invalid) as caught:
        client.dry_run("penguins", data={"x": X, "y": Y}, target="species")
    assert ["target"] == caught.value.errors[0]["loc"]


def test_an_alias_has_a_history_and_is_rolled_back(client: Client, trained: tuple[Job, list[Document]]) -> None:
    for _ in range(2):
        client.alias("client", "tested", 1)

    changes = [(change["version"], change["reason"]) for change in client.history("client", "tested")]
    assert [(1, "set"), (1, "set")] == changes
    assert [(1, "promoted")] == [(change["version"], change["reason"]) for change in client.history("client")]
    for alias in ("default", "tested"):
        with pytest.raises(Conflict, match="earlier version"):
            client.rollback("client", alias)
    with pytest.raises(NotFound):
        client.history("client", "nobody")


def test_an_evaluation_is_divided_by_a_column(client: Client, penguins: Job) -> None:
    whole = client.evaluate("penguins", file=PENGUINS, by="island")
    dataset = client.upload(PENGUINS)

    assert ["Biscoe", "Dream", "Torgersen"] == [part["value"] for part in whole["slices"]]
    assert whole["rows"] == sum(part["rows"] for part in whole["slices"])
    assert whole == client.evaluate("penguins", dataset=dataset, by="island")
    with pytest.raises(Invalid, match="column of the data to slice by"):
        client.evaluate("penguins", dataset=dataset, by="nothing")


def test_errors_are_exceptions_that_say_what_and_where(client: Client, penguins: Job) -> None:
    with pytest.raises(NotFound, match=r"'nobody'.*404 not_found"):
        client.predict("nobody", records=[{}])
    with pytest.raises(NotFound):
        client.version("penguins@nobody")
    with pytest.raises(Conflict):
        client.cancel(penguins)
    with pytest.raises(Invalid) as caught:
        client.predict("penguins", records=[{"body_mass_g": "heavy"}, {"body_mass_g": "light"}])

    assert (422, "invalid") == (caught.value.status, caught.value.code)
    assert [[0, "body_mass_g"], [1, "body_mass_g"]] == [fault["loc"] for fault in caught.value.errors]
    assert caught.value.request_id
    with pytest.raises(TooLarge):
        client.predict("penguins", csv=b"island\n" + b"Dream\n" * 1_500_000)
    with pytest.raises(ConnectionError):
        Client("http://127.0.0.1:9").system()


def test_a_job_that_fails_raises_with_its_code(client: Client) -> None:
    job = client.train("client-diverges", data={"x": X * 1e3, "y": Y}, **DIVERGING)

    with pytest.raises(JobFailed) as caught:
        client.wait(job)

    assert "loss_not_finite" == caught.value.code
    assert caught.value.job.error == client.job(job).error


DIVERGING: Document = {
    "features": {"scaling": "none"},
    "validation": None,
    "network": {"layers": [{"units": 8, "activation": "linear"}]},
    "optimizer": {"learning_rate": 1e30},
    "fit": {"epochs": 5},
}


@pytest.fixture
def following(start: Start) -> Iterator[tuple[Client, Service]]:
    """Start a service with a key, to be killed, and connect a client to it."""
    service = start(api_key="a-key-of-sixteen-characters")
    service.port = urlsplit(service.url).port or 0
    with service.client("a-key-of-sixteen-characters") as connected:
        yield connected, service


def test_a_job_is_followed_through_a_crash_and_a_restart(following: tuple[Client, Service]) -> None:
    client, service = following
    with service.client() as stranger, pytest.raises(Unauthorized):
        stranger.system()
    events: list[Document] = []
    running, ended = threading.Event(), []

    def on_event(event: Document) -> None:
        events.append(event)
        if event["type"] == "epoch":
            running.set()

    job = client.train("survivor", data={"x": X, "y": Y}, validation=None, fit={"epochs": 150})
    thread = threading.Thread(target=lambda: ended.append(client.wait(job, on_event=on_event, timeout=240)))
    thread.start()
    assert running.wait(120)

    service.kill_all()
    assert not client.is_ready()
    time.sleep(0.5)
    service.start()
    thread.join(240)

    assert ["succeeded"] == [ended_job.status for ended_job in ended]
    assert list(range(1, len(events) + 1)) == [event["id"] for event in events]
    assert ("status", "succeeded") == (events[-1]["type"], events[-1]["status"])
    assert 150 == [event["epoch"] for event in events if event["type"] == "epoch"][-1]
    assert 1 == client.model("survivor")["latest_version"]
    # `wait` with too little time raises, and the job goes on
    long = client.train("survivor", data={"x": X, "y": Y}, validation=None, fit={"epochs": 100_000})
    with pytest.raises(TimedOut, match="goes on"):
        client.wait(long, timeout=0.5)
    assert not client.job(long).is_terminal
    client.cancel(long)
