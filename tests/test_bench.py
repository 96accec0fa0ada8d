"""The benchmarks run and measure, and the committed results are those of the present benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.client import Job
from app.learning.network.architecture import Architecture
from app.learning.spec import TrainSpec
from app.learning.training import fit
from app.learning.training.examples import Examples
from app.learning.training.task import Task
from bench import contestants, rivals, rounds, serving, sgd, training
from tests.service import ROOT, Service

#: the benchmark of serving with few connections: a slow server answers all of them in the first second of a load
FEW_CONNECTIONS = "import sys; from bench import serving; serving.CONNECTIONS = 4; serving.main()"
RECORD = {"records": [{"island": "Biscoe", "bill_length_mm": 49.1}]}


def load(url: str, body: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.load", url, str(body), "2", "0.5"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def body(tmp_path: Path) -> Path:
    path = tmp_path / "body.json"
    path.write_text(json.dumps(RECORD))
    return path


def test_load_counts_the_answers_of_the_service(
    service: Service, http: httpx.Client, penguins: Job, body: Path
) -> None:
    def answered() -> float:
        lines = http.get("/metrics").text.splitlines()
        counts = [line for line in lines if "request_duration_seconds_count" in line and "/predict" in line]
        return sum(float(line.rpartition(" ")[2]) for line in counts)

    before = answered()
    rate, count, slowest = map(float, load(f"{service.url}/api/v1/models/{penguins.ref}/predict", body).stdout.split())
    after = answered()

    # requests that were under way at the end are counted by the service alone
    assert 0 < count <= after - before <= count + 2
    assert min(rate, slowest) > 0


def test_load_ends_with_the_first_answer_that_is_not_200(service: Service, body: Path) -> None:
    ended = load(f"{service.url}/api/v1/models/no-such-model/predict", body)

    assert ended.returncode == 1
    assert "404 Not Found" in ended.stderr


def test_the_committed_result_names_time_machine_and_versions() -> None:
    document = json.loads((ROOT / "bench/results/service.json").read_text())

    about = {"at", "machine", "kernel", "versions", "workload", "load_average_before"}
    assert about | {"results", "rounds"} == set(document)
    assert {"cpu", "cores", "memory_mib"} == set(document["machine"])
    assert all(figure is not None and figure > 0 for figure in document["results"].values())


@pytest.fixture(scope="module")
def measuring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Start the benchmarks of training and of serving, both at once: their figures are not checked."""
    folder = tmp_path_factory.mktemp("bench")
    environment = {name: value for name, value in os.environ.items() if name != "PEERS"}
    with ExitStack() as opened:
        running = {}
        for name, program in {"training": ("-m", "bench.training"), "serving": ("-c", FEW_CONNECTIONS)}.items():
            command = [sys.executable, *program, "--quick", "--output", str(folder / f"{name}.json")]
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            # a benchmark that no test reads is waited for too: it would leave its servers behind
            running[name] = opened.enter_context(process)
        yield running


