"""Exports over HTTP: a reader of each format predicts what the service predicts."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from app.client import Job
from tests.service import Service
from tests.wire import check_problem

# Keras's code that saves models reads TensorFlow's variables in a way that a later NumPy will not support
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning"),
]

#: files of each zip beside `encoder.json` and `card.json`
MEMBERS = {
    "keras": {"model.keras"},
    "saved_model": {"1/saved_model.pb", "1/fingerprint.pb", "1/variables/variables.index"},
    "onnx": {"model.onnx"},
    "litert": {"model.tflite"},
    "weights": {"weights.safetensors", "architecture.json"},
}
RECORDS: dict[str, list[dict[str, Any]]] = {
    "versioned": [{"a": 0.25, "b": 3}, {"a": 5.5, "b": 20}, {"a": -3, "b": 100}],
    "penguins": [
        {"island": "Biscoe", "bill_length_mm": 50.4, "body_mass_g": 5750},
        {"island": "Dream", "sex": "female", "bill_depth_mm": 17.5, "flipper_length_mm": 190},
        {"island": "nowhere"},
    ],
}
#: exports of the tests; a process that imports Keras needs seconds, so two formats are tried with one model only
EXPORTS = [
    *(("versioned", form) for form in MEMBERS),
    *(("penguins", form) for form in ("saved_model", "onnx", "weights")),
]
Matrix = NDArray[np.float32]


@pytest.fixture(scope="module")
def exports(http: httpx.Client, versioned: list[Job], penguins: Job) -> dict[tuple[str, str], bytes]:
    """Exports of version 1 of a model of numbers and of one with categories, two at a time."""

    def export(model_and_form: tuple[str, str]) -> bytes:
        model, form = model_and_form
        path = f"/api/v1/models/{model}/versions/1/export"
        return http.get(path, params={"format": form}).raise_for_status().content

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(EXPORTS, pool.map(export, EXPORTS), strict=True))


def keras_file(folder: Path, x: Matrix) -> Any:
    import keras

    return keras.saving.load_model(folder / "model.keras").predict(x, verbose=0)


def saved_model(folder: Path, x: Matrix) -> Any:
    import tensorflow as tf

    (answer,) = tf.saved_model.load(str(folder / "1")).signatures["serving_default"](tf.constant(x)).values()
    return answer.numpy()


def onnx_file(folder: Path, x: Matrix) -> Any:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (tensor,) = session.get_inputs()
    return session.run(["probabilities"], {tensor.name: x})[0]


def litert_file(folder: Path, x: Matrix) -> Any:
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(folder / "model.tflite"))
    (inputs,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(inputs["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(inputs["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(outputs["index"])


def weights_by_hand(folder: Path, x: Matrix) -> Any:
    weights = load_file(folder / "weights.safetensors")
    at: Any = x
    for i, part in enumerate(json.loads((folder / "architecture.json").read_bytes())["parts"]):
        assert "dense" == part["type"]
        at = at @ weights[f"{i}.kernel"] + weights[f"{i}.bias"]
        at = {"relu": lambda z: np.maximum(z, 0), "softmax": softmax}[part["activation"]](at)
    return at


def softmax(z: Matrix) -> Any:
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


READERS: dict[str, Callable[[Path, Matrix], Any]] = {
    "keras": keras_file,
    "saved_model": saved_model,
    "onnx": onnx_file,
    "litert": litert_file,
    "weights": weights_by_hand,
}


def encoded(inputs: list[dict[str, Any]], records: list[dict[str, Any]]) -> Matrix:
    """Encode rows as `encoder.json` describes, without the code of the service."""
    rows = []
    for record in records:
        row: list[float] = []
        for column in inputs:
            value = record.get(column["name"])
            if column["kind"] == "categorical":
                row += [float(value == category) for category in column["categories"]]
            else:
                row.append(((column["impute"] if value is None else value) - column["mean"]) / column["scale"])
            row += [float(value is None)] if column["marks_missing"] else []
        rows.append(row)
    return np.array(rows, np.float32)


@pytest.mark.parametrize(("model", "form"), EXPORTS)
def test_a_reader_of_the_format_predicts_as_the_service_does(
    http: httpx.Client, exports: dict[tuple[str, str], bytes], tmp_path: Path, model: str, form: str
) -> None:
    records = RECORDS[model]
    expected = http.post(f"/api/v1/models/{model}@1/predict", json={"records": records}).raise_for_status().json()

    with zipfile.ZipFile(io.BytesIO(exports[model, form])) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
        names = {member.filename for member in archive.infolist() if not member.is_dir()}
    card = json.loads((tmp_path / "card.json").read_bytes())
    encoder = json.loads((tmp_path / "encoder.json").read_bytes())
    takes_raw = card["takes"] == "raw"
    if takes_raw:
        x = np.array([[record[name] for name in card["inputs"]] for record in records], np.float32)
    else:
        x = encoded(encoder["inputs"], records)
    probabilities = READERS[form](tmp_path, x)

    assert MEMBERS[form] | {"card.json", "encoder.json"} == names - {"1/variables/variables.data-00000-of-00001"}
    assert (model == "versioned" and form != "weights") == takes_raw
    assert (["a", "b"] if takes_raw else x.shape[1]) == card["inputs"]
    np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-5)
    assert expected["classes"] == card["classes"] == encoder["classes"]


@pytest.mark.parametrize("form", MEMBERS)
def test_the_card_describes_the_file_and_its_exactness(
    http: httpx.Client, exports: dict[tuple[str, str], bytes], form: str
) -> None:
    version = http.get("/api/v1/models/versioned/versions/1").json()

    with zipfile.ZipFile(io.BytesIO(exports["versioned", form])) as archive:
        card = json.loads(archive.read("card.json"))

    assert ("versioned", 1, form, version["weights_sha256"]) == tuple(
        card[name] for name in ("model", "version", "format", "weights_sha256")
    )
    if form != "weights":
        assert 0 <= card["largest_difference"] <= 1e-5
        assert card["checked_on_rows"] >= 1
        assert version["environment"]["keras"] == card["environment"]["keras"]


def test_a_saved_model_unpacks_to_what_tensorflow_serving_serves(
    exports: dict[tuple[str, str], bytes], tmp_path: Path
) -> None:
    import tensorflow as tf

    with zipfile.ZipFile(io.BytesIO(exports["versioned", "saved_model"])) as archive:
        archive.extractall(tmp_path)

    # TensorFlow Serving looks for a folder for each version, named by its number, and ignores other files
    assert ["1"] == [path.name for path in tmp_path.iterdir() if path.is_dir()]
    loaded = tf.saved_model.load(str(tmp_path / "1"), tags=["serve"])
    (_, inputs) = loaded.signatures["serving_default"].structured_input_signature
    assert [(None, 2)] == [tuple(spec.shape) for spec in inputs.values()]


def test_an_export_leaves_no_files_and_an_unknown_version_has_none(
    http: httpx.Client, service: Service, exports: dict[tuple[str, str], bytes]
) -> None:
    for path, status in (("nobody/versions/1", 404), ("versioned/versions/99", 404), ("versioned/versions/0", 422)):
        check_problem(http.get(f"/api/v1/models/{path}/export", params={"format": "onnx"}), status)

    assert [] == [path for path in (service.data_dir / "staging").iterdir() if path.name.startswith("request")]
    assert [] == service.find("app.serving.export_child")
