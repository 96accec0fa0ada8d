"""Routes of predict and evaluate: the same answer for every format, labels with their type, all warnings counted."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest

from app.client import Client, Job
from tests.conftest import PENGUINS
from tests.shared_services import LABELS
from tests.wire import CSV, JSON, check_problem

RECORDS = [
    {"island": "Biscoe", "bill_length_mm": 50.4, "flipper_length_mm": 222, "body_mass_g": 5750, "sex": "male"},
    {"island": "Dream", "bill_length_mm": "39.5", "bill_depth_mm": 17.5, "body_mass_g": None},
    {"island": "Atlantis", "bill_length_mm": 400, "sex": "female"},
]
EVALUATION = {
    *("model", "version", "rows", "loss", "accuracy", "top_k_accuracy", "balanced_accuracy", "macro_f1", "log_loss"),
    *("brier", "roc_auc_ovr", "ece", "per_class", "confusion_matrix", "calibration"),
}


def predict(http: httpx.Client, ref: str, body: Any, headers: dict[str, str] = JSON, **params: str) -> httpx.Response:
    """Predict rows."""
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return http.post(f"/api/v1/models/{ref}/predict", content=content, headers=headers, params=params)


def as_csv(names: list[str], delimiter: str = ",") -> str:
    """Write the records as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, names, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(RECORDS)
    return out.getvalue()


def test_the_answer_has_every_field(http: httpx.Client, penguins: Job) -> None:
    answer = predict(http, "penguins", {"records": RECORDS})

    body = answer.json()
    assert "application/json" == answer.headers["content-type"]
    assert {"model", "version", "classes", "predictions", "probabilities", "warnings", "warnings_total"} == set(body)
    assert ("penguins", penguins.version) == (body["model"], body["version"])
    assert ["Adelie", "Chinstrap", "Gentoo"] == body["classes"]
    assert "Gentoo" == body["predictions"][0]
    assert [body["classes"][int(np.argmax(row))] for row in body["probabilities"]] == body["predictions"]
    assert np.allclose(1, np.sum(body["probabilities"], axis=1), atol=1e-6)


def test_every_form_gives_the_same_bits(http: httpx.Client, penguins: Job) -> None:
    version = http.get(f"/api/v1/models/penguins/versions/{penguins.version}").json()
    names = [column["name"] for column in version["inputs"]]
    columns = {name: [record.get(name) for record in RECORDS] for name in names}
    rows = [[record.get(name) for name in names] for record in RECORDS]
    expected = predict(http, "penguins", {"records": RECORDS}).json()

    for form in (
        predict(http, "penguins", {"columns": columns}),
        predict(http, "penguins", {"x": rows}),
        predict(http, "penguins", as_csv(names), CSV),
        predict(http, "penguins", "\ufeff" + as_csv(names).replace("\r\n", "\n") + "\n\n", CSV),
        predict(http, "penguins", as_csv(names, ";"), CSV),
        predict(http, "penguins", as_csv(names[::-1], "\t"), {"Content-Type": "text/csv; charset=utf-8"}),
        predict(http, f"penguins@{penguins.version}", {"records": RECORDS}),
        predict(http, "penguins@default", {"records": RECORDS}),
    ):
        assert expected == form.json()


def test_odd_cells_are_named_in_warnings_by_row_and_column(http: httpx.Client, penguins: Job) -> None:
    body = predict(http, "penguins", {"records": [*RECORDS, {"colour": "red"}]}).json()

    warnings = {(warning["row"], warning["column"], warning["code"]) for warning in body["warnings"]}
    assert {
        (0, "bill_depth_mm", "imputed"),
        (1, "body_mass_g", "imputed"),
        (2, "island", "unseen_category"),
        (2, "bill_length_mm", "out_of_range"),
    } <= warnings
    assert [column for _, column, code in warnings if code == "unknown_column"] == ["colour"]
    assert body["warnings_total"] == len(body["warnings"])


def test_at_most_a_hundred_warnings_are_listed_and_all_are_counted(http: httpx.Client, penguins: Job) -> None:
    body = predict(http, "penguins", {"records": [{"island": "Atlantis", "sex": "male"}] * 300}).json()

    assert 100 == len(body["warnings"])
    # at least an unseen category and four imputed numbers in each row
    assert body["warnings_total"] >= 5 * 300
    assert body["warnings_total"] % 300 == 0


def test_many_names_that_the_model_does_not_know_are_cheap(http: httpx.Client, penguins: Job) -> None:
    records = [{f"{i:x}": 1} for i in range(30_000)]

    body = predict(http, "penguins", {"records": records}).raise_for_status().json()

    # a table with all these columns would have 900 million cells
    assert 30_000 == len(body["predictions"])
    assert body["warnings_total"] > 30_000


