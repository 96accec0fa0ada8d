"""Warm starts end to end: training that starts from a version's weights, and what such a job refuses."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load

from app.client import Client, Invalid, Job, JobFailed, NotFound
from tests.conftest import PENGUINS

#: steps so small that float32 weights do not change
STILL: dict[str, Any] = {
    "validation": None,
    "optimizer": {"learning_rate": 1e-12, "momentum": None, "schedule": "constant"},
    "fit": {"epochs": 1, "early_stopping": None},
}
ROWS = {"columns": {"a": [0, 1, 2, 3] * 3, "b": ["u", "v"] * 6, "y": ["p", "q"] * 6}}
SMALL: dict[str, Any] = {
    "validation": None,
    "network": {"layers": [{"units": 6, "activation": "tanh"}], "batch_norm": True},
    "fit": {"epochs": 2},
}


@pytest.fixture(scope="module")
def base(client: Client) -> Job:
    """The job of version 1 of the model `warm`, which knows the classes p and q."""
    return client.wait(client.train("warm", data=ROWS, **SMALL, promote="never"))


def weights(client: Client, ref: str, folder: Path) -> Mapping[str, NDArray[np.float32]]:
    """Return a version's weights, by way of an export."""
    with zipfile.ZipFile(client.export(ref, folder / "weights.zip", format="weights")) as archive:
        return load(archive.read("weights.safetensors"))


def test_training_goes_on_from_the_weights_of_the_version(client: Client, base: Job, tmp_path: Path) -> None:
    before = weights(client, "warm@1", tmp_path)

    job = client.wait(client.train("warm-still", data=ROWS, start_from="warm@1", **STILL))

    after = weights(client, job.ref, tmp_path)
    assert before.keys() == after.keys()
    for name, values in before.items():
        # the moving statistics of batch normalisation move by themselves
        if not name.endswith((".mean", ".variance")):
            np.testing.assert_allclose(values, after[name], rtol=0, atol=1e-9)
    old, new = client.version("warm@1"), client.version(job.ref)
    assert (old["inputs"], old["classes"], old["parameters"]) == (new["inputs"], new["classes"], new["parameters"])
    assert ("warm@1", old["spec"]["network"]) == (new["spec"]["start_from"], new["spec"]["network"])


def test_a_trained_model_goes_on_where_it_was(client: Client, penguins: Job) -> None:
    dataset = client.upload(PENGUINS)
    first = client.version(penguins.ref)["history"]

    job = client.wait(client.train("warm-penguins", dataset=dataset, start_from="penguins", fit={"epochs": 2}))

    assert penguins.ref == job.document["spec"]["start_from"]
    # the first epoch is far better than that of the run from fresh weights
    assert client.version(job.ref)["history"][0]["loss"] < first[0]["loss"] / 2
    assert client.evaluate(job.ref, dataset=dataset)["accuracy"] >= 0.95


def test_an_alias_is_settled_when_the_job_is_submitted(client: Client, base: Job) -> None:
    client.alias("warm", "best", 1)

    dry_runs = [client.dry_run("warm", data=ROWS, start_from=ref)["spec"] for ref in ("warm@best", "warm@1")]

    assert ["warm@1"] * 2 == [spec["start_from"] for spec in dry_runs]
    assert dry_runs[0] == dry_runs[1]
    # values that the version settles may be given too, if they are the same
    same = {name: dry_runs[0][name] for name in ("target", "features", "network")}
    assert dry_runs[0] == client.dry_run("warm", data=ROWS, start_from="warm@best", **same)["spec"]


def test_a_dry_run_counts_the_versions_own_parameters(client: Client, base: Job) -> None:
    version = client.version("warm@1")
    more = {"columns": {**ROWS["columns"], "b": list("uvwxyz") * 2, "other": list("abcdefghijkl")}}

    dry_run = client.dry_run("warm", data=more, start_from="warm@1")

    assert (version["parameters"], ["a", "b"]) == (dry_run["parameters"], dry_run["features"])


@pytest.mark.parametrize(
    ("place", "asked"),
    [
        (["target"], {"target": "b"}),
        (["features", "scaling"], {"features": {"scaling": "none"}}),
        (["features", "exclude"], {"features": {"exclude": ["b"]}}),
        (["network"], {"network": {"layers": [{"units": 7}]}}),
        (["network"], {"network": {"layers": None}}),
        (["start_from"], {"data": {"columns": {"a": [1, 2], "y": ["p", "q"]}}}),
        (["start_from"], {"data": {"columns": {"a": [1, 2], "b": ["u", "v"]}}}),
        (["start_from"], {"start_from": "warm@1@2"}),
    ],
)
def test_what_the_version_cannot_be_is_refused_with_its_place(
    client: Client, base: Job, place: list[str], asked: dict[str, Any]
) -> None:
    before = [job.id for job in client.jobs(model="warm")]

    with pytest.raises(Invalid) as caught:
        client.train("warm", **{"data": ROWS, "start_from": "warm@1", **asked})

    assert (422, place) == (caught.value.status, caught.value.errors[0]["loc"])
    assert before == [job.id for job in client.jobs(model="warm")]


@pytest.mark.parametrize("ref", ["nobody", "warm", "warm@9", "warm@nobody"])
def test_a_version_that_is_not_there_is_not_found(client: Client, base: Job, ref: str) -> None:
    with pytest.raises(NotFound, match="404 not_found"):
        client.train("warm", data=ROWS, start_from=ref)


def test_labels_that_the_version_does_not_know_fail_the_job(client: Client, base: Job) -> None:
    strange = {"columns": {**ROWS["columns"], "y": ["p", "r", "s"] * 4}}

    with pytest.raises(JobFailed) as caught:
        client.wait(client.train("warm", data=strange, start_from="warm@1", **STILL))

    assert ("invalid_data", "target") == (caught.value.code, (caught.value.job.error or {})["param"])
    assert "'r', 's'" in caught.value.message


def test_a_version_that_goes_before_its_job_runs_fails_the_job(client: Client, base: Job) -> None:
    gone = client.wait(client.train("warm-gone", data=ROWS, **SMALL))
    # one job runs at a time
    long = client.train("warm-long", data=ROWS, validation=None, fit={"epochs": 100_000})
    job = client.train("warm", data=ROWS, start_from=gone.ref, **STILL)
    assert "queued" == client.job(job).status
    client.delete_version(gone.ref, force=True)
    client.cancel(long)

    with pytest.raises(JobFailed) as caught:
        client.wait(job)

    assert ("invalid_data", "start_from") == (caught.value.code, (caught.value.job.error or {})["param"])
    assert gone.ref in caught.value.message
    assert job.id == caught.value.job.id
