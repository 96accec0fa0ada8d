"""The page at `/docs` in a real browser, with its Content-Security-Policy and without any other host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import Service
from tests.shared_services import KEY

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",  # in a container there is no user namespace to make one with
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",  # not even the browser's own
    "--enable-logging=stderr",  # console messages and policy violations
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: chromium)")


def test_the_page_shows_every_route_without_errors_or_outside_requests(service: Service, tmp_path: Path) -> None:
    log = tmp_path / "net.json"
    command = [
        str(CHROMIUM),
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--log-net-log={log}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        f"{service.url}/docs",
    ]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    assert 'class="swagger-ui"' in done.stdout
    assert "errors-wrapper" not in done.stdout
    for path in httpx.get(f"{service.url}/openapi.json").json()["paths"]:
        assert f'data-path="{path}"' in done.stdout
    complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line or "Content Security Policy" in line]
    assert not complaints
    lines = log.read_text(encoding="utf-8").splitlines()
    events = [json.loads(line.rstrip(",")) for line in lines if line.startswith('{"params"')]
    by_page = {e["params"]["url"] for e in events if e["params"].get("initiator") == service.url}
    assert f"{service.url}/openapi.json" in by_page
    assert not [url for url in by_page if not url.startswith(f"{service.url}/")]


#: the clicks of a reader, step by step; a step waits until the page shows the element that the step needs
STEPS = """
(async () => {
  const find = async (selector) => {
    for (let i = 0; i < 400; i++) {
      const found = document.querySelector(selector);
      if (found) return found;
      await new Promise((done) => setTimeout(done, 50));
    }
    throw new Error("the page does not show " + selector);
  };
  const ask = async () => {
    (await find("#operations-Models-list_models_api_v1_models_get .execute")).click();
    return (await find("#operations-Models-list_models_api_v1_models_get .live-responses-table tbody .response-col_status")).innerText;
  };
  (await find("#operations-Models-list_models_api_v1_models_get .opblock-summary-control")).click();
  const before = await ask();
  (await find("#operations-Models-list_models_api_v1_models_get .btn-clear")).click();
  (await find(".btn.authorize")).click();
  const field = await find(".modal-ux input");
  // React hears of a value that was typed, not of one that was set
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(field, KEY);
  field.dispatchEvent(new Event("input", {bubbles: true}));
  (await find(".modal-ux .btn.authorize")).click();
  (await find(".modal-ux .btn-done")).click();
  return [before, await ask()];
})()
"""


def test_a_reader_with_a_key_can_try_a_route(locked: httpx.Client, tmp_path: Path) -> None:
    with page(f"{str(locked.base_url).rstrip('/')}/docs", tmp_path) as evaluate:
        before, after = evaluate(STEPS.replace("KEY", json.dumps(KEY)))

    assert "401" == before.split()[0]
    assert "200" == after.split()[0]


@contextmanager
def page(url: str, folder: Path) -> Iterator[Any]:
    """Open a page; yield a function that evaluates JavaScript in it.

    Chromium reads commands from file 3 and answers on file 4: JSON documents, with a zero byte after each.
    """
    (commands_out, commands_in), (answers_out, answers_in) = os.pipe(), os.pipe()
    chromium = [str(CHROMIUM), *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{commands_out} 4>&{answers_in}', "bash", *chromium],
        pass_fds=(commands_out, answers_in),
        stderr=subprocess.DEVNULL,
    )
    os.close(commands_out)
    os.close(answers_in)
    numbers = count(1)
    with os.fdopen(commands_in, "wb", buffering=0) as commands, os.fdopen(answers_out, "rb") as answers:

        def call(method: str, session: str | None = None, **params: Any) -> Any:
            number = next(numbers)
            message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
            commands.write(json.dumps(message).encode() + b"\0")
            while True:
                text = bytearray()
                while (byte := answers.read(1)) not in (b"\0", b""):
                    text += byte
                answer = json.loads(text)
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    return answer["result"]

        def evaluate(script: str) -> Any:
            result = call("Runtime.evaluate", session, expression=script, awaitPromise=True, returnByValue=True)
            assert "exceptionDetails" not in result, result
            return result["result"]["value"]

        try:
            target = call("Target.createTarget", url="about:blank")["targetId"]
            session = call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            call("Page.navigate", session, url=url)
            yield evaluate
            call("Browser.close")
        finally:
            process.kill()
            process.wait(10)
