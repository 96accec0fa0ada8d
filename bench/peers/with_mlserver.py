"""MLServer, no parallel workers: the model is computed in the serving process."""

from __future__ import annotations

import asyncio

import numpy as np
from mlserver import MLModel, ModelSettings, Settings
from mlserver import server as mlserver
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse

from bench.peers.network import PORT, Network


class Classifier(MLModel):
    """The model."""

    async def load(self) -> bool:
        """Load."""
        self.network = Network()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Compute."""
        found = np.asarray(self.network(NumpyCodec.decode_input(payload.inputs[0])), np.float32)
        output = NumpyCodec.encode_output("probabilities", found)
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main() -> None:
    """Serve until stopped."""
    settings = Settings(
        host="127.0.0.1", http_port=PORT, grpc_port=PORT + 1, metrics_port=PORT + 2, parallel_workers=0, debug=False
    )
    server = mlserver.MLServer(settings)
    model = ModelSettings(name="wide", implementation=Classifier, parameters=ModelParameters(version="1"))
    await server.start([model])


if __name__ == "__main__":
    asyncio.run(main())
