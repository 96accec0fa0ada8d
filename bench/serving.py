"""`python -m bench.serving`: what a prediction costs over HTTP, beside the floor and beside other servers.

All have the same weights and are sent the same rows; each is one process, but where a row says otherwise, and they are
loaded one after another, round by round. The service has keys, metrics and request ids on, as its users have. What
carries over are the ratios of one round's figures. `PEERS=all`, or some of their names, adds servers that are installed
for it. Writes `bench/results/serving.json`, and the tables in the README.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors

from app.client import Client
from bench import rivals
from bench.about import RESULTS, ROOT, about
from bench.rivals import BARE, BENTOML, KERAS_CALL, KERAS_PREDICT, LITSERVE, MLSERVER, OURS, PEERS, RAY
from bench.rounds import Goal, Round, cell, embed, ratio, rounded, spread, verdicts, written
from bench.servers import BARE as BARE_COMMAND
from bench.servers import run, serve, settle, until
from bench.wrk import Ask, load, tool

RESULT = RESULTS / "serving.json"
LIBRARIES = ("fastapi", "uvicorn", "uvloop", "onnxruntime", "numpy", "keras", "tensorflow")
KEY = "the-key-of-this-benchmark"
ROUNDS, CONNECTIONS, LOAD_SECONDS = 5, 32, 3.0
#: no round begins after the first; all must be ready, or a job have begun, within the second
ENOUGH_SECONDS, READY_SECONDS = 600.0, 180.0
#: few enough that the processor has time left: what is looked at is how long an answer takes
QUIET_CONNECTIONS = 4
JSON, FLOATS = "application/json", "application/octet-stream"
#: by protocol: where ours predicts, and what rows are called
PATHS = {"": "/api/v1/models/%s/predict", "v1": "/v1/models/%s:predict", "v2": "/v2/models/%s/infer"}
FORMS = {"": "x", "v1": "instances"}
EVERYBODY = (BARE, KERAS_PREDICT, KERAS_CALL, LITSERVE, BENTOML, MLSERVER, RAY)
WIDE_TABLE, CLASSES = (300, 784), 10
QUIET, TRAINING = "quiet", "a job trains"
ONE, TWO = "one process", "two processes"
BESIDE = "beside_training"
#: by row: where one process answers it, and two. Of the small one wrk is a third of the work, on the same two cores
PROCESSES = {"wide_32": "two_processes_32", "wide_1": "two_processes_1"}


@dataclass(frozen=True)
class Row:
    """Rows of a model, in a form, and who answers them beside the service."""

    title: str
    model: str
    rows: int
    media_type: str = JSON
    others: Sequence[str] = (BARE,)
    #: another server's protocol that ours is asked by
    protocol: str = ""


ROWS = {
    "wide_1": Row("1 × 784, JSON", "wide", 1, others=EVERYBODY),
    "wide_32": Row("32 × 784, JSON", "wide", 32, others=EVERYBODY),
    "wide_1_floats": Row("1 × 784, raw float32", "wide", 1, FLOATS),
    "wide_32_floats": Row("32 × 784, raw float32", "wide", 32, FLOATS),
    "wide_1_v1": Row("1 × 784, TensorFlow Serving's JSON", "wide", 1, protocol="v1"),
    "wide_1_v2": Row("1 × 784, Open Inference Protocol's JSON", "wide", 1, protocol="v2"),
    "penguins_1": Row("1 penguin, 7 columns of which 2 are categories, JSON records", "penguins", 1),
    "penguins_32": Row("32 penguins, JSON records", "penguins", 32),
}


def _above(row: str, other: str, least: float) -> Goal:
    title = ROWS[row].title
    words = f"ours ≥ {least:g} of {other}" if other == BARE else f"ours ≥ {least:g} × {other}"
    return Goal(f"{title}: {words}", (row, OURS), (row, other), least=least)


GOALS = (
    _above("wide_1", BARE, 0.40),
    _above("wide_32", BARE, 0.25),
    _above("wide_1_floats", BARE, 0.70),
    *(_above("wide_1", who, least) for who, least in {LITSERVE: 10, BENTOML: 10, MLSERVER: 5}.items()),
    *(_above("wide_32", who, least) for who, least in {LITSERVE: 10, BENTOML: 4, MLSERVER: 3}.items()),
    _above("wide_1", KERAS_CALL, 25),
    _above("wide_32", KERAS_CALL, 10),
    _above("wide_1", KERAS_PREDICT, 300),
    Goal("p99 of 1 × 784 while a job trains ≤ 3 × quiet", (BESIDE, TRAINING), (BESIDE, QUIET), most=3),
    *(
        Goal(f"{ROWS[row].title}: two processes ≥ 1.6 × one", (name, TWO), (name, ONE), least=1.6)
        for row, name in PROCESSES.items()
    ),
)


@dataclass
class Field:
    """The servers that run, and the bodies that they are sent.

    Args:
        service, pair: our address with one process and with two.
        peers: where each peer predicts.
    """

    folder: Path
    service: str
    pair: str
    bare: str
    peers: dict[str, str] = field(default_factory=dict)

    def ours(self, row: Row, service: str) -> Ask:
        """Give what the service is asked."""
        return Ask(f"{service}{PATHS[row.protocol] % row.model}", self.body(row, row.protocol), row.media_type, KEY)

    def ask(self, row: Row, who: str) -> Ask | None:
        """Give what a contestant is asked, None where it is absent."""
        if who == OURS:
            return self.ours(row, self.service)
        if who == BARE:
            return Ask(f"{self.bare}/", self.body(row, row.protocol), row.media_type)
        if who not in self.peers:
            return None
        is_v2 = next(peer.is_v2 for peer in PEERS if peer.name == who)
        return Ask(self.peers[who], self.body(row, "v2" if is_v2 else ""))

    def body(self, row: Row, form: str = "") -> Path:
        """Give the file of a row's body, written once."""
        path = self.folder / f"{row.model}-{row.rows}-{row.media_type.rpartition('/')[2]}{form}"
        if not path.exists():
            path.write_bytes(_penguins(row.rows) if row.model == "penguins" else _wide(row, form))
        return path


