"""Predictions by the fast path and by the route: the same response, byte by byte, whatever the request is."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orjson import dumps
from uvicorn.server import ServerState

from app.api.app import create_app
from app.fast_path.formats import LOOP_ROWS_BYTES, Native
from app.fast_path.routes import ROUTES
from app.fast_path.version import LOOP_BYTES
from app.metrics.request_durations import Tally
from app.records.ref import Ref
from app.records.rooms import Rooms
from app.server.uvicorn_server import protocol_factory
from app.settings import Settings
from app.wiring import Services, open_services
from tests.hostile import MODELS, hostile_bodies, json_bodies, near, publish_models, rows_of

pytestmark = pytest.mark.slow

#: a query that changes nothing, and that the fast path leaves to the route
BY_ROUTE = "?on_error=fail"
HEADERS = "Host: localhost\r\nX-From: a test\r\n"
LIMITS: dict[str, Any] = {"max_predict_bytes": 200_000, "max_predict_cells": 900}


@dataclass(frozen=True)
class Answer:
    """A status, the headers without those that differ from response to response, and the body."""

    status: int
    headers: list[str]
    body: bytes


class Both:
    """A connection to the application; its client and its server are in one event loop."""

    def __init__(self, services: Services, tally: Tally, runner: asyncio.Runner, port: int) -> None:
        self.services = services
        self._tally, self._runner = tally, runner
        #: a line that is added to every head
        self.header = ""
        self._reader, self._writer = runner.run(asyncio.open_connection("127.0.0.1", port))

    def ask(
        self,
        model: str,
        body: bytes,
        content_type: str = "application/json",
        cut: int | None = None,
        route: str = Native.route,
    ) -> Answer:
        """Send a body by both paths, whole or in two parts; return the one answer, after a check that all are equal.

        The body is sent by the fast path twice: the second time its head is known, where it came whole.
        """
        path = re.sub("{ref}|{name}", quote(model, safe="@"), route)
        answers = [self._runner.run(self._post(path + by, body, content_type, cut)) for by in ("", "", BY_ROUTE)]
        for answer in answers[:2]:
            assert answers[2] == answer, body[:500]
        return answers[0]

    def answered(self, route: str = Native.route) -> int:
        """Return how many requests the fast path has answered."""
        return sum(self._tally.series("POST", route).counts)

    async def close(self) -> None:
        """Close the connection, at both ends."""
        self._writer.close()
        await self._writer.wait_closed()
        await asyncio.sleep(0.01)

    async def _post(self, path: str, body: bytes, content_type: str, cut: int | None) -> Answer:
        head = f"POST {path} HTTP/1.1\r\n{HEADERS}{self.header}Content-Type: {content_type}\r\n"
        if cut is not None and cut % 2:
            # an empty chunk would end the body
            parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:cut], body[cut:]) if part]
            self._writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b"".join(parts) + b"0\r\n\r\n")
        else:
            self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:cut])
            if cut is not None:
                await asyncio.sleep(0.001)
                self._writer.write(body[cut:])
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        size = next(int(line.partition(": ")[2]) for line in lines if line.startswith("content-length"))
        kept = [line for line in lines[1:] if not line.startswith("x-request-id")]
        answer = await self._reader.readexactly(size)
        return Answer(int(lines[0].split()[1]), kept, re.sub(rb'"request_id":"\w+"', b"", answer))


@pytest.fixture
def both(rooms: Rooms, tmp_path: Path, database_url: str) -> Iterator[Both]:
    """Both paths, on a version of each model."""
    publish_models(rooms)
    with opened(Settings(data_dir=tmp_path / "data", database_url=database_url, **LIMITS)) as both:
        yield both


@contextmanager
def opened(settings: Settings) -> Iterator[Both]:
    """Serve an application in this process for a while, and connect to it."""
    services, tally = open_services(settings), Tally()
    gate = create_app(services, tally=tally)
    make = protocol_factory(services, gate, tally)
    config, state = uvicorn.Config(gate, lifespan="off", access_log=False, log_config=None), ServerState()
    with asyncio.Runner() as runner:
        listening = runner.run(_listen(partial(make, config, state, {})))
        both = Both(services, tally, runner, listening.sockets[0].getsockname()[1])
        yield both
        runner.run(both.close())
        listening.close()
        runner.run(listening.wait_closed())
    services.close()


async def _listen(protocol: Callable[[], asyncio.Protocol]) -> asyncio.Server:
    return await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)


@pytest.mark.parametrize("model", MODELS)
def test_any_body_has_the_same_answer_by_both_paths(both: Both, model: str) -> None:
    statuses: dict[int, int] = {}

    @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.one_of(json_bodies(model), hostile_bodies(model)), st.none() | st.integers(0, 40))
    def check(body: bytes, cut: int | None) -> None:
        answer = both.ask(model, body, cut=cut)
        statuses[answer.status] = statuses.get(answer.status, 0) + 1

    check()

    # the test proves something only where the fast path answers many bodies, and many are refused
    assert {200, 400, 422} == set(statuses)
    assert statuses[200] < both.answered() <= 2 * statuses[200]
    assert min(statuses.values()) > 2


@st.composite
def instances(draw: st.DrawFn, model: str) -> bytes:
    """Draw a body of TensorFlow Serving's protocol, made from a native one."""
    body = draw(st.one_of(json_bodies(model), hostile_bodies(model)))
    words = {b'"x"': [b'"instances"', b'"inputs"'], b'"records"': [b'"instances"'], b'"columns"': [b'"inputs"']}
    for word, others in words.items():
        body = body.replace(word, draw(st.sampled_from(others)), 1)
    more = [b"", b"", b"", b',"signature_name":"serving_default"', b',"signature_name":1', b',"instances":[]']
    return body[:-1] + draw(st.sampled_from(more)) + body[-1:]


