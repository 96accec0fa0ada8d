"""Requests and answers of the Open Inference Protocol, written and read byte by byte as its specification says."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

LENGTH = "Inference-Header-Content-Length"
TYPES = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
TYPES |= {f"{sign}INT{8 * size}": f"<{kind}{size}" for size in (1, 2, 4, 8) for sign, kind in (("", "i"), ("U", "u"))}


@dataclass(frozen=True)
class Input:
    """One tensor: its values row after row, with None for a missing value."""

    name: str
    datatype: str
    shape: list[int]
    values: list[Any]

    def head(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": self.shape}

    def raw(self) -> bytes:
        """Return the tensor as bytes; a missing text is an empty one."""
        if self.datatype == "BYTES":
            texts = [("" if value is None else value).encode() for value in self.values]
            return b"".join(struct.pack("<I", len(text)) + text for text in texts)
        values = [np.nan if value is None else value for value in self.values]
        return np.array(values, TYPES[self.datatype]).tobytes()


def as_json(inputs: list[Input], **more: Any) -> tuple[bytes, dict[str, str]]:
    """Write a request whose tensors are JSON: its body and its headers."""
    document = {"inputs": [{**each.head(), "data": each.values} for each in inputs], **more}
    return json.dumps(document).encode(), {}


def as_bytes(inputs: list[Input], **more: Any) -> tuple[bytes, dict[str, str]]:
    """Write a request whose tensors follow the JSON as bytes, and which asks for its outputs in the same form."""
    tails = [each.raw() for each in inputs]
    heads = [
        {**each.head(), "parameters": {"binary_data_size": len(tail)}} for each, tail in zip(inputs, tails, strict=True)
    ]
    document = {"inputs": heads, "parameters": {"binary_data_output": True}, **more}
    text = json.dumps(document).encode()
    return b"".join((text, *tails)), {LENGTH: str(len(text))}


def outputs(answer: httpx.Response) -> dict[str, NDArray[Any]]:
    """Read the outputs of an answer, in JSON or in bytes, by their names."""
    assert 200 == answer.status_code, answer.text[:500]
    length = int(answer.headers.get(LENGTH, len(answer.content)))
    assert ("application/octet-stream" if LENGTH in answer.headers else "application/json") == answer.headers[
        "content-type"
    ]
    tail, found = answer.content[length:], {}
    for each in json.loads(answer.content[:length])["outputs"]:
        size = each.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = np.array(each["data"], object if each["datatype"] == "BYTES" else TYPES[each["datatype"]])
        elif each["datatype"] == "BYTES":
            values = np.array(texts(tail[:size]), object)
        else:
            values = np.frombuffer(tail[:size], TYPES[each["datatype"]])
        tail = tail[size or 0 :]
        found[each["name"]] = values.reshape(each["shape"])
    assert not tail
    return found


def texts(data: bytes) -> list[str]:
    """Read texts, each of which stands after its length."""
    found = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        found.append(data[4 : 4 + size].decode())
        data = data[4 + size :]
    return found
