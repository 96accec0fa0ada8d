"""Ask a service with KServe's client, in an environment of its own: `python ask_with_kserve.py URL MODEL ROWS`.

Prints the answers as JSON: probabilities and labels for each protocol and encoding, and the errors of bad requests.
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
    """Ask by both protocols, and by V2 both in binary and in JSON."""
    x = np.array(rows, np.float32)
    answers: dict[str, Any] = {"probabilities": {}, "labels": {}}
    v1, v2 = (InferenceRESTClient(RESTConfig(protocol=name)) for name in ("v1", "v2"))
    for is_binary in (True, False):
        tensor = InferInput("rows", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x, binary_data=is_binary)
        answer = await v2.infer(url, InferRequest(model, [tensor], request_id="7"), model)
        assert ("7", model) == (answer.id, answer.model_name)
        outputs = {output.name: output for output in answer.outputs}
        protocol = "v2 in binary" if is_binary else "v2 in JSON"
        answers["probabilities"][protocol] = outputs["probabilities"].as_numpy().tolist()
        answers["labels"][protocol] = [str(text) for text in outputs["label"].as_numpy()]
    answers["probabilities"]["v1"] = (await v1.infer(url, {"instances": x.tolist()}, model))["predictions"]
    answers["is_live"] = await v2.is_server_live(url)
    answers["is_ready"] = await v2.is_server_ready(url)
    answers["models_ready"] = [await client.is_model_ready(url, model) for client in (v1, v2)]
    answers["unknown_model_ready"] = await v2.is_model_ready(url, "nobody")
    answers["errors"] = []
    for client, data in ((v1, {"instances": 5}), (v2, {"inputs": []})):
        try:
            await client.infer(url, data, model)
        except httpx.HTTPStatusError as error:
            answers["errors"].append(str(error))
        await client.close()
    return answers


if __name__ == "__main__":
    print(json.dumps(asyncio.run(ask(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))))
