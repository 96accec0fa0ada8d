"""The values that the service chooses where a specification says "auto": network, learning rate, batch size, epochs.

Each rule is a function of the table's size alone, and each constant has its source.
"""

from __future__ import annotations

import math
from typing import Any

from app.errors import Invalid
from app.learning.spec import EarlyStopping, Fit, Layer, Network, Optimizer

#: a hundredth of the rows as a power of two: small batches generalise better (Masters and Luschi 2018,
#: arXiv:1804.07612), and larger ones are less work a row
SMALLEST_BATCH, LARGEST_BATCH = 16, 256
#: the learning rate for a batch of 256, and in proportion for another: the linear scaling rule of Goyal et al. 2017,
#: arXiv:1706.02677, section 2.1. Below a batch of 32 the rate stays: smaller ones would need more than 100 epochs for
#: small tables
RATE, RATE_BATCH, SMALLEST_RATE_BATCH = 0.1, 256, 32
#: Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning"
MOMENTUM = 0.9
#: a gradual warm-up over 5 % of the steps: 5 of 90 epochs in Goyal et al. 2017, section 2.2; then a cosine to zero
#: (Loshchilov and Hutter 2017, arXiv:1608.03983)
WARMUP = 0.05
#: at least 20,000 steps in at most 100 epochs, which early stopping may cut (Prechelt 1998, "Early stopping, but
#: when?"); a schedule that ends with its budget loses little to a longer one (Li et al. 2020, arXiv:1905.04753)
STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 20_000, 10, 100
#: rows from which on the network is two layers and wider
WIDER_ROWS = 2000


def settle_network(network: Network, rows: int) -> Network:
    """Settle the hidden layers.

    Args:
        rows: labelled rows of the table.
    """
    layers = [] if network.layers is None else network.layers
    if layers == "auto":
        layers = [Layer(units=64)] if rows < WIDER_ROWS else [Layer(units=128), Layer(units=64)]
    return network.model_copy(update={"layers": layers})


def settle_optimizer(optimizer: Optimizer, batch: int) -> Optimizer:
    """Settle the learning rate and its schedule; beside an explicit learning rate "auto" is Keras's own default.

    Raises:
        Invalid: the values contradict each other; says which.
    """
    is_auto = optimizer.learning_rate == "auto"
    schedule = auto_or(optimizer.schedule, "cosine" if is_auto else "constant") or "constant"
    warms_up = is_auto and optimizer.schedule == "auto"
    rate = RATE * max(batch, SMALLEST_RATE_BATCH) / RATE_BATCH if is_auto else optimizer.learning_rate
    settled = optimizer.model_copy(
        update={
            "learning_rate": rate,
            "momentum": auto_or(optimizer.momentum, MOMENTUM if is_auto else 0.0) or 0.0,
            "schedule": schedule,
            "warmup": auto_or(optimizer.warmup, WARMUP if warms_up else 0.0) or 0.0,
        }
    )
    if settled.nesterov and not settled.momentum:
        raise Invalid.at(("optimizer", "nesterov"), "Nesterov needs a momentum above 0.")
    if settled.warmup and schedule != "cosine":
        raise Invalid.at(("optimizer", "warmup"), f"Expected warm-up ahead of a cosine schedule, got {schedule}.")
    return settled


def settle_fit(fit: Fit, rows: int, training_rows: int, most_seconds: float, *, is_validated: bool) -> Fit:
    """Settle batch size, epochs, early stopping and the time limit.

    Args:
        rows: labelled rows of the table, of which `training_rows` are trained on.
        most_seconds: the longest time that a job may ask for.

    Raises:
        Invalid: the time is longer, or early stopping has no validation rows.
    """
    seconds = fit.max_seconds or most_seconds
    if seconds > most_seconds:
        raise Invalid.at(("fit", "max_seconds"), f"Expected at most {most_seconds} seconds, got {seconds}.")
    suited = min(LARGEST_BATCH, max(SMALLEST_BATCH, 2 ** round(math.log2(max(rows / 100, 1)))))
    batch = suited if fit.batch_size == "auto" else fit.batch_size
    steps = math.ceil(max(training_rows, 1) / batch)
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(STEPS / steps)))
    stops = fit.epochs == "auto" and is_validated
    settled = fit.model_copy(
        update={
            "epochs": auto_or(fit.epochs, epochs),
            "batch_size": batch,
            "early_stopping": auto_or(fit.early_stopping, EarlyStopping() if stops else None),
            "max_seconds": float(seconds),
        }
    )
    if settled.early_stopping is not None and not is_validated:
        raise Invalid.at(("fit", "early_stopping"), "Early stopping needs validation, got null.")
    return settled


def auto_or(value: Any, chosen: Any) -> Any:
    """Return the value that was chosen in place of "auto", or the caller's own."""
    return chosen if value == "auto" else value
