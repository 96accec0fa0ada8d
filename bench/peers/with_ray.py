"""Ray Serve, one replica, on a Ray of its own without a dashboard."""

from __future__ import annotations

import signal
import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from bench.peers.network import PORT, Network


class Classifier:
    """The deployment's replica."""

    def __init__(self) -> None:
        self.network = Network()

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Compute."""
        return {"probabilities": self.network((await request.json())["x"])}


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    replica = serve.deployment(num_replicas=1, max_ongoing_requests=64)(Classifier)
    serve.run(replica.bind(), route_prefix="/predict")
    # Ray's own handler would leave its processes behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        signal.pause()
    finally:
        ray.shutdown()
