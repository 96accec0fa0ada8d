"""Bodies of the routes of training and of jobs."""

from __future__ import annotations

from pydantic.config import JsonDict

from app.api.examples.media import RequestBody
from app.http.media_types import JSON

TRAIN: RequestBody = {
    "required": True,
    "content": {
        JSON: {
            "schema": {
                "allOf": [
                    {"$ref": "#/components/schemas/TrainSpec"},
                    {
                        "type": "object",
                        "properties": {
                            "dataset": {"type": "string", "description": "Id of a data set."},
                            "data": {"type": "object", "description": "Or the data itself, in a JSON form."},
                        },
                    },
                ]
            },
            "examples": {
                "automatic": {
                    "summary": "Inline data, everything automatic",
                    "value": {
                        "data": {
                            "columns": {
                                "length": [181, 186, 195, 217, 215, 222, 193, 210, 190, 219],
                                "weight": [3750, 3800, 3250, 5200, 5700, 5400, 3450, 4500, 3650, 5850],
                                "species": [*("Adelie",) * 3, *("Gentoo",) * 3, *("Adelie", "Gentoo") * 2],
                            }
                        },
                        "target": "species",
                    },
                },
                "tutorial": {
                    "summary": "The tutorial's network on a matrix, nothing in between",
                    "value": {
                        "data": {"x": [[0.0, 0.1], [1.0, 0.9], [0.1, 0.0], [0.9, 1.0]], "y": [0, 1, 0, 1]},
                        "features": {"scaling": "none", "encoding": "plain"},
                        "validation": None,
                        "network": {"layers": [{"units": 64, "activation": "relu"}]},
                        "optimizer": {"learning_rate": 0.01, "momentum": 0.0},
                        "fit": {"epochs": 10, "batch_size": 32},
                    },
                },
            },
        }
    },
}
JOB: JsonDict = {
    "id": "job_0193a5c2f1b07d2c9f1e3a5b7c9d",
    "kind": "train",
    "model": "penguins",
    "status": "running",
    "terminal": False,
    "queue_position": None,
    "attempt": 1,
    "device": "cpu",
    "loop": "xla",
    "spec": {"target": "species", "fit": {"epochs": 100, "batch_size": 32}},
    "dataset": "ds_0193a5c2f1b07d2c9f1e3a5b7c9d",
    "progress": {"epoch": 20, "epochs": 100, "step": 180, "steps": 900, "fraction": 0.2, "eta_seconds": 4.1},
    "metrics": {"loss": 0.31, "accuracy": 0.94, "val_loss": 0.33, "val_accuracy": 0.93},
    "version": None,
    "error": None,
    "created_at": "2026-11-24T09:30:00.000Z",
    "started_at": "2026-11-24T09:30:01.250Z",
    "finished_at": None,
}
