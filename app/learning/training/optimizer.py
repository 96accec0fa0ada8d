"""The optimizer that a specification asks for: SGD with a learning rate that follows a schedule."""

from __future__ import annotations

from typing import Any

import keras

from app.learning.spec import TrainSpec


def make_optimizer(spec: TrainSpec, rate: float, steps: int) -> keras.optimizers.SGD:
    """Make the optimizer of a resolved specification.

    Args:
        rate: the learning rate that the schedule starts from.
        steps: the number of steps of an epoch.
    """
    return keras.optimizers.SGD(
        _schedule(spec, rate, steps * int(spec.fit.epochs)),
        momentum=float(spec.optimizer.momentum or 0),
        nesterov=spec.optimizer.nesterov,
        weight_decay=spec.optimizer.weight_decay or None,
        global_clipnorm=spec.optimizer.clip_norm,
    )


def _schedule(spec: TrainSpec, rate: float, steps: int) -> Any:
    """Return the learning rate by the step, of `steps` in all: a number, or a schedule of Keras."""
    schedules = keras.optimizers.schedules
    if spec.optimizer.schedule == "constant":
        return rate
    if spec.optimizer.schedule == "exponential":
        # a hundredth of the rate at the end
        return schedules.ExponentialDecay(rate, steps, 0.01)
    if spec.optimizer.schedule == "step":
        # a tenth after one half and again after three quarters: He et al. 2016, arXiv:1512.03385, section 4.2
        boundaries = [max(steps // 2, 1), max(steps * 3 // 4, 2)]
        return schedules.PiecewiseConstantDecay(boundaries, [rate, rate / 10, rate / 100])
    # the specification of a job of an earlier release has no warm-up
    warmup = round(spec.optimizer.warmup * steps) if isinstance(spec.optimizer.warmup, float) else 0
    if not warmup:
        return schedules.CosineDecay(rate, steps)
    return schedules.CosineDecay(0.0, steps - warmup, warmup_target=rate, warmup_steps=warmup)
