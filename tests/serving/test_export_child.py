"""Exported files: what they take, and that they answer as the version does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from app.learning.artifact.artifact import Artifact, GoldenRows, TrainingRecord
from app.learning.artifact.artifact_files import load_artifact, write_artifact
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.inputs import Input
from app.learning.encoding.read_cells import records_cells
from app.learning.network.architecture import Architecture
from app.learning.network.onnx_network import OnnxRuntime
from app.learning.spec import TrainSpec
from app.serving.export_child import export
from app.serving.export_messages import ExportRequest, FileFormat

# Keras's own saving code reads TensorFlow's variables in a way that NumPy will not go on to support
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NETWORK = {"layers": [{"units": 8, "activation": "gelu", "dropout": 0.2}, {"units": 5}], "batch_norm": True}
SIZE = Input("size", "numeric", "impute", marks_missing=False, impute=3.0, mean=3.0, scale=1.5, low=1, high=5)
MARKED = Input("size", "numeric", "impute", marks_missing=True, impute=3.0, mean=3.0, scale=1.5, low=1, high=5)
IS_BIG = Input("is_big", "boolean", "impute", marks_missing=False, impute=1.0)
PLACE = Input("place", "categorical", "impute", marks_missing=False, categories=("a", "b"))
HUGE = Input("size", "numeric", "impute", marks_missing=False, impute=3e300, mean=3e300, scale=1.5e300)
TINY = Input("size", "numeric", "impute", marks_missing=False, impute=3e-300, mean=3e-300, scale=1.5e-300)


def publish(folder: Path, inputs: tuple[Input, ...], records: list[dict[str, Any]]) -> str:
    """Write a version of random weights that reads these inputs."""
    encoder = Encoder(inputs)
    architecture = Architecture.from_spec(TrainSpec.model_validate({"network": NETWORK}), encoder.width, 3)
    rng = np.random.default_rng(0)
    weights = {name: np.abs(rng.normal(0, 1, s)).astype(np.float32) for name, s in architecture.shapes().items()}
    columns = {column.name: [record[column.name] for record in records] for column in inputs}
    x = encoder.encode(records_cells(encoder, columns, len(records)))
    golden = GoldenRows(records, OnnxRuntime(architecture, weights).probabilities(x).tolist())
    training = TrainingRecord({}, {}, [])
    made = Artifact(architecture, encoder, ("a", "b", "c"), weights, training, golden)
    return write_artifact(made, folder)


@pytest.mark.parametrize(
    ("inputs", "records", "takes", "names"),
    [
        ((SIZE, IS_BIG), [{"size": 2, "is_big": True}, {"size": None, "is_big": None}], "raw", ["size", "is_big"]),
        ((SIZE, PLACE), [{"size": 2, "place": "b"}, {"size": None, "place": "z"}], "encoded", 3),
        ((MARKED,), [{"size": 2.5}, {"size": None}], "encoded", 2),
        ((HUGE,), [{"size": 2e300}, {"size": None}], "encoded", 1),
        ((TINY,), [{"size": 2e-300}, {"size": None}], "encoded", 1),
    ],
    ids=["numbers", "a category", "a mark", "beyond float32", "below float32"],
)
def test_the_file_takes_raw_numbers_where_that_is_possible(
    tmp_path: Path, inputs: tuple[Input, ...], records: list[dict[str, Any]], takes: str, names: Any
) -> None:
    (tmp_path / "version").mkdir()
    sha256 = publish(tmp_path / "version", inputs, records)

    card = export(ExportRequest(tmp_path / "version", sha256, "keras", tmp_path / "model.keras"))

    assert (takes, names, 2) == (card.takes, card.inputs, card.checked_on_rows)
    assert card.largest_difference <= 1e-5


def test_another_process_reads_the_file_and_gets_the_same_answers(tmp_path: Path) -> None:
    (tmp_path / "version").mkdir()
    sha256 = publish(tmp_path / "version", (SIZE, IS_BIG), [{"size": 2.25, "is_big": True}])
    export(ExportRequest(tmp_path / "version", sha256, "keras", tmp_path / "model.keras"))

    model = keras.saving.load_model(tmp_path / "model.keras")

    golden = load_artifact(tmp_path / "version", sha256).golden.probabilities
    np.testing.assert_allclose(golden, model.predict(np.array([[2.25, 1.0]]), verbose=0), atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.parametrize(("form", "name"), [("saved_model", "1"), ("onnx", "model.onnx"), ("litert", "model.tflite")])
def test_files_of_other_programs_give_the_same_answers(tmp_path: Path, form: FileFormat, name: str) -> None:
    (tmp_path / "version").mkdir()
    records: list[dict[str, Any]] = [{"size": 2.25, "is_big": True}, {"size": 4, "is_big": False}]
    sha256 = publish(tmp_path / "version", (SIZE, IS_BIG), records)

    card = export(ExportRequest(tmp_path / "version", sha256, form, tmp_path / name))

    assert ("raw", ["size", "is_big"]) == (card.takes, card.inputs)
    assert card.largest_difference <= 1e-5
