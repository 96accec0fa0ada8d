"""Bodies of the routes of models."""

from __future__ import annotations

from pydantic.config import JsonDict

MODEL: JsonDict = {
    "name": "penguins",
    "default_version": 1,
    "latest_version": 1,
    "versions": [
        {
            "version": 1,
            "job": "job_0193a5c2f1b07d2c9f1e3a5b7c9d",
            "metrics": {"train": {"loss": 0.02, "accuracy": 0.99}, "validation": {"loss": 0.04, "accuracy": 0.99}},
            "parameters": 771,
            "created_at": "2026-11-24T09:30:09.002Z",
        }
    ],
    "aliases": {"default": 1, "champion": 1},
    "created_at": "2026-11-24T09:30:09.002Z",
}
