"""Media types of request and response bodies, as headers spell them; each is written nowhere else in the service."""

from __future__ import annotations

JSON = "application/json"
PROBLEM = "application/problem+json"
CSV = "text/csv"
TSV = "text/tab-separated-values"
NDJSON = "application/x-ndjson"
NPZ = "application/x-npz"
NPY = "application/x-npy"
PARQUET = "application/vnd.apache.parquet"
ARROW_STREAM = "application/vnd.apache.arrow.stream"
ARROW_FILE = "application/vnd.apache.arrow.file"
#: little-endian float32, row after row; or, in the Open Inference Protocol, JSON with tensors behind it
BINARY = "application/octet-stream"
MULTIPART = "multipart/form-data"
EVENT_STREAM = "text/event-stream"
#: header of the Open Inference Protocol: the length of the JSON before tensors in bytes
JSON_LENGTH = "Inference-Header-Content-Length"
