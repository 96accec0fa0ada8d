"""Libraries that would report to their makers, or keep files in the home directory, and do not in a service."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PENGUINS
from tests.processes import until
from tests.service import ROOT, Service

STRACE = shutil.which("strace")
#: `-D`: the service is the command's own process, so that signals and the exit code are the service's
TRACER = ("-D", "-f", "-qq", "--seccomp-bpf", "-e", "trace=execve,bind,connect,sendto,sendmsg,sendmmsg")
ADDRESS = re.compile(r'_port=htons\((\d+)\).*?(?:inet_addr\(|AF_INET6, )"([^"]+)"')
DNS_PORT = 53
#: ONNX Runtime 1.32 looks up its maker's address 9.0 s after a process has imported it
REPORT_SECONDS = 10.0
#: where one of these is set, ONNX Runtime reports nothing, or keeps its files elsewhere than at home
QUIETING = {
    *("CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "TRAVIS", "JENKINS_URL", "CODEBUILD_BUILD_ID"),
    *("BUILDKITE", "TEAMCITY_VERSION", "APPVEYOR", "BITBUCKET_BUILD_NUMBER", "SYSTEM_TEAMFOUNDATIONCOLLECTIONURI"),
    *("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME", "KERAS_HOME"),
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home directory."""
    path = tmp_path / "home"
    path.mkdir()
    return path


def at_home(home: Path) -> dict[str, str]:
    """Return the variables of a machine that is not for continuous integration, with this home directory."""
    return {name: value for name, value in os.environ.items() if name not in QUIETING} | {"HOME": str(home)}


@pytest.mark.skipif(STRACE is None, reason="strace is not installed (Debian: strace)")
def test_a_service_connects_to_nobody_and_writes_nothing_at_home(home: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    tracer = (str(STRACE), *TRACER, "-o", str(trace))
    service = Service(tmp_path / "data", environment=at_home(home), tracer=tracer)
    try:
        service.start()
        with service.client() as client:
            dataset = client.upload(PENGUINS)
            job = client.wait(client.train("traced", dataset=dataset, target="species", fit={"epochs": 2}))
            client.predict("traced", records=[{"island": "Biscoe"}])
            client.export("traced", tmp_path / "traced.zip", format="onnx")
        time.sleep(REPORT_SECONDS)
        assert service.stop() == 0
        until(lambda: not service.processes())
    finally:
        service.kill_all()
    calls = trace.read_text(errors="replace")
    addresses = {(host, int(port)) for port, host in ADDRESS.findall(calls)}

    assert "succeeded" == job.status
    # the tracer saw every kind of process
    assert all(
        words in calls
        for words in ("app.ingest.parser_child", '"work"', "app.jobs.training_child", "app.serving.export_child")
    )
    # the tracer saw addresses: the service's own, of which the kernel chose the port
    assert ("127.0.0.1", 0) in addresses
    # a resolver may be on loopback
    assert set() == {
        (host, port) for host, port in addresses if not ipaddress.ip_address(host).is_loopback or port == DNS_PORT
    }
    assert [] == [str(path.relative_to(home)) for path in home.rglob("*")]


def test_a_file_of_keras_in_the_home_directory_changes_no_training(home: Path) -> None:
    (home / ".keras").mkdir()
    (home / ".keras" / "keras.json").write_text('{"floatx": "float64"}')
    code = "import app.jobs.training_child, keras; print(keras.config.floatx())"

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=at_home(home),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert "float32" == done.stdout.strip()
