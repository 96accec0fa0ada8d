"""What one writes first: FastAPI, pydantic and a Keras model, called as `BENCH_CALL` says: `predict` or `model(x)`."""

from __future__ import annotations

import os

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from bench.peers.network import PORT, Network


class Rows(BaseModel):
    """The body."""

    x: list[list[float]]


def main() -> None:
    """Serve until stopped."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    weights = Network().arrays
    hidden = keras.layers.Dense(weights[1].size, activation="relu")
    last = keras.layers.Dense(weights[3].size, activation="softmax")
    model = keras.Sequential([keras.Input((len(weights[0]),)), hidden, last])
    model.set_weights(weights)
    app = FastAPI()

    if os.environ["BENCH_CALL"] == "predict":

        @app.post("/predict")
        def predict(rows: Rows) -> dict[str, list[list[float]]]:
            return {"probabilities": model.predict(np.asarray(rows.x, np.float32), verbose=0).tolist()}

    else:

        @app.post("/predict")
        def call(rows: Rows) -> dict[str, list[list[float]]]:
            return {"probabilities": np.asarray(model(np.asarray(rows.x, np.float32))).tolist()}

    uvicorn.run(app, port=PORT, access_log=False)


if __name__ == "__main__":
    main()