@st.composite
def column_tensors(draw: st.DrawFn, model: str) -> bytes:
    """Draw a tensor for each column; now and then one that does not fit."""
    count, parts = draw(st.integers(1, 3)), []
    for each in draw(st.sampled_from([MODELS[model][0]] * 9 + [MODELS[model][0][1:]])):
        kind, cells = COLUMNS[draw(st.sampled_from([each.kind] * 15 + list(COLUMNS)))]
        shape = [count, *draw(st.sampled_from([[]] * 9 + [[1]] * 9 + [[2]]))]
        data = draw(st.lists(cells, min_size=count, max_size=count))
        name = draw(st.sampled_from([each.name] * 30 + ["e"]))
        parts.append(dumps({"name": name, "datatype": kind, "shape": shape, "data": data}))
    return b",".join(parts)


@st.composite
def matrix_tensors(draw: st.DrawFn, model: str) -> bytes:
    """Draw a tensor of all columns, whose rows are those of a native body."""
    width = len(MODELS[model][0])
    if draw(st.integers(0, 2)):
        numbers = st.lists(st.lists(near, min_size=width, max_size=width), min_size=1, max_size=3)
        rows = rows_of("x", draw(numbers), [])[5:-1]
    else:
        body: bytes = draw(st.one_of(json_bodies(model), hostile_bodies(model)))
        rows = body.partition(b":")[2][:-1]
    count = max(rows.count(b"[") - 1, 0)
    if draw(st.booleans()):
        rows = b"[%b]" % rows.replace(b"[", b"").replace(b"]", b"")
    kind = draw(st.sampled_from([*["FP64", "FP32"] * 12, "INT64", "UINT8", "BOOL", "BYTES", "FP16", "X", 1]))
    shape = draw(
        st.sampled_from([[count, width]] * 25 + [[count], [width, count], [count, True], [count, 1, 1], [-1, 1]])
    )
    head = dumps({"name": draw(st.sampled_from([*["m"] * 12, "a", "[", 1])), "datatype": kind, "shape": shape})
    more = [b',"parameters":{}', b',"name":"m"', b',"parameters":{"binary_data_size":8}']
    return b'%b,"data":%b%b}' % (head[:-1], rows, draw(st.sampled_from([b""] * 20 + more)))


@st.composite
def tensors(draw: st.DrawFn, model: str) -> bytes:
    """Draw a body of the Open Inference Protocol in JSON."""
    makes = [column_tensors] if model == "mixed" else [matrix_tensors] * 5 + [column_tensors]
    ends = [
        b"",
        b',"id":"7"',
        b',"id":7',
        b',"id":"["',
        b',"outputs":[]',
        b',"outputs":null',
        b',"parameters":{"a":[1]}',
    ]
    ends += [
        b',"outputs":[{"name":"%b"%b}]' % (name, more) for name in (b"label", b"probabilities", b"x") for more in OUTPUT
    ]
    ends += [b',"parameters":{"binary_data_output":true}', b',"inputs":[]', b',"outputs":[[1]]', b',"x":1']
    return b'{"inputs":[%b]%b}' % (draw(draw(st.sampled_from(makes))(model)), draw(st.sampled_from([b""] * 30 + ends)))


