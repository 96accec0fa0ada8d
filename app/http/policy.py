"""The scope that each operation asks of a key. Default deny: what is not listed here is for admins."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from app.records.keys import Scope

#: operations that any key may do, by the name of the route's function
_READ = (
    "list_models",
    "get_model",
    "get_version",
    "get_version_document",
    "get_alias_history",
    "get_system",
    "get_metrics",
    # TensorFlow Serving
    *("list_names", "get_signature", "get_version_status", "get_model_status"),
    # the Open Inference Protocol
    *("get_server", "get_live", "get_ready", "list_served", "get_served", "get_served_ready", "list_repository"),
    *("get_all_statistics", "get_model_statistics", "get_version_statistics", "get_configuration"),
)
_PREDICT = ("predict", "evaluate", "predict_instances", "classify_examples", "regress_examples", "infer")
_TRAIN = (
    *("upload", "list_datasets", "get_dataset", "get_rows", "patch_dataset", "delete_dataset"),
    *("train", "list_jobs", "get_job", "get_events", "cancel_job", "resume_job", "delete_job"),
    *("put_alias", "delete_alias", "rollback_alias", "get_export", "load_model", "unload_model"),
)
POLICY: dict[str, Literal["any"] | Scope] = {
    **dict.fromkeys(_READ, "any"),
    **dict.fromkeys(_PREDICT, "predict"),
    **dict.fromkeys(_TRAIN, "train"),
}


def allows(scopes: Collection[Scope], scope: Literal["any"] | Scope) -> bool:
    """Return whether a key with these scopes may do an operation that asks for a scope."""
    return scope == "any" or scope in scopes or "admin" in scopes
