"""Answers of the Open Inference Protocol and of its extensions; the members have the names of the sources.

Source: Open Inference Protocol, inference_rest.md; Triton, docs/protocol: extension_model_repository.md,
extension_statistics.md, extension_model_configuration.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

#: datatypes by the kind of a column, as metadata names them; a number of any datatype is read
DATATYPES = {"numeric": "FP64", "boolean": "BOOL", "categorical": "BYTES"}


class ServerMetadata(TypedDict):
    """The server: its name, its version and the extensions that it supports."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(TypedDict):
    """An input or an output; -1 in the shape is the number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(TypedDict):
    """A version's inputs and outputs, and the numbers of all versions."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(TypedDict):
    """Whether a version can be used."""

    name: str
    ready: bool


class IndexEntry(TypedDict):
    """A version in the repository, its state, and the reason of the state."""

    name: str
    version: str
    state: str
    reason: str


class RepositoryChange(TypedDict):
    """The answer to loading or unloading a model."""

    name: str
    load: NotRequired[bool]
    unload: NotRequired[bool]


class Duration(TypedDict):
    """How often something was done, and the sum of the times in nanoseconds."""

    count: int
    ns: int


class VersionStatistics(TypedDict):
    """The requests of a version; `last_inference` is in milliseconds since 1970, `inference_count` is in rows."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: Mapping[str, Duration]
    batch_stats: list[object]


class Statistics(TypedDict):
    """The requests of several versions."""

    model_stats: list[VersionStatistics]


class TensorConfiguration(TypedDict):
    """An input or an output; -1 in the dimensions is the number of rows."""

    name: str
    data_type: str
    dims: list[int]


class ModelConfiguration(TypedDict):
    """A version as Triton's configuration describes a model."""

    name: str
    platform: str
    backend: str
    version_policy: Mapping[str, object]
    max_batch_size: int
    input: list[TensorConfiguration]
    output: list[TensorConfiguration]