#: a datatype and its values, by the kind of the column
COLUMNS: dict[str, tuple[str, st.SearchStrategy[Any]]] = {
    "numeric": ("FP64", st.none() | st.floats(-9, 9)),
    "categorical": ("BYTES", st.sampled_from([None, "x", "z", "z", "1", " x ", "new", ""])),
    "boolean": ("BOOL", st.none() | st.booleans()),
}
OUTPUT = (b"", b',"parameters":{"binary_data":true}', b',"parameters":{"classification":1}', b',"parameters":{"x":[1]}')


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("bodies", "route"), [(instances, "/v1/models/{name}:predict"), (tensors, "/v2/models/{name}/infer")]
)
def test_other_protocols_have_the_same_answer_by_both_paths(both: Both, model: str, bodies: Any, route: str) -> None:
    statuses: dict[int, int] = {}

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(bodies(model))
    def check(body: bytes) -> None:
        answer = both.ask(model, body, route=route)
        statuses[answer.status] = statuses.get(answer.status, 0) + 1

    check()

    assert {200, 400} == set(statuses)
    assert statuses[200] < both.answered(route) <= 2 * statuses[200]
    assert min(statuses.values()) > 2


def test_each_path_of_a_version_has_the_same_answer_by_both_paths(both: Both) -> None:
    for route in ("/v1/models/{name}%b:predict", "/v2/models/{name}%b/infer"):
        body = b'{"instances":[[1,2]]}' if route.startswith("/v1") else TENSOR
        for place in ("", "/versions/1", "/versions/2", "/versions/01", "/versions/0", "/labels/default", "/labels/x"):
            both.ask("numbers", body, route=route.replace("%b", place))


TENSOR = b'{"inputs":[{"name":"m","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'


