"""Bad input on other servers' protocols, over a real socket: each kind is refused in the protocol's own shape."""

from __future__ import annotations

import gzip
import json
import random
import re
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.client import Job
from tests.service import Service
from tests.shared_services import KEY
from tests.tensors import LENGTH, Input, as_bytes, as_json
from tests.wire import JSON, check_protocol_error, connect, exchange, head, read_answer

DEEP = 100_000
LONG_NUMBER = "9" * 5000

#: for a model of the columns a and b: a body, and words of the answer
PREDICTS: dict[str, tuple[str, str]] = {
    "nothing": ("", "JSON"),
    "no object": ("[]", "object"),
    "an empty object": ("{}", "neither"),
    "both": ('{"instances": [[1, 2]], "inputs": [[1, 2]]}', "both"),
    "another signature": ('{"signature_name": "other", "instances": [[1, 2]]}', "signature_name"),
    "no instance": ('{"instances": []}', "at least one"),
    "instances that are no list": ('{"instances": {"a": 1}}', "at least one row"),
    "a short row": ('{"instances": [[1]]}', "got 1 in row 0"),
    "ragged rows": ('{"instances": [[1, 2], [1, 2, 3]]}', "got 3 in row 1"),
    "nested rows": ('{"instances": [[[1, 2], [3, 4]]]}', "got a list"),
    "values for two columns": ('{"instances": [1, 2]}', "got something else in row 0"),
    "an unknown column": ('{"instances": [{"a": 1, "c": 2}]}', "got 'c'"),
    "mixed instances": ('{"instances": [{"a": 1}, [1, 2]]}', "record 1"),
    "columns of two lengths": ('{"inputs": {"a": [1], "b": [1, 2]}}', "one length"),
    "a column that is none": ('{"inputs": {"a": 1, "b": [1]}}', "to be a list"),
    "no column": ('{"inputs": {}}', "object of lists"),
    "true": ('{"instances": [[true, 1]]}', "a boolean"),
    "a text": ('{"instances": [["five", 1]]}', "a text"),
    "an object in a cell": ('{"instances": [[{"c": 1}, 1]]}', "another object in row 0"),
    "base64 that is none": ('{"instances": [[{"b64": "%"}, 1]]}', "b64"),
    "base64 that is no text": ('{"instances": [[{"b64": 5}, 1]]}', "b64"),
    "base64 that is no UTF-8": ('{"instances": [[{"b64": "/w=="}, 1]]}', "b64"),
    "Infinity": ('{"instances": [[Infinity, 1]]}', "finite"),
    "-Infinity": ('{"instances": [[-Infinity, NaN]]}', "finite"),
    "1e999": ('{"instances": [[1e999, 1]]}', "finite"),
    "1e999 beside NaN": ('{"instances": [[1e999, NaN]]}', "finite"),
    "a huge integer": (f'{{"instances": [[{LONG_NUMBER}, 1]]}}', "finite"),
    "a huge integer beside NaN": (f'{{"instances": [[{LONG_NUMBER}, NaN]]}}', "finite"),
    "100,000 brackets": ("[" * DEEP, "JSON"),
    "100,000 brackets and NaN": ("[" * DEEP + "NaN" + "]" * DEEP, "JSON"),
    "100,000 objects in an instance": ('{"instances": ' + '{"a":' * DEEP, "JSON"),
    "half a surrogate": (r'{"instances": [{"\ud800": 1}]}', "JSON"),
    "half a surrogate beside NaN": (r'{"instances": [{"\ud800": NaN}]}', "JSON"),
    "NaN in what is cut off": ('{"instances": [[NaN, 1]', "JSON"),
}
CLASSIFIES: dict[str, tuple[str, str]] = {
    "nothing": ("{}", "examples"),
    "no example": ('{"examples": []}', "at least one"),
    "an example that is none": ('{"examples": [[1, 2]]}', "to be an object"),
    "a context that is none": ('{"context": [], "examples": [{"a": 1}]}', "context"),
    "a feature twice": ('{"context": {"a": 1}, "examples": [{"a": 1}]}', "got both"),
    "an unknown feature": ('{"examples": [{"c": 1}]}', "got 'c'"),
}
ONE = {"name": "a", "datatype": "FP32", "shape": [1], "data": [1]}
INFERS: dict[str, tuple[str, str]] = {
    "nothing": ("", "JSON"),
    "no object": ("5", "object"),
    "an empty object": ("{}", "at least one tensor"),
    "no input": ('{"inputs": []}', "at least one tensor"),
    "an input that is none": ('{"inputs": [5]}', "object with a name"),
    "a name that is none": (json.dumps({"inputs": [{**ONE, "name": 5}]}), "object with a name"),
    "an id that is none": (json.dumps({"id": 5, "inputs": [ONE]}), "id to be a text"),
    "no datatype": (json.dumps({"inputs": [{"name": "a", "shape": [1], "data": [1]}]}), "datatype"),
    "an unknown datatype": (json.dumps({"inputs": [{**ONE, "datatype": "BF16"}]}), "datatype"),
    "no shape": (json.dumps({"inputs": [{**ONE, "shape": None}]}), "shape"),
    "a shape of nothing": (json.dumps({"inputs": [{**ONE, "shape": []}]}), "shape"),
    "three dimensions": (json.dumps({"inputs": [{**ONE, "shape": [1, 1, 1]}]}), "shape"),
    "a negative dimension": (json.dumps({"inputs": [{**ONE, "shape": [-1]}]}), "shape"),
    "a dimension that is true": (json.dumps({"inputs": [{**ONE, "shape": [True]}]}), "shape"),
    "a dimension of half": (json.dumps({"inputs": [{**ONE, "shape": [1.5]}]}), "shape"),
    "a huge dimension": (json.dumps({"inputs": [{**ONE, "shape": [2**62, 2**62]}]}), "as its shape says"),
    "no row": (json.dumps({"inputs": [{**ONE, "shape": [0], "data": []}]}), "at least one row"),
    "no data": (json.dumps({"inputs": [{"name": "a", "datatype": "FP32", "shape": [1]}]}), "data"),
    "too little data": (json.dumps({"inputs": [{**ONE, "shape": [2]}]}), "got 1"),
    "ragged data": (json.dumps({"inputs": [{**ONE, "shape": [2, 1], "data": [[1], [1, 2]]}]}), "in row 1"),
    "too many rows": (json.dumps({"inputs": [{**ONE, "shape": [1, 1], "data": [[1], [2]]}]}), "got 2"),
    "nested data": (json.dumps({"inputs": [{**ONE, "data": [[1]]}]}), "values of FP32"),
    "deeper data": (json.dumps({"inputs": [{**ONE, "shape": [1, 1], "data": [[[1]]]}]}), "values of FP32"),
    "a text for a number": (json.dumps({"inputs": [{**ONE, "data": ["5"]}]}), "values of FP32"),
    "true for a number": (json.dumps({"inputs": [{**ONE, "data": [True]}]}), "values of FP32"),
    "half an integer": (json.dumps({"inputs": [{**ONE, "datatype": "INT32", "data": [1.5]}]}), "values of INT32"),
    "an integer beyond its type": (json.dumps({"inputs": [{**ONE, "datatype": "UINT8", "data": [256]}]}), "beyond"),
    "a negative unsigned": (json.dumps({"inputs": [{**ONE, "datatype": "UINT64", "data": [-1]}]}), "beyond"),
    "a huge integer": (
        '{"inputs": [{"name": "a", "datatype": "INT64", "shape": [1], "data": [1%s]}]}' % ("0" * 30),
        "INT64",
    ),
    "a number for a text": (json.dumps({"inputs": [{**ONE, "datatype": "BYTES"}]}), "values of BYTES"),
    "a text that is no number": (
        json.dumps({"inputs": [{**ONE, "datatype": "BYTES", "data": ["x"]}]}),
        "a text in row 0",
    ),
    "a truth for a number": (
        json.dumps({"inputs": [{**ONE, "datatype": "BOOL", "data": [True]}]}),
        "a boolean in row 0",
    ),
    "Infinity": ('{"inputs": [{"name": "a", "datatype": "FP32", "shape": [1], "data": [Infinity]}]}', "finite"),
    "1e999": ('{"inputs": [{"name": "a", "datatype": "FP64", "shape": [1], "data": [1e999]}]}', "finite"),
    "an unknown column": (json.dumps({"inputs": [ONE, {**ONE, "name": "c"}]}), "got 'c'"),
    "a column twice": (json.dumps({"inputs": [ONE, ONE]}), "twice"),
    "a wide column": (json.dumps({"inputs": [{**ONE, "shape": [1, 2], "data": [1, 2]}]}), "[rows, 1]"),
    "a matrix that is too wide": (
        json.dumps({"inputs": [{**ONE, "name": "m", "shape": [1, 3], "data": [1, 2, 3]}]}),
        "[rows, 2]",
    ),
    "columns of two lengths": (
        json.dumps({"inputs": [ONE, {"name": "b", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}),
        "1 rows as in the first",
    ),
    "parameters that are none": (json.dumps({"inputs": [{**ONE, "parameters": 5}]}), "parameters"),
    "shared memory": (json.dumps({"inputs": [{**ONE, "parameters": {"shared_memory_region": "r"}}]}), "shared memory"),
    "a size without a length": (
        json.dumps(
            {"inputs": [{"name": "a", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}]}
        ),
        "4 more bytes",
    ),
    "an unknown output": (json.dumps({"inputs": [ONE], "outputs": [{"name": "c"}]}), "outputs named"),
    "an output twice": (json.dumps({"inputs": [ONE], "outputs": [{"name": "label"}] * 2}), "outputs named"),
    "an output that is none": (json.dumps({"inputs": [ONE], "outputs": [5]}), "outputs named"),
    "an output of a list": (json.dumps({"inputs": [ONE], "outputs": [{"name": []}]}), "outputs named"),
    "outputs that are none": (json.dumps({"inputs": [ONE], "outputs": 5}), "a list"),
    "no class": (
        json.dumps({"inputs": [ONE], "outputs": [{"name": "probabilities", "parameters": {"classification": 0}}]}),
        "classification",
    ),
    "the best labels": (
        json.dumps({"inputs": [ONE], "outputs": [{"name": "label", "parameters": {"classification": 1}}]}),
        "classification",
    ),
    "an output's parameters that are none": (
        json.dumps({"inputs": [ONE], "outputs": [{"name": "label", "parameters": []}]}),
        "parameters",
    ),
    "a flag that is none": (
        json.dumps({"inputs": [ONE], "parameters": {"binary_data_output": 1}}),
        "binary_data_output",
    ),
    "100,000 brackets": ('{"inputs": ' + "[" * DEEP, "JSON"),
    "100,000 brackets as data": ('{"inputs": [{"data": ' + "[" * DEEP + "]" * DEEP + "}]}", "JSON"),
    "half a surrogate": (r'{"id": "\ud800", "inputs": []}', "JSON"),
}
CASES = {
    f"{path}, {name}": (f"/{path}", *case)
    for path, cases in (
        ("v1/models/versioned:predict", PREDICTS),
        ("v1/models/versioned/versions/1:classify", CLASSIFIES),
        ("v2/models/versioned/infer", INFERS),
    )
    for name, case in cases.items()
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_body_is_told_what_is_wrong(http: httpx.Client, versioned: list[Job], case: str) -> None:
    path, body, words = CASES[case]

    assert words in check_protocol_error(http.post(path, content=body), 400)


def test_the_last_of_duplicate_keys_counts(http: httpx.Client, versioned: list[Job]) -> None:
    expected = http.post("/v1/models/versioned:predict", content='{"instances": [[2, 3]]}').raise_for_status().content

    twice = http.post("/v1/models/versioned:predict", content='{"instances": [], "instances": [[2, 3]]}')

    assert expected == twice.content


ROWS = Input("rows", "FP32", [2, 2], [1, 2, 3, 4])
TEXTS = Input("a", "BYTES", [2], ["1", "2"])


@pytest.mark.parametrize("length", ["-1", "1.5", "x", "", "9" * 30, "٣", "0x10", "+5"])
def test_a_length_that_is_no_number_is_refused(http: httpx.Client, versioned: list[Job], length: str) -> None:
    body, _ = as_bytes([ROWS])

    answer = http.post("/v2/models/versioned/infer", content=body, headers=[(LENGTH.encode(), length.encode())])

    assert "number of bytes" in check_protocol_error(answer, 400)


@pytest.mark.parametrize("tensor", [ROWS, TEXTS], ids=["numbers", "texts"])
def test_lengths_that_lie_are_refused(http: httpx.Client, versioned: list[Job], tensor: Input) -> None:
    body, headers = as_bytes([tensor])
    length = int(headers[LENGTH])
    assert http.post("/v2/models/versioned/infer", content=body, headers=headers).is_success

    for other in (0, 1, length - 1, length + 1, len(body), len(body) + 1, 10**15 - 1):
        check_protocol_error(http.post("/v2/models/versioned/infer", content=body, headers={LENGTH: str(other)}), 400)
    check_protocol_error(http.post("/v2/models/versioned/infer", content=body), 400)
    for cut in range(1, len(body) - length + 1):
        check_protocol_error(http.post("/v2/models/versioned/infer", content=body[:-cut], headers=headers), 400)
    check_protocol_error(http.post("/v2/models/versioned/infer", content=body + b"\0", headers=headers), 400)


@pytest.mark.parametrize("size", [-1, 0, 15, 17, 2**70, True, "16", 16.0, [16]])
def test_a_size_that_lies_is_refused(http: httpx.Client, versioned: list[Job], size: Any) -> None:
    document = {"inputs": [{**ROWS.head(), "parameters": {"binary_data_size": size}}]}
    text = json.dumps(document).encode()

    answer = http.post("/v2/models/versioned/infer", content=text + ROWS.raw(), headers={LENGTH: str(len(text))})

    assert "binary_data_size" in check_protocol_error(answer, 400)


@pytest.mark.parametrize(
    "raw",
    [b"\xff\xff\xff\xff", b"\x04\0\0\0\xff\xff\xff\xff\0\0\0\0", b"\0" * 12, b"\x08\0\0\0" + b"\0" * 4, b"\x01\0\0"],
    ids=["a long text", "no UTF-8", "three texts", "half a text", "half a length"],
)
def test_texts_that_are_none_are_refused(http: httpx.Client, versioned: list[Job], raw: bytes) -> None:
    document = {"inputs": [{**TEXTS.head(), "parameters": {"binary_data_size": len(raw)}}]}
    text = json.dumps(document).encode()

    answer = http.post("/v2/models/versioned/infer", content=text + raw, headers={LENGTH: str(len(text))})

    assert "'a'" in check_protocol_error(answer, 400)


def test_a_changed_body_is_answered_or_refused(http: httpx.Client, versioned: list[Job]) -> None:
    chosen = random.Random(5)
    predict: tuple[bytes, dict[str, str]] = (b'{"instances": [[1, 2.5], [NaN, null]], "signature_name": ""}', {})
    sent = [("/v1/models/versioned:predict", *predict), ("/v2/models/versioned/infer", *as_json([ROWS, TEXTS]))]
    sent += [("/v2/models/versioned/infer", *as_bytes([TEXTS], id="1"))] * 2

    for path, body, headers in sent:
        for _ in range(120):
            changed = bytearray(body)
            for _ in range(chosen.randint(1, 3)):
                at = chosen.randrange(len(changed))
                changed[at : at + chosen.randint(0, 2)] = chosen.choice([b"", b"[", b"\xff", b"9", b'"', b"\0", b"NaN"])
            answer = http.post(path, content=bytes(changed), headers=headers)
            if answer.status_code != 200:
                check_protocol_error(answer, 400)


def test_a_body_may_be_compressed_within_its_limit(http: httpx.Client, versioned: list[Job], service: Service) -> None:
    body = b'{"instances": [[1, 2]]}'
    expected = http.post("/v1/models/versioned:predict", content=body).raise_for_status().content
    pack: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
    path = "/v1/models/versioned:predict"

    for encoding, compress in pack.items():
        headers = {"Content-Encoding": encoding}
        assert expected == http.post(path, content=compress(body), headers=headers).content
        bomb = compress(b" " * 50_000_000)
        assert "when decompressed" in check_protocol_error(http.post(path, content=bomb, headers=headers), 413)
        check_protocol_error(http.post(path, content=compress(body)[:-3], headers=headers), 400)
        check_protocol_error(http.post(path, content=body, headers=headers), 400)
    check_protocol_error(http.post(path, content=body, headers={"Content-Encoding": "br"}), 415)


def test_a_body_over_the_limit_is_413_and_one_that_stops_is_408(limited: httpx.Client) -> None:
    url = str(limited.base_url)
    for path in ("/v1/models/m:predict", "/v2/models/m/infer"):
        for content in (b" " * 1001, iter([b" " * 1001])):
            assert "1000 bytes" in check_protocol_error(limited.post(path, content=content), 413)
        with connect(url) as connection:
            connection.sendall(head(url, "POST", path, "Content-Length: 100") + b"{")
            answer = read_answer(connection)
        assert "in time" in check_protocol_error(answer, 408)


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v1", 400, "Malformed request: GET /v1"),
        ("GET", "/v1/", 400, "Malformed request: GET /v1/"),
        ("POST", "/v1/models/versioned:explain", 400, "Malformed request: POST /v1/models/versioned:explain"),
        ("POST", "/v1/models/versioned/versions/x:predict", 400, "path.n"),
        ("POST", "/v1/models/versioned/versions/99:predict", 404, "versioned@99"),
        ("POST", "/v1/models/versioned/labels/nothing:predict", 404, "versioned@nothing"),
        ("POST", "/v1/models/versioned/versions/1/labels/default:predict", 400, "Malformed request"),
        ("POST", "/v1/models/nobody:predict", 404, "no model 'nobody'"),
        ("POST", "/v1/models/nobody:regress", 404, "no model 'nobody'"),
        ("GET", "/v1/models/nobody", 404, "no model 'nobody'"),
        ("GET", "/v1/models/a%20b", 400, "path.name"),
        ("GET", "/v1/models/" + "a" * 5000, 400, "path.name"),
        ("GET", "/v1/" + "é" * 2000, 400, "Malformed request"),
        ("PUT", "/v1/models/versioned", 405, "method"),
        ("GET", "/v1/models/versioned:predict", 405, "method"),
        ("GET", "/v2/", 404, "no such path"),
        ("POST", "/v2/models/versioned/generate", 404, "no such path"),
        ("GET", "/v2/models/versioned/versions/0", 400, "path.n"),
        ("GET", "/v2/models/nobody/stats", 404, "no model 'nobody'"),
        ("GET", "/v2/models/versioned/infer", 405, "method"),
        ("DELETE", "/v2", 405, "method"),
        ("POST", "/v2/repository/models/nobody/load", 404, "no model 'nobody'"),
    ],
)
def test_an_unknown_path_is_refused(
    http: httpx.Client, versioned: list[Job], method: str, path: str, status: int, words: str
) -> None:
    answer = http.request(method, path)

    assert words in check_protocol_error(answer, status)
    assert (status == 405) == ("allow" in answer.headers)


@pytest.mark.parametrize("body", ["[]", "{", '{"ready": 1}', "x" * 2_000_000])
def test_a_bad_body_to_the_repository_is_refused(http: httpx.Client, body: str) -> None:
    check_protocol_error(http.post("/v2/repository/index", content=body), 413 if len(body) > 9999 else 400)


def test_keys_hosts_and_heads_are_refused_in_the_same_shape(
    locked: httpx.Client, http: httpx.Client, service: Service
) -> None:
    for path in ("/v1/models/nobody:predict", "/v2/models/nobody/infer"):
        answer = locked.post(path, content=b"{}")
        check_protocol_error(answer, 401)
        assert "Bearer" == answer.headers["www-authenticate"]
        check_protocol_error(locked.post(path, content=b"{}", headers={"Authorization": f"Bearer {KEY}"}), 404)
        check_protocol_error(http.post(path, content=b"{}", headers={"Host": "evil.example"}), 403)
        check_protocol_error(http.post(path, content=b"{}", headers={"Origin": "https://evil.example"}), 403)
        check_protocol_error(exchange(service.url, head(service.url, "POST", path, "X-Large: " + "a" * 17_000)), 431)


def test_a_request_id_comes_back_and_the_metrics_count_the_route(http: httpx.Client, versioned: list[Job]) -> None:
    for path, body in (
        ("/v1/models/versioned:predict", b'{"instances": [[1, 2]]}'),
        ("/v2/models/versioned/infer", b""),
    ):
        answer = http.post(path, content=body, headers={"X-Request-ID": "mine", **JSON})
        assert "mine" == answer.headers["x-request-id"]

    counted = set(re.findall(r'duration_seconds_count\{[^\n]*http_route="(/v[12]/[^"]*)"', http.get("/metrics").text))
    assert {"/v1/models/{name}:predict", "/v2/models/{name}/infer"} <= counted
