"""Several serving processes on one data directory: one service for its clients, whichever process answers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings
from app.wiring import open_rooms
from tests import stored_rows
from tests.processes import is_alive, until
from tests.service import Service
from tests.shared_services import KEY
from tests.wire import check_problem, connect, head, read_answer

ROWS = {"records": [{"a": 1.5, "b": "x"}] * 300}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Service]:
    """Two processes, with version 1 of the model `m`."""
    data_dir = tmp_path_factory.mktemp("several") / "data"
    data_dir.mkdir()
    shutil.copy(migrated, data_dir / "fitserve.db")
    publish(data_dir)
    settings = {"processes": "2", "api_key": KEY, "max_parsed_at_once_bytes": "200"}
    service = Service(data_dir, settings | {"max_predictions": "1", "max_waiting_predictions": "1"}).start()
    yield service
    assert 0 == service.stop()


def publish(data_dir: Path) -> None:
    """Publish the next version of the model `m`, as a worker does from its own process, and make it the default."""
    rooms = open_rooms(Settings(data_dir=data_dir))
    stored_rows.train(rooms, "m")
    rooms.close()


def ask(service: Service, method: str, path: str, key: str = KEY, **content: Any) -> httpx.Response:
    """Send a request on a connection of its own, which any process may take."""
    headers = {"Authorization": f"Bearer {key}", **content.pop("headers", {})}
    return httpx.request(method, service.url + path, headers=headers, timeout=60, **content)


@contextmanager
def only(service: Service, process: int) -> Iterator[None]:
    """Stop the other serving processes, so that this one answers."""
    others = [each for each in service.find("app.server.main") if each != process]
    for each in others:
        os.kill(each, signal.SIGSTOP)
    try:
        yield
    finally:
        for each in others:
            os.kill(each, signal.SIGCONT)


def ask_each(service: Service, method: str, path: str, **content: Any) -> list[httpx.Response]:
    """Return the answer of each process."""
    found = []
    for process in service.find("app.server.main"):
        with only(service, process):
            found.append(ask(service, method, path, **content))
    return found


def answered(service: Service, route: str) -> float:
    """Return how many requests a route has answered, all processes together."""
    page = ask(service, "GET", "/metrics").text
    lines = re.findall(r"^http_server_request_duration_seconds_count(\{.*\}) (\S+)$", page, re.MULTILINE)
    return sum(float(count) for labels, count in lines if f'http_route="{route}"' in labels)


def test_there_are_one_worker_and_the_set_number_of_serving_processes(pair: Service) -> None:
    assert (2, 1) == (len(pair.find("app.server.main")), len(pair.find("app work")))
    assert [2, 2] == [answer.json()["processes"] for answer in ask_each(pair, "GET", "/api/v1/system")]


def test_the_metrics_of_any_process_are_those_of_all(pair: Service) -> None:
    before = answered(pair, "/livez")
    for _ in range(3):
        ask_each(pair, "GET", "/livez")

    assert [before + 6] * 3 == [answered(pair, "/livez") for _ in range(3)]


def test_every_process_sees_keys_and_promotions(pair: Service) -> None:
    made = ask(pair, "POST", "/api/v1/keys", json={"scopes": ["predict"]}).json()
    path = "/api/v1/models/m/predict"

    def statuses() -> set[int]:
        return {answer.status_code for answer in ask_each(pair, "POST", path, key=made["key"], json=ROWS)}

    def versions() -> set[str]:
        return {answer.headers["x-model"] for answer in ask_each(pair, "POST", path, json=ROWS)}

    until(lambda: statuses() == {200})
    assert {"m@1"} == versions()
    publish(pair.data_dir)
    until(lambda: versions() == {"m@2"})
    ask(pair, "DELETE", f"/api/v1/keys/{made['id']}").raise_for_status()
    until(lambda: statuses() == {401})


def test_a_large_upload_is_read_whichever_process_took_it(pair: Service) -> None:
    taken = []
    for i, process in enumerate(pair.find("app.server.main")):
        table = f"a,y\n{i},p\n".encode() + b"1,q\n" * 100
        with only(pair, process):
            headers = {"Content-Type": "text/csv"}
            taken.append(ask(pair, "POST", "/api/v1/datasets", headers=headers, content=table))

    assert [202, 202] == [answer.status_code for answer in taken]
    for answer in taken:
        path = answer.headers["location"]
        until(lambda path=path: ask(pair, "GET", path).json()["status"] == "ready")  # type: ignore[misc]


def test_a_dead_process_is_started_again_and_the_others_answer(pair: Service) -> None:
    statuses: list[int] = []
    refused: list[httpx.Response] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                answer = ask(pair, "POST", "/api/v1/models/m/predict", json=ROWS)
            except httpx.TransportError:
                # the request was at the process that died
                continue
            statuses.append(answer.status_code)
            if answer.status_code == 503:
                refused.append(answer)

    first, second = pair.find("app.server.main")
    route = "/api/v1/models/{ref}/predict"
    before = answered(pair, route)
    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: statuses.count(200) >= 20 and refused)
    counted = answered(pair, route)
    os.kill(first, signal.SIGKILL)
    until(lambda: not is_alive(first))
    since = len(statuses)
    until(lambda: len(statuses) >= since + 20)
    until(lambda: second in (now := pair.find("app.server.main")) and len(now) == 2)
    stop.set()
    for thread in threads:
        thread.join()

    assert {200, 503} == set(statuses)
    for each in refused[:5]:
        check_problem(each, 503, "overloaded")
    # the counts of the dead process at the last reading are not lost
    assert before < counted <= answered(pair, route)
    page = ask(pair, "GET", "/metrics").text
    full = re.findall(
        r'^fitserve_requests_refused_total\{.*lane="predictions".*reason="full".*\} (\S+)$', page, re.MULTILINE
    )
    assert float(full[0]) > 0
    until(lambda: len(ask_each(pair, "GET", "/livez")) == 2)


def test_a_signal_drains_all_of_them(pair: Service) -> None:
    table = b"a,y\n" + b"1,p\n" * 10
    headers = (f"Authorization: Bearer {KEY}", "Content-Type: text/csv", f"Content-Length: {len(table)}")
    with ExitStack() as opened:
        waiting = []
        for process in pair.find("app.server.main"):
            with only(pair, process):
                waiting.append(opened.enter_context(connect(pair.url)))
                waiting[-1].sendall(head(pair.url, "POST", "/api/v1/datasets", *headers) + table[:4])
                # connections are taken in order
                ask(pair, "GET", "/livez").raise_for_status()
        pair.process.send_signal(signal.SIGTERM)
        for each in waiting:
            each.sendall(table[4:])

        assert {200, 201} == {read_answer(each).status_code for each in waiting}
    assert 0 == pair.process.wait(30)
    assert {} == pair.processes()
