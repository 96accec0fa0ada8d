"""A run that starts from a version's weights: its specification takes over the version's target, features and layers."""

from __future__ import annotations

from collections.abc import Sequence

from app.errors import Invalid
from app.learning.spec import Features, TrainSpec


def adopt(spec: TrainSpec, ref: str, inputs: Sequence[str], origin: TrainSpec) -> TrainSpec:
    """Take over what a version has settled.

    Args:
        ref: the version's reference, as the job is to show it.
        inputs: the version's input columns.
        origin: the version's resolved specification.

    Raises:
        Invalid: the specification asks for another target, other features or other layers than the version has.
    """
    if spec.target not in (None, origin.target):
        raise Invalid.at(("target",), f"Expected the target {origin.target!r} of {ref}, got {spec.target!r}.")
    features = origin.features.model_copy(update={"include": list(inputs), "exclude": []})
    for name in Features.model_fields:
        accepted = [getattr(each, name) for each in (Features(), origin.features, features)]
        if getattr(spec.features, name) not in accepted:
            raise Invalid.at(("features", name), f"Expected the features of {ref}, or none: it brings its own.")
    layers = [] if spec.network.layers is None else spec.network.layers
    same_layers = layers in ("auto", origin.network.layers)
    if not same_layers or (spec.network.batch_norm and not origin.network.batch_norm):
        raise Invalid.at(("network",), f"Expected the layers of {ref}, or none: it brings its own.")
    update = {"target": origin.target, "features": features, "network": origin.network, "start_from": ref}
    return spec.model_copy(update=update)
