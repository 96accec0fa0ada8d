"""BentoML, one worker; a request's one row, or its rows, are a batch of their own."""

from typing import Any

import bentoml

from bench.peers.network import Network


@bentoml.service(workers=1)
class Classifier:
    """The service."""

    def __init__(self) -> None:
        self.network = Network()

    @bentoml.api
    def predict(self, x: list[list[float]]) -> dict[str, Any]:
        """Compute."""
        return {"probabilities": self.network(x)}
