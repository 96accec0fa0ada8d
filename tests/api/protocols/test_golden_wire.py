"""Requests to the byte, as the documentation of the clients shows them, and their answers to the byte.

The networks are such that every probability is 0, 1 or a half on any machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.learning.artifact.artifact import Artifact, GoldenRows
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.inputs import Input
from app.learning.network.architecture import Architecture, Dense
from app.settings import Settings
from app.wiring import open_rooms
from tests.service import Service
from tests.stored_rows import make_artifact, train
from tests.wire import Answer, exchange, head

#: headers that curl sends with `-d`
CURL = ("User-Agent: curl/8.5.0", "Accept: */*")
FORM = "Content-Type: application/x-www-form-urlencoded"
X = Input("x", "numeric", "impute", marks_missing=False, low=-5.0, high=5.0)
A = Input("a", "numeric", "impute", marks_missing=False, low=-5.0, high=5.0)
B = Input("b", "categorical", "impute", marks_missing=False, categories=("low", "high"))


def network(inputs: tuple[Input, ...], kernel: list[list[float]], classes: tuple[str | int, ...]) -> Artifact:
    """Return a network of one layer, whose golden row has only missing values."""
    encoder = Encoder(inputs)
    weights = {"0.kernel": np.array(kernel, np.float32), "0.bias": np.zeros(2, np.float32)}
    golden = GoldenRows([{column.name: None for column in inputs}], [[0.5, 0.5]])
    architecture = Architecture(encoder.width, (Dense(2, "softmax"),))
    artifact = replace(make_artifact(), encoder=encoder, architecture=architecture, weights=weights)
    return replace(artifact, classes=classes, golden=golden)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("golden") / "data"
    data_dir.mkdir()
    shutil.copy(migrated, data_dir / "fitserve.db")
    rooms = open_rooms(Settings(data_dir=data_dir))
    for _ in range(2):
        train(rooms, "sign", network((X,), [[-1e4, 1e4]], (0, 1)))
    train(rooms, "mixed", network((A, B), [[0, 0], [1e4, 0], [0, 1e4]], ("small", "large")))
    rooms.aliases.set("sign", "canary", 1)
    rooms.close()
    running = Service(data_dir, {"workers": "0"}).start()
    yield running
    assert running.stop() == 0


V1 = "/v1/models"
ONES = '"status":{"error_code":"OK","error_message":""}'
TENSOR = '"tensor_shape":{"dim":[{"size":"-1","name":""}],"unknown_rank":false}'
PAIRS: dict[str, tuple[str, str, str]] = {
    "instances of one column": (
        f"{V1}/sign:predict",
        '{"instances": [1.0, 2.0, -5.0]}',
        '{"predictions":[[0.0,1.0],[0.0,1.0],[1.0,0.0]]}',
    ),
    "instances of shape (n, 1)": (
        f"{V1}/sign/versions/1:predict",
        '{"signature_name": "serving_default", "instances": [[1.0], [null]]}',
        '{"predictions":[[0.0,1.0],[0.5,0.5]]}',
    ),
    "a bare NaN": (f"{V1}/sign/labels/canary:predict", '{"instances": [NaN]}', '{"predictions":[[0.5,0.5]]}'),
    "named instances": (
        f"{V1}/mixed:predict",
        '{"instances": [{"a": 1, "b": "low"}, {"a": [2.5], "b": ["high"]}, {"a": 0, "b": {"b64": "aGlnaA=="}}]}',
        '{"predictions":[[1.0,0.0],[0.0,1.0],[0.0,1.0]]}',
    ),
    "rows": (
        f"{V1}/mixed:predict",
        '{"instances": [[1, "low"], [null, null]]}',
        '{"predictions":[[1.0,0.0],[0.5,0.5]]}',
    ),
    "inputs by column": (
        f"{V1}/mixed:predict",
        '{"inputs": {"a": [1, 2], "b": [["low"], ["high"]]}}',
        '{"outputs":[[1.0,0.0],[0.0,1.0]]}',
    ),
    "one input": (f"{V1}/sign:predict", '{"inputs": [[3], [-3]]}', '{"outputs":[[0.0,1.0],[1.0,0.0]]}'),
    "examples with a context": (
        f"{V1}/mixed:classify",
        '{"context": {"a": 1.5}, "examples": [{"b": "low"}, {"b": ["high"]}]}',
        '{"results":[[["small",1.0],["large",0.0]],[["small",0.0],["large",1.0]]]}',
    ),
    "labels that are numbers": (
        f"{V1}/sign:classify",
        '{"examples": [{"x": 2}]}',
        '{"results":[[["0",0.0],["1",1.0]]]}',
    ),
    "a column each": (
        "/v2/models/mixed/infer",
        '{"id": "7", "inputs": [{"name": "a", "datatype": "INT32", "shape": [2], "data": [1, 2]},'
        ' {"name": "b", "datatype": "BYTES", "shape": [2, 1], "data": [["low"], ["high"]]}]}',
        '{"model_name":"mixed","model_version":"1","id":"7","outputs":['
        '{"name":"label","datatype":"BYTES","shape":[2],"data":["small","large"]},'
        '{"name":"probabilities","datatype":"FP32","shape":[2,2],"data":[1.0,0.0,0.0,1.0]}]}',
    ),
    "a matrix": (
        "/v2/models/sign/versions/1/infer",
        '{"inputs": [{"name": "input-0", "datatype": "FP32", "shape": [2, 1], "data": [3, null]}],'
        ' "outputs": [{"name": "probabilities"}]}',
        '{"model_name":"sign","model_version":"1","outputs":['
        '{"name":"probabilities","datatype":"FP32","shape":[2,2],"data":[0.0,1.0,0.5,0.5]}]}',
    ),
    "the best class": (
        "/v2/models/sign/infer",
        '{"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [-3]}],'
        ' "outputs": [{"name": "probabilities", "parameters": {"classification": 1}}]}',
        '{"model_name":"sign","model_version":"2","outputs":['
        '{"name":"probabilities","datatype":"BYTES","shape":[1,1],"data":["1.0:0:0"]}]}',
    ),
    "the index of the repository": (
        "/v2/repository/index",
        "",
        '[{"name":"mixed","version":"1","state":"READY","reason":""},'
        '{"name":"sign","version":"1","state":"READY","reason":""},'
        '{"name":"sign","version":"2","state":"READY","reason":""}]',
    ),
    "a load": ("/v2/repository/models/sign/load", "", '{"name":"sign","load":true}'),
    "an unload": (
        "/v2/repository/models/sign/unload",
        '{"parameters": {"unload_dependents": false}}',
        '{"name":"sign","unload":true}',
    ),
}
LOOKS: dict[str, tuple[str, str]] = {
    "all models": (V1, '{"models":["mixed","sign"]}'),
    "a model": (
        f"{V1}/sign",
        '{"name":"sign","ready":true,"model_version_status":['
        f'{{"version":"2","state":"AVAILABLE",{ONES}}},{{"version":"1","state":"AVAILABLE",{ONES}}}]}}',
    ),
    "a version": (
        f"{V1}/sign/versions/2",
        f'{{"model_version_status":[{{"version":"2","state":"AVAILABLE",{ONES}}}]}}',
    ),
    "a label": (
        f"{V1}/sign/labels/canary",
        f'{{"model_version_status":[{{"version":"1","state":"AVAILABLE",{ONES}}}]}}',
    ),
    "a signature": (
        f"{V1}/mixed/metadata",
        '{"model_spec":{"name":"mixed","signature_name":"","version":"1"},"metadata":{"signature_def":{"signature_def":'
        '{"serving_default":{"inputs":{'
        f'"a":{{"dtype":"DT_DOUBLE",{TENSOR},"name":"serving_default_a:0"}},'
        f'"b":{{"dtype":"DT_STRING",{TENSOR},"name":"serving_default_b:0"}}}},"outputs":{{'
        '"probabilities":{"dtype":"DT_FLOAT","tensor_shape":{"dim":[{"size":"-1","name":""},{"size":"2","name":""}],'
        '"unknown_rank":false},"name":"serving_default_probabilities:0"}},"method_name":"tensorflow/serving/predict"}}}}}',
    ),
    "the live": ("/v2/health/live", '{"live":true}'),
    "the ready": ("/v2/health/ready", '{"live":true,"ready":true}'),
    "the names": ("/v2/models", '{"models":["mixed","sign"]}'),
    "the metadata": (
        "/v2/models/mixed",
        '{"name":"mixed","versions":["1"],"platform":"keras","inputs":['
        '{"name":"a","datatype":"FP64","shape":[-1]},{"name":"b","datatype":"BYTES","shape":[-1]}],"outputs":['
        '{"name":"label","datatype":"BYTES","shape":[-1]},{"name":"probabilities","datatype":"FP32","shape":[-1,2]}]}',
    ),
    "a model that is ready": ("/v2/models/sign/versions/1/ready", '{"name":"sign","ready":true}'),
    "a configuration": (
        "/v2/models/sign/config",
        '{"name":"sign","platform":"","backend":"keras","version_policy":{"all":{}},"max_batch_size":0,'
        '"input":[{"name":"x","data_type":"TYPE_FP64","dims":[-1]}],"output":['
        '{"name":"label","data_type":"TYPE_STRING","dims":[-1]},'
        '{"name":"probabilities","data_type":"TYPE_FP32","dims":[-1,2]}]}',
    ),
}


def check(answer: Answer, expected: str) -> None:
    assert (200, expected) == (answer.status_code, answer.content.decode())
    # clients compare the Content-Type with exactly this text
    assert "application/json" == answer.headers["content-type"]


@pytest.mark.parametrize("kind", ["form", "none", "wrong"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_request_is_answered_to_the_byte_with_any_content_type(golden: Service, name: str, kind: str) -> None:
    path, body, expected = PAIRS[name]
    types = {"form": [FORM], "none": [], "wrong": ["Content-Type: text/html; charset=latin-1"]}[kind]
    request = head(golden.url, "POST", path, *CURL, f"Content-Length: {len(body)}", *types) + body.encode()

    check(exchange(golden.url, request), expected)


@pytest.mark.parametrize("name", LOOKS)
def test_a_get_is_answered_to_the_byte(golden: Service, name: str) -> None:
    path, expected = LOOKS[name]

    check(exchange(golden.url, head(golden.url, "GET", path, *CURL)), expected)


def test_tensors_follow_the_json_to_the_byte(golden: Service) -> None:
    text = (
        b'{"inputs":[{"name":"a","datatype":"FP32","shape":[2,1],"parameters":{"binary_data_size":8}},'
        b'{"name":"b","datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":15}}],'
        b'"parameters":{"binary_data_output":true}}'
    )
    body = text + b"\0\0\x80\x3f\0\0\0\x40" + b"\x03\0\0\0low\x04\0\0\0high"
    lengths = (f"Inference-Header-Content-Length: {len(text)}", f"Content-Length: {len(body)}")

    answer = exchange(golden.url, head(golden.url, "POST", "/v2/models/mixed/infer", *lengths) + body)

    expected = (
        b'{"model_name":"mixed","model_version":"1","outputs":['
        b'{"name":"label","datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":18}},'
        b'{"name":"probabilities","datatype":"FP32","shape":[2,2],"parameters":{"binary_data_size":16}}]}'
    )
    assert str(len(expected)) == answer.headers["inference-header-content-length"]
    assert "application/octet-stream" == answer.headers["content-type"]
    tail = b"\x05\0\0\0small\x05\0\0\0large" + b"\0\0\x80\x3f\0\0\0\0\0\0\0\0\0\0\x80\x3f"
    assert expected + tail == answer.content
