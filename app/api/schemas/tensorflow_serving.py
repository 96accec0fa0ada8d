"""Answers of TensorFlow Serving's REST API; each class names its source's words.

Source: TensorFlow Serving, g3doc/api_rest.md and apis/get_model_status.proto, apis/get_model_metadata.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict


class ErrorStatus(TypedDict):
    """A code of google.rpc.Code by name, and words where it is no success."""

    error_code: str
    error_message: str


class VersionStatus(TypedDict):
    """The state of a version, and why it is in that state."""

    version: str
    state: str
    status: ErrorStatus


class ModelStatus(TypedDict):
    """The states of versions, newest first; with KServe's two members where a whole model was asked for."""

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
    """What a version takes and gives back, by name."""

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