def test_matrices_in_bytes_have_the_same_answer_by_both_paths(both: Both) -> None:
    rng, route = np.random.default_rng(0), "/v2/models/{name}/infer"
    more: list[dict[str, Any]] = [{}, {}, {"id": "7"}, {"id": 7}, {"parameters": {"binary_data_output": True}}]

    for i in range(400):
        model = ("numbers", "strict", "mixed", "one")[i % 4]
        width = len(MODELS[model][0])
        x = rng.normal(0, 3, (rng.integers(1, 4), width + rng.choice([0, 0, 0, 0, 1])))
        if i % 3 == 0:
            x.flat[rng.integers(0, x.size)] = rng.choice(np.array([np.nan, np.inf, 1e38, 1e300, -0.0]))
        with np.errstate(all="ignore"):
            kind, dtype = [("FP64", "<f8"), ("FP32", "<f4"), ("FP16", "<f2"), ("INT64", "<i8")][
                rng.choice([0, 0, 1, 1, 2, 3])
            ]
            data = x.astype(dtype).tobytes()
        size = len(data) + rng.choice([0] * 12 + [-1, 1, 8])
        tensor: dict[str, Any] = {
            "name": "m",
            "datatype": kind,
            "shape": list(x.shape),
            "parameters": {"binary_data_size": int(size)},
        }
        document = {"inputs": [tensor], **more[i % len(more)]}
        if i % 7 == 0:
            document["outputs"] = [{"name": "probabilities", "parameters": {"binary_data": bool(i % 2)}}]
        if i % 13 == 0:
            tensor["data"] = [1]
        text = dumps(document)
        length = len(text) + rng.choice([0] * 12 + [-1, 1, 1000])
        both.header = f"Inference-Header-Content-Length: {length}\r\n"
        both.ask(model, text + data[: len(data) - i % 17 // 16], "application/octet-stream", route=route)

    assert both.answered(route) > 100


@pytest.mark.parametrize("model", ["numbers", "strict", "mixed", "one"])
def test_binary_bodies_have_the_same_answer_by_both_paths(both: Both, model: str) -> None:
    rng, inputs = np.random.default_rng(0), len(MODELS[model][0])
    odd = np.array([np.nan, np.inf, -np.inf, 1e38, 3.4e38, 0.0, -0.0, 1e300, 5.0, -5.0])

    for i in range(300):
        x = rng.normal(0, 3, (rng.integers(0, 5), inputs + rng.choice([0, 0, 0, 0, 1, -1])))
        if i % 2 and x.size:
            x.flat[rng.integers(0, x.size)] = rng.choice(odd)
        with np.errstate(all="ignore"):
            x = x.astype(rng.choice(["<f4", "<f4", "<f8", "<f8", ">f8", "<f2", "<i8", "?"]))
        file = io.BytesIO()
        np.save(file, np.asfortranarray(x) if i % 7 == 0 else x)
        npy = bytearray(file.getvalue())
        if i % 5 == 0:
            npy[rng.integers(0, min(len(npy), 100))] ^= 1 << rng.integers(0, 8)
        if i % 11 == 0:
            npy = npy[: rng.integers(0, len(npy))]
        both.ask(model, bytes(npy), "application/x-npy")
        both.ask(model, x.tobytes()[i % 3 // 2 :], "application/octet-stream")

    assert both.answered() > 0 or model == "mixed"


def test_bodies_of_every_size_have_the_same_answer_by_both_paths(both: Both) -> None:
    # sizes around those from which a body is read in a thread, goes to the route, and is refused
    for rows in (1, 10, 299, 300, 301, 450, 451):
        for cell_ in ("1", "1.25" + "0" * 30, "1.25" + "0" * 150, "7"):
            both.ask("numbers", rows_of("x", [[cell_, cell_]] * rows, []))
            both.ask("mixed", rows_of("records", [[cell_, '"x"', "1", '"z"']] * rows, ['"a"', '"b"', '"c"', '"d"']))
    for size in (LOOP_BYTES, LOOP_ROWS_BYTES, 200_000):
        for more in (-1, 0, 1):
            both.ask("numbers", b'{"x":[[1,2]]' + b" " * (size + more - 13) + b"}")
            both.ask("mixed", b'{"records":[{"d":"z"}]' + b" " * (size + more - 23) + b"}")


def test_an_unknown_reference_has_the_same_answer_by_both_paths(both: Both) -> None:
    for ref in ("numbers", "numbers@1", "numbers@default", "numbers@2", "numbers@best", "nobody", "a b", "", "-", "@"):
        answer = both.ask(ref, b'{"x":[[1,2]]}')

        assert (200 == answer.status) == (ref in ("numbers", "numbers@1", "numbers@default")), ref


def test_a_served_version_is_freed_when_the_cache_evicts_it(both: Both) -> None:
    both.ask("numbers", b'{"x":[[1,2]]}')
    both.ask("mixed", rows_of("records", [["1", '"x"', "1", '"z"']] * 400, ['"a"', '"b"', '"c"', '"d"']))
    cache = both.services.version_cache
    loaded = [weakref.ref(cache.get(Ref.parse(model))) for model in ("numbers", "mixed")]
    for model in ("numbers", "mixed"):
        cache.unload(model)

    gc.collect()

    assert [None, None] == [each() for each in loaded]


def test_both_paths_count_in_the_statistics_of_the_version(both: Both) -> None:
    key = both.services.version_cache.get(Ref.parse("numbers")).version.key

    both.ask("numbers", b'{"x":[[1,2],[3,4]]}')
    both.ask("numbers", b'{"instances":[[1,2]]}', route="/v1/models/{name}:predict")
    both.ask("numbers", b"nothing")

    counts = both.services.usage.get(key)
    assert (6, 9, 6) == (counts.requests, counts.rows, counts.executions)
    assert counts.failures == 3
    assert counts.total_ns == sum(counts.ns.values())
    assert min(counts.ns.values()) > 0


def test_a_full_lane_is_answered_in_the_shape_of_each_protocol(both: Both) -> None:
    asked = [
        ("/api/v1/models/{ref}/predict", b'{"x":[[1,2]]}'),
        ("/v1/models/{name}:predict", b'{"instances":[[1,2]]}'),
        ("/v2/models/{name}/infer", TENSOR),
    ]
    for route, body in asked:
        assert 200 == both.ask("numbers", body, route=route).status
    lane = both.services.lanes.predictions
    entered = [lane.enter()]
    while entered[-1] is not None:
        entered.append(lane.enter())

    # the fast path has seen the heads by now
    answers = [both.ask("numbers", body, route=route) for route, body in asked]

    assert [503] * 3 == [answer.status for answer in answers]
    assert [b'{"type":"ab', b'{"error":"E', b'{"error":"E'] == [answer.body[:11] for answer in answers]
    for _ in entered[:-1]:
        lane.leave()


def test_the_fast_path_has_routes_of_the_application(both: Both) -> None:
    app = create_app(both.services).app
    assert isinstance(app, FastAPI)

    assert set(ROUTES) <= {
        each.path_format for each in iter_route_contexts(app.routes) if "POST" in (each.methods or ())
    }


def test_the_documents_of_both_paths_are_json(both: Both) -> None:
    answer = both.ask("mixed", b'{"records":[{"d":"new","\\"q\\u00e9":1},{"d":"x","a":99}]}')

    assert 200 == answer.status
    assert [each["column"] for each in json.loads(answer.body)["warnings"]][:1] == ["a"]


def test_the_setting_leaves_the_fast_path_out(rooms: Rooms, tmp_path: Path, database_url: str) -> None:
    publish_models(rooms)
    answers, answered = [], []
    for fast_path in (True, False):
        own = Settings(data_dir=tmp_path / "data", database_url=database_url, fast_path=fast_path)
        with opened(own) as both:
            answers.append(both.ask("numbers", b'{"x":[[1,2]]}'))
            answered.append(both.answered())

    assert [2, 0] == answered
    assert 200 == answers[0].status
    assert answers[0] == answers[1]