@pytest.mark.parametrize("k", [1, 2, 3, 50])
def test_top_k_gives_the_best_classes_in_place_of_all(http: httpx.Client, penguins: Job, k: int) -> None:
    whole = predict(http, "penguins", {"records": RECORDS}).json()

    body = predict(http, "penguins", {"records": RECORDS}, top_k=str(k)).json()

    assert {"model", "version", "classes", "predictions", "top", "warnings", "warnings_total"} == set(body)
    for row, probabilities, label in zip(body["top"], whole["probabilities"], body["predictions"], strict=True):
        best = sorted(zip(probabilities, whole["classes"], strict=True), reverse=True)[:k]
        # the same digits in both shapes of the answer
        assert [{"class": name, "probability": value} for value, name in best] == row
        assert label == row[0]["class"]


@pytest.mark.parametrize("k", ["0", "-1", "1001", "x", "1.5"])
def test_a_top_k_that_is_none_is_422(http: httpx.Client, penguins: Job, k: str) -> None:
    check_problem(predict(http, "penguins", {"records": RECORDS}, top_k=k), 422, "invalid")


@pytest.mark.parametrize("ref", ["penguins@999", "penguins@nobody", "nobody", "nobody@1", "penguins@999999999999"])
@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_a_version_that_is_none_is_404(http: httpx.Client, penguins: Job, verb: str, ref: str) -> None:
    answer = http.post(f"/api/v1/models/{ref}/{verb}", json={"records": [{}]})

    check_problem(answer, 404, "not_found")


def test_a_body_over_the_predict_limit_is_413(limited: httpx.Client) -> None:
    body = '{"records": [' + "{}, " * 400 + "{}]}"

    for content in (body.encode(), iter([body.encode()])):
        answer = limited.post("/api/v1/models/m/predict", content=content, headers=JSON)
        assert "1000 bytes" in check_problem(answer, 413, "too_large")["detail"]


@pytest.mark.parametrize("version", LABELS)
def test_labels_come_back_with_the_type_they_were_posted_with(http: httpx.Client, labelled: Job, version: int) -> None:
    labels, table = LABELS[version]
    ref = f"labelled@{version}"

    prediction = predict(http, ref, {"x": [[0, 0.5], [1, None]]}).json()
    described = http.get(f"/api/v1/models/labelled/versions/{version}").json()
    labelled_rows = {"data": table} if isinstance(table, dict) else table
    headers = JSON if isinstance(table, dict) else CSV
    content = json.dumps(labelled_rows) if isinstance(table, dict) else table
    evaluated = http.post(f"/api/v1/models/{ref}/evaluate", content=content, headers=headers).json()

    # as JSON, because 1 == True in Python
    expected = json.dumps(labels)
    assert expected == json.dumps(prediction["classes"]) == json.dumps(prediction["predictions"])
    assert expected == json.dumps(described["classes"])
    assert expected == json.dumps(evaluated["confusion_matrix"]["classes"])
    assert expected == json.dumps([figures["class"] for figures in evaluated["per_class"]])
    assert [[4, 0], [0, 4]] == evaluated["confusion_matrix"]["counts"]


def test_an_evaluation_has_every_field_and_its_figures_fit(http: httpx.Client, penguins: Job, client: Client) -> None:
    dataset = client.upload(PENGUINS)

    answer = http.post("/api/v1/models/penguins/evaluate", json={"dataset": dataset.id})

    scores = answer.json()
    assert 200 == answer.status_code
    assert EVALUATION == set(scores)
    counts = np.array(scores["confusion_matrix"]["counts"])
    assert dataset.rows == scores["rows"] == counts.sum() == sum(figures["support"] for figures in scores["per_class"])
    assert np.isclose(np.trace(counts) / counts.sum(), scores["accuracy"])
    assert {"class", "precision", "recall", "f1", "support"} == set(scores["per_class"][0])
    assert scores["calibration"]["bins"]
    assert scores["accuracy"] >= 0.95


def test_a_data_set_data_in_the_body_and_a_file_are_scored_alike(
    http: httpx.Client, penguins: Job, client: Client
) -> None:
    before = [dataset.id for dataset in client.datasets()]
    with PENGUINS.open(encoding="utf-8", newline="") as file:
        records = [dict(row) for row in csv.DictReader(file)]
    dataset = client.upload(PENGUINS)
    path = "/api/v1/models/penguins/evaluate"

    by_id = http.post(path, json={"dataset": dataset.id}).json()
    by_file = http.post(path, content=PENGUINS.read_bytes(), headers=CSV).json()
    by_body = http.post(path, json={"data": {"records": records}}).json()

    assert by_id == by_file == by_body
    assert before == [dataset.id for dataset in client.datasets()]


def test_labels_that_the_model_never_saw_are_named(http: httpx.Client, labelled: Job) -> None:
    answer = http.post(
        "/api/v1/models/labelled@3/evaluate", json={"data": {"x": [[0, 1], [1, 0], [0, 0]], "y": [3, 8, 9]}}
    )

    assert "8, 9" in check_problem(answer, 422, "invalid")["detail"]