def _table() -> NDArray[np.float64]:
    """Give what the wide network is trained on. Its rows are asked about, too: other numbers would be warned of."""
    return np.random.default_rng(0).random(WIDE_TABLE).round(4)


def _wide(row: Row, form: str) -> bytes:
    x = _table()[: row.rows]
    if row.media_type == FLOATS:
        return x.astype("<f4").tobytes()
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    return json.dumps({"inputs": [tensor]} if form == "v2" else {FORMS[form]: x.tolist()}).encode()


def _penguins(rows: int) -> bytes:
    record = {"island": "Biscoe", "bill_length_mm": 49.1, "bill_depth_mm": 15.6, "flipper_length_mm": 222}
    record |= {"body_mass_g": 5450, "sex": "male", "year": 2009}
    return json.dumps({"records": [record] * rows}).encode()


def main() -> None:
    """Measure, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving")
    parser.add_argument("--quick", action="store_true", help="one short round, and nothing is written")
    parser.add_argument("--output", type=Path, help=f"write the results here, and no README; default {RESULT}")
    asked = parser.parse_args()
    peers = rivals.asked_for(os.environ.get("PEERS", ""))
    named = f"PEERS={os.environ['PEERS']} " if os.environ.get("PEERS") else ""
    document = {**about(LIBRARIES), "command": f"{named}python -m bench.serving{' --quick' * asked.quick}"}
    rounds = measure(peers, *((1, 1.0) if asked.quick else (ROUNDS, LOAD_SECONDS)))
    document |= {"loaded_with": tool(), "connections": CONNECTIONS, "peers": [peer.name for peer in peers]}
    document |= summary(rounds) | {"absent": rivals.absent(peers)}
    text = tables(document)
    output = asked.output or (None if asked.quick else RESULT)
    if output is not None:
        written(output, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    if output == RESULT:
        embed(text, "serving")
    print(text)


def measure(peers: Sequence[rivals.Peer], most: int, seconds: float) -> list[Round]:
    """Run at most so many rounds of loads of so many seconds."""
    deadline = time.monotonic() + READY_SECONDS
    with tempfile.TemporaryDirectory(prefix="fitserve-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        service = stack.enter_context(serve(folder / "one", deadline, api_key=KEY))[1]
        pair = stack.enter_context(serve(folder / "two", deadline, api_key=KEY, processes="2", workers="1"))[1]
        bare = stack.enter_context(run(folder, deadline, *BARE_COMMAND))[1]
        players = Field(folder, service, pair, bare)
        for each in (service, pair):
            _train(each, folder)
        body = players.body(ROWS["wide_1"])
        for peer in peers:
            first = players.body(ROWS["wide_1"], "v2") if peer.is_v2 else body
            ready = time.monotonic() + READY_SECONDS
            opened = rivals.serving(peer, folder, folder / "weights.npz", first.read_bytes(), ready)
            players.peers[peer.name] = stack.enter_context(opened)
        began = time.monotonic()
        rounds: list[Round] = []
        while len(rounds) < most and (not rounds or time.monotonic() < began + ENOUGH_SECONDS):
            rounds.append(_round(players, seconds))
    return rounds


def _round(players: Field, seconds: float) -> Round:
    found: dict[str, dict[str, float | None]] = {}
    for name, asked in ROWS.items():
        found[name] = {}
        for who in (OURS, *asked.others):
            ask = players.ask(asked, who)
            found[name][who] = None if ask is None else load(ask, CONNECTIONS, seconds).per_second
    for row, name in PROCESSES.items():
        asks = {ONE: players.ours(ROWS[row], players.service), TWO: players.ours(ROWS[row], players.pair)}
        found[name] = {which: load(ask, CONNECTIONS, seconds).per_second for which, ask in asks.items()}
    found[BESIDE] = _beside_training(players.service, players.ours(ROWS["wide_1"], players.service), seconds)
    return found


def _beside_training(service: str, ask: Ask, seconds: float) -> dict[str, float | None]:
    """Give the 99th percentile in milliseconds, quiet and while a job trains."""
    quiet = load(ask, QUIET_CONNECTIONS, seconds).p99_ms
    rng = np.random.default_rng(2)
    data = {"x": rng.random((2000, 64)).round(3), "y": np.arange(2000) % CLASSES}
    with Client(service, KEY) as client:
        job = client.train("beside", data=data, validation=None, fit={"epochs": 100_000, "early_stopping": None})
        until(lambda: client.job(job).progress["epoch"], time.monotonic() + READY_SECONDS)
        busy = load(ask, QUIET_CONNECTIONS, seconds).p99_ms
        client.cancel(job)
    settle()
    return {QUIET: quiet, TRAINING: busy}


def _train(service: str, folder: Path) -> None:
    """Train what is asked, and write the weights of the wide network for the peers."""
    x = _table()
    with Client(service, KEY, timeout=READY_SECONDS) as client:
        wide = client.train(
            "wide",
            data={"x": x, "y": np.arange(len(x)) % CLASSES},
            network={"layers": [{"units": 64, "activation": "relu"}]},
            fit={"epochs": 2},
            features={"scaling": "none", "encoding": "plain"},
            validation=None,
        )
        table = client.upload(ROOT / "examples" / "penguins.csv")
        client.wait(client.train("penguins", dataset=table, target="species", fit={"epochs": 5}))
        client.wait(wide)
        # each is loaded when it is asked for first
        client.predict("penguins", records=[{}])
        client.predict("wide", rows=x[:1])
        client.export("wide", folder / "wide.zip", format="weights")
    with zipfile.ZipFile(folder / "wide.zip") as archive:
        tensors = load_tensors(archive.read("weights.safetensors"))
    w1, b1, w2, b2 = (tensors[name] for name in ("0.kernel", "0.bias", "1.kernel", "1.bias"))
    np.savez(folder / "weights.npz", w1=w1, b1=b1, w2=w2, b2=b2)


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Give each row's answers a second, and ours as multiples of the others', with ranges; and the goals."""
    results = {}
    for name, row in ROWS.items():
        rates = {who: [each[name][who] for each in rounds] for who in (OURS, *row.others)}
        results[name] = {
            "title": row.title,
            "per_second": {who: spread([r for r in found if r is not None]) for who, found in rates.items()},
            "ours_to": {who: ratio(rounds, (name, OURS), (name, who)) for who in row.others},
        }
    p99 = {who: spread([f for each in rounds if (f := each[BESIDE][who]) is not None]) for who in (QUIET, TRAINING)}
    return {
        "results": results,
        "p99_ms": p99,
        "goals": [goal.judge(rounds) for goal in GOALS],
        "rounds": rounded(rounds),
    }


def tables(document: Mapping[str, Any]) -> str:
    """Show results as Markdown."""
    machine, rounds = document["machine"], len(document["rounds"])
    lines = [
        f"{document['at'][:10]}, {machine['cpu']}, {machine['cores']} cores; {rounds} round{'s' * (rounds != 1)},"
        f" {document['connections']} connections, loaded with {document['loaded_with']} on the same machine, load average"
        f" {document['load_average_before']} before. Ours are answers a second; the others' are how many times as many"
        " ours are, medians and ranges of each round's ratio.",
        "",
        f"| rows | ours | {' | '.join(EVERYBODY)} |",
        f"| --- | --- | {' | '.join('---' for _ in EVERYBODY)} |",
    ]
    for found in document["results"].values():
        cells = [cell(found["ours_to"].get(who)) for who in EVERYBODY]
        lines.append(f"| {found['title']} | {found['per_second'][OURS]['median']:g} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *verdicts(document["goals"])]) + "\n"


if __name__ == "__main__":
    main()
