"""Who serves predictions in `bench.serving`: the service, the floor, and other servers with the same weights.

Each peer runs in a virtual environment of its own below `.peers/`, made when it is asked for: their requirements conflict.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError

from bench.about import ROOT
from bench.servers import check, process, until

BARE, OURS, KERAS_PREDICT, KERAS_CALL = "bare ASGI", "fitserve", "FastAPI + model.predict", "FastAPI + model(x)"
LITSERVE, BENTOML, MLSERVER, RAY = "LitServe", "BentoML", "MLServer", "Ray Serve"
ENVIRONMENTS = ROOT / ".peers"


@dataclass(frozen=True)
class Peer:
    """Another server.

    Args:
        requires: what its environment has beside NumPy; nothing is this one.
        arguments: of its Python.
        path: where it predicts.
        is_v2: whether it wants the rows as a tensor of the Open Inference Protocol, and not as `{"x": rows}`.
    """

    name: str
    arguments: tuple[str, ...]
    requires: str = ""
    path: str = "/predict"
    is_v2: bool = False
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def word(self) -> str:
        """The name that `PEERS` has for it."""
        return self.name.partition(" ")[0].lower()

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""
        return ENVIRONMENTS / self.word / "bin" / "python" if self.requires else Path(sys.executable)

    def install(self) -> None:
        """Make its environment where there is none."""
        if not self.python.exists():
            folder = str(ENVIRONMENTS / self.word)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            command = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*command, self.requires, "numpy"], check=True)


def _keras(name: str, call: str) -> Peer:
    # these compute on the processor, as the others do
    settings = {"BENCH_CALL": call, "CUDA_VISIBLE_DEVICES": "-1"}
    return Peer(name, ("-m", "bench.peers.with_fastapi"), settings=settings)


PEERS = (
    _keras(KERAS_PREDICT, "predict"),
    _keras(KERAS_CALL, "call"),
    Peer(LITSERVE, ("-m", "bench.peers.with_litserve"), "litserve"),
    Peer(BENTOML, ("-m", "bentoml", "serve", "bench.peers.with_bentoml:Classifier"), "bentoml"),
    Peer(MLSERVER, ("-m", "bench.peers.with_mlserver"), "mlserver", "/v2/models/wide/infer", is_v2=True),
    Peer(RAY, ("-m", "bench.peers.with_ray"), "ray[serve]"),
)


def asked_for(words: str) -> list[Peer]:
    """Give the peers that take part: those of this environment, and those that `PEERS` names, or all.

    Raises:
        SystemExit: it names one that is not known.
    """
    optional = {peer.word: peer for peer in PEERS if peer.requires}
    asked = words.replace(",", " ").lower().split()
    if unknown := set(asked) - {*optional, "all"}:
        raise SystemExit(f"bench: expected PEERS of {', '.join(optional)} or all, got {', '.join(sorted(unknown))}")
    return [peer for peer in PEERS if not peer.requires or "all" in asked or peer.word in asked]


def absent(peers: Sequence[Peer]) -> dict[str, str]:
    """Say who takes no part."""
    return {peer.name: f"not in PEERS ({peer.word})" for peer in PEERS if peer not in peers}


@contextmanager
def serving(peer: Peer, folder: Path, weights: Path, body: bytes, deadline: float) -> Iterator[str]:
    """Run a peer until it has answered; gives the address that it predicts at."""
    peer.install()
    port = _free_port()
    url, log = f"http://127.0.0.1:{port}{peer.path}", folder / f"{peer.name.replace(' ', '-')}.log"
    settings = {"BENCH_WEIGHTS": str(weights), "BENCH_PORT": str(port), "PYTHONPATH": str(ROOT), **peer.settings}
    # BentoML reads its own variable; the parent's environment may name another Python's packages
    settings |= {"BENTOML_PORT": str(port), "BENTOML_HOST": "127.0.0.1", "BENTOML_DO_NOT_TRACK": "True"}
    settings |= {"RAY_USAGE_STATS_ENABLED": "0", "HOME": os.environ.get("HOME", str(folder))}
    with process(log, [str(peer.python), *peer.arguments], **settings) as running:

        def answers() -> bool:
            check(running, log)
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with suppress(URLError, OSError), urllib.request.urlopen(request, timeout=10) as answer:
                return bool(answer.status == 200)
            return False

        until(answers, deadline, f"an answer of {peer.name}")
        yield url


def _free_port() -> int:
    # three in a row, of which MLServer takes all; somebody else may take one meanwhile, and then the peer says so
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
