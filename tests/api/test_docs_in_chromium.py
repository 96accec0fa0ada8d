"""The page at `/docs` in a real browser, under its Content-Security-Policy and with no other host to reach."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Protocol

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Server(Protocol):
    """A running service: the fixture `server`."""

    url: str


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH (Debian: apt-get install chromium)")
def test_the_page_renders_every_route_without_a_complaint_or_an_outside_request(server: Server, tmp_path: Path) -> None:
    log = tmp_path / "net.json"
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",  # in a container there is no user namespace to make one with
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",  # not even the browser's own
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--log-net-log={log}",
        "--enable-logging=stderr",  # console messages and policy violations
        "--virtual-time-budget=20000",
        "--dump-dom",
        f"{server.url}/docs",
    ]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    assert 'class="swagger-ui"' in done.stdout
    assert "/api/v1/models" in done.stdout
    assert "errors-wrapper" not in done.stdout
    complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line or "Content Security Policy" in line]
    assert not complaints
    events = [json.loads(line.rstrip(",\n")) for line in log.open() if line.startswith('{"params"')]
    by_page = {e["params"]["url"] for e in events if e["params"].get("initiator") == server.url}
    assert f"{server.url}/openapi.json" in by_page
    assert not [url for url in by_page if not url.startswith(f"{server.url}/")]
