"""Ask a service with KServe's client, in an environment of its own: `python ask_with_kserve.py URL MODEL ROWS`.

Prints what came back as JSON: probabilities and labels by way of asking, and what was wrong with a bad request.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig


async def ask(url: str, model: str, rows: list[list[float]]) -> dict[str, Any]:
    """Ask by both protocols, and by V2 in both ways."""
    x = np.array(rows, np.float32)
    found: dict[str, Any] = {"probabilities": {}, "labels": {}}
    v1, v2 = (InferenceRESTClient(RESTConfig(protocol=name)) for name in ("v1", "v2"))
    for is_binary in (True, False):
        given = InferInput("rows", list(x.shape), "FP32")
        given.set_data_from_numpy(x, binary_data=is_binary)
        answer = await v2.infer(url, InferRequest(model, [given], request_id="7"), model)
        assert ("7", model) == (answer.id, answer.model_name)
        by_name = {each.name: each for each in answer.outputs}
        way = "v2 in binary" if is_binary else "v2 in JSON"
        found["probabilities"][way] = by_name["probabilities"].as_numpy().tolist()
        found["labels"][way] = [str(text) for text in by_name["label"].as_numpy()]
    found["probabilities"]["v1"] = (await v1.infer(url, {"instances": x.tolist()}, model))["predictions"]
    found["is_live"] = await v2.is_server_live(url)
    found["is_ready"] = await v2.is_server_ready(url)
    found["models_ready"] = [await client.is_model_ready(url, model) for client in (v1, v2)]
    found["nobody_ready"] = await v2.is_model_ready(url, "nobody")
    found["wrong"] = []
    for client, data in ((v1, {"instances": 5}), (v2, {"inputs": []})):
        try:
            await client.infer(url, data, model)
        except httpx.HTTPStatusError as error:
            found["wrong"].append(str(error))
        await client.close()
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(ask(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))))
