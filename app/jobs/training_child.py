"""The training process's own side: imports Keras, sends `Ready`, reads one request, sends the run's events, and exits.

At SIGTERM it writes a checkpoint and sends `Interrupted`. How a job is carried out is in `train_job`.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Callable

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# one job for one core: more threads gain nothing at these sizes, and change the last bits of the weights
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
# PyTorch reads the first, JAX the second
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")

import numpy as np
from safetensors import SafetensorError

from app.errors import FitserveError, StorageFull, is_disk_full
from app.jobs.messages import MESSAGES, REQUESTS, Failed, Interrupted, Outcome, Ready, TrainingMessage, TrainRequest
from app.jobs.train_job import train
from app.learning.network import keras_backend
from app.learning.network.architecture import Architecture
from app.learning.network.onnx_network import OnnxRuntime
from app.learning.network.parity import check_parity
from app.learning.spec import TrainSpec
from app.learning.training import fit, task
from app.learning.training.events import Emit
from app.learning.training.examples import Examples
from app.system.json_lines import ParentProcess

#: added to the process's priority, so that requests come before training
NICENESS = 10


def rehearse() -> None:
    """Fit a small network, so that the first job finds everything imported and set up: half a second of its time."""
    spec = TrainSpec.model_validate(
        {
            "network": {"layers": [{"units": 1}]},
            "optimizer": {"learning_rate": 0.1, "momentum": 0.9, "schedule": "cosine", "warmup": 0.1},
            "fit": {"epochs": 2, "batch_size": 2, "early_stopping": {}},
        }
    )
    examples = Examples(np.zeros((3, 1), np.float32), np.array([0, 1, 0], np.int32))
    architecture = Architecture.from_spec(spec, 1, 2)
    fitted = fit.fit(task.Task(architecture, spec, examples, examples, emit=lambda _event: None))
    check_parity(architecture, fitted.weights, OnnxRuntime(architecture, fitted.weights), examples.x)


def carry_out(request: TrainRequest, emit: Emit, is_stopping: Callable[[], bool]) -> Outcome:
    """Carry out one job as `train` does, and return how it ended; a fault of the service itself is raised."""
    lack_of_room: tuple[type[Exception], ...] = (OSError, SafetensorError, *keras_backend.operation_errors())
    try:
        return train(request, emit, is_stopping)
    except task.Interrupted:
        return Interrupted()
    except task.Diverged as error:
        return Failed("loss_not_finite", str(error))
    except task.OutOfTime as error:
        return Failed("timeout", str(error))
    except FitserveError as error:
        param = ".".join(str(part) for part in error.faults[0].loc) if error.faults else None
        return Failed("invalid_data", error.message, param)
    except lack_of_room as error:
        if keras_backend.is_out_of_memory(error):
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            message = f"The job ran out of memory, of the machine or of its device; it had {used} MB of the machine's."
            return Failed("out_of_memory", message)
        if is_disk_full(error):
            return Failed(StorageFull.code, "The store's disk is full; nothing was stored.")
        raise


def main() -> None:
    """Be the training process, by way of `app.system.child_process`."""
    os.nice(NICENESS)
    worker = ParentProcess[TrainRequest, TrainingMessage](REQUESTS, MESSAGES)
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stops.append(number))
    worker.send(Ready())
    # a job that is there already does not wait
    if not worker.has_request:
        rehearse()
        # objects that are there now stay to the end, and each search of them for garbage takes 0.1 s of the job's time
        gc.collect()
        gc.freeze()
    request = worker.read()
    if request is not None:
        worker.send(carry_out(request, worker.send, lambda: bool(stops)))


if __name__ == "__main__":
    main()
