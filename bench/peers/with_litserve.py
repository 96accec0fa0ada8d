"""LitServe, one worker, no batching."""

from typing import Any

import litserve as ls
from fastapi import Request

from bench.peers.network import PORT, Network


class Classifier(ls.LitAPI):
    """The four verbs."""

    def setup(self, device: str) -> None:
        """Load."""
        self.network = Network()

    def decode_request(self, request: Request) -> Any:
        """Give the rows; what comes is the JSON of a `Request`."""
        return request["x"]

    def predict(self, rows: Any) -> Any:
        """Compute."""
        return self.network(rows)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Give the answer."""
        return {"probabilities": output}


if __name__ == "__main__":
    ls.LitServer(Classifier(), accelerator="cpu").run(port=PORT, host="127.0.0.1", generate_client_file=False)
