"""Answers of TensorFlow Serving's REST API; the members have the names of the source.

Source: TensorFlow Serving, g3doc/api_rest.md and apis/get_model_status.proto, apis/get_model_metadata.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict


class ErrorStatus(TypedDict):
    """The name of a code of google.rpc.Code, and a message unless the code is OK."""

    error_code: str
    error_message: str


class VersionStatus(TypedDict):
    """The state of a version, and why it is in that state."""

    version: str
    state: str
    status: ErrorStatus


class ModelStatus(TypedDict):
    """The states of versions, newest first; for a whole model also the two members of KServe's answer."""

    name: NotRequired[str]
    ready: NotRequired[bool]
    model_version_status: list[VersionStatus]


class Dimension(TypedDict):
    """The size of one dimension, as a text; -1 is the number of rows."""

    size: str
    name: str


class TensorShape(TypedDict):
    """The dimensions of a tensor."""

    dim: list[Dimension]
    unknown_rank: bool


class TensorInfo(TypedDict):
    """An input or an output of a signature."""

    dtype: str
    tensor_shape: TensorShape
    name: str


class Signature(TypedDict):
    """The inputs and outputs of a version, by name."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    method_name: str


class ModelSpec(TypedDict):
    """The version that a signature belongs to."""

    name: str
    signature_name: str
    version: str


class ModelMetadata(TypedDict):
    """A version's signatures."""

    model_spec: ModelSpec
    metadata: Mapping[str, Mapping[str, Mapping[str, Signature]]]