def measured(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """Return what a benchmark wrote into its file, and what it printed."""
    printed, errors = process.communicate(timeout=250)
    assert process.returncode == 0, errors[-4000:]
    assert isinstance(process.args, list)
    document: dict[str, Any] = json.loads(Path(str(process.args[-1])).read_text())
    return document, printed.removesuffix("\n")


@pytest.fixture(scope="module")
def trained(measuring: dict[str, subprocess.Popen[str]]) -> dict[str, Any]:
    """Return the results of the benchmark of training on a few rows."""
    document, printed = measured(measuring["training"])
    assert training.tables(document) == printed
    return document


def check_training(document: dict[str, Any]) -> None:
    """Assert that each contestant that is not absent has a positive figure, and a ratio within its range."""
    about = {"at", "command", "machine", "kernel", "versions", "load_average_before"}
    assert about | {"results", "goals", "absent", "rounds"} == set(document)
    assert list(document["results"]) == list(training.ROWS)
    for name, result in document["results"].items():
        ratios = result["times_ours"]
        assert {contestants.FITSERVE, *ratios} == set(result["seconds"]) == set(training.ROWS[name].epochs)
        for contestant, spread in [*result["seconds"].items(), *ratios.items()]:
            assert (spread is None) == (contestant in document["absent"])
            assert spread is None or 0 < spread["least"] <= spread["median"] <= spread["most"]
        assert all(
            seconds is None or seconds > 0 for figures in document["rounds"] for seconds in figures[name].values()
        )
    assert [goal["goal"] for goal in document["goals"]] == [goal.title for goal in training.GOALS]
    assert all((goal["is_met"] is None) == (goal["ratio"] is None) for goal in document["goals"])


def test_every_contestant_trains_each_of_its_rows(trained: dict[str, Any]) -> None:
    check_training(trained)


def test_the_readme_has_the_committed_figures_of_training() -> None:
    document = json.loads((ROOT / "bench/results/training.json").read_text())

    check_training(document)
    assert {name: result["title"] for name, result in document["results"].items()} == {
        name: row.title for name, row in training.ROWS.items()
    }
    readme = (ROOT / "README.md").read_text()
    assert rounds.embedded(training.tables(document), readme, "training") == readme


@pytest.fixture(scope="module")
def served(measuring: dict[str, subprocess.Popen[str]]) -> dict[str, Any]:
    """Return the results of the benchmark of serving after one short round, without other servers."""
    document, printed = measured(measuring["serving"])
    assert serving.tables(document) == printed
    return document


def test_every_installed_server_is_loaded_in_each_of_its_rows(served: dict[str, Any]) -> None:
    assert list(served["results"]) == list(serving.ROWS)
    for name, result in served["results"].items():
        assert {rivals.OURS, *result["ours_to"]} == set(result["per_second"])
        assert set(result["ours_to"]) == set(serving.ROWS[name].others)
        for server, spread in [*result["per_second"].items(), *result["ours_to"].items()]:
            assert (spread is None) == (server in served["absent"])
            assert spread is None or 0 < spread["least"] <= spread["median"] <= spread["most"]
    assert {rivals.LITSERVE, rivals.BENTOML, rivals.MLSERVER, rivals.RAY} == set(served["absent"])
    assert [goal["goal"] for goal in served["goals"]] == [goal.title for goal in serving.GOALS]
    assert all(spread["median"] > 0 for spread in served["p99_ms"].values())


def test_the_readme_has_the_committed_figures_of_serving() -> None:
    document = json.loads((ROOT / "bench/results/serving.json").read_text())

    assert {name: result["title"] for name, result in document["results"].items()} == {
        name: row.title for name, row in serving.ROWS.items()
    }
    assert [goal["goal"] for goal in document["goals"]] == [goal.title for goal in serving.GOALS]
    readme = (ROOT / "README.md").read_text()
    assert rounds.embedded(serving.tables(document), readme, "serving") == readme


def test_other_servers_are_chosen_by_name() -> None:
    assert [rivals.KERAS_PREDICT, rivals.KERAS_CALL] == [peer.name for peer in rivals.asked_for("")]
    assert [rivals.LITSERVE, rivals.RAY] == [peer.name for peer in rivals.asked_for("Ray, litserve")[2:]]
    assert list(rivals.PEERS) == rivals.asked_for("all")
    with pytest.raises(SystemExit, match="got triton"):
        rivals.asked_for("ray triton")


def test_a_goal_is_judged_by_its_median_or_by_each_round() -> None:
    rounds_of_goal = [{"row": {"theirs": seconds, "ours": 1.0}} for seconds in (0.9, 2.0, 3.0)]
    goal = rounds.Goal("twice", ("row", "theirs"), ("row", "ours"), least=2)

    assert goal.judge(rounds_of_goal) == {
        "goal": "twice",
        "ratio": {"median": 2, "least": 0.9, "most": 3},
        "is_met": True,
    }
    assert not replace(goal, is_of_each_round=True).judge(rounds_of_goal)["is_met"]
    assert not replace(goal, scale=10).judge(rounds_of_goal)["is_met"]
    assert replace(goal, over=("row", "absent")).judge([{"row": {"absent": None, "ours": 1.0}}])["is_met"] is None


@pytest.mark.parametrize("batch", [32, 256])
def test_the_loop_in_c_has_our_losses_on_the_same_batches(tmp_path: Path, batch: int) -> None:
    if sgd.compiler() is None:
        pytest.skip("needs a C compiler")
    rows, columns, classes, seed = 1000, 20, 10, 3
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, rows).astype(np.int32)
    # the classes are separable, so that the loss falls
    x = (rng.random((rows, columns)) + 2 * np.eye(classes, columns)[y]).astype(np.float32)
    spec = TrainSpec.model_validate(
        {
            "validation": None,
            "network": {"layers": [{"units": sgd.UNITS}]},
            "optimizer": {"learning_rate": 0.1, "momentum": 0.0, "schedule": "constant", "warmup": 0.0},
            "fit": {"epochs": 3, "batch_size": batch, "early_stopping": None, "seed": seed},
        }
    )
    architecture = Architecture.from_spec(spec, columns, classes)
    start = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in architecture.shapes().items()}
    examples = Examples(x, y)

    ours = fit.fit(Task(architecture, spec, examples, None, lambda _event: None, start=start)).history
    network = sgd.Network(list(start.values()), tmp_path)
    theirs = []
    for epoch in range(3):
        (window,) = examples.windows(seed, epoch, batch)
        theirs.append(network.epoch(x, y, window.order, batch, 0.1))

    assert theirs == pytest.approx([entry["loss"] for entry in ours], rel=1e-3)
    assert theirs[-1] < theirs[0]
