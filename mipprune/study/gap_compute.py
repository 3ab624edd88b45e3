"""What the cells of :mod:`mipprune.study.gap_kind` compute."""

from __future__ import annotations

from typing import Any

from ..bounds import neuron_gap, random_pruning, validate_neurons, validate_weights
from ..game.data import read_data
from ..graph import trace
from .compute import Payloads, loaded
from .networks import StudyNetwork

__all__ = ["gap_bound"]


def gap_bound(inputs: dict[str, Any], source: StudyNetwork, payloads: Payloads) -> tuple[dict[str, Any], None]:
    """Violations, coverage, and bound / measured gap for any mask (T1, T3), a mask that is known (T2, T4) and random
    masks (T5, T6); the last bound itself, root mean square in output units.
    """
    model, data = loaded(inputs, source, payloads[0])
    samples = read_data(data.calibration, model).take(slice(0, inputs["samples"]))
    graph = trace(model, tuple(x[:1] for x in samples.inputs))
    keep, delta = inputs["keep"], inputs["delta"]
    given = {"keep": keep, "delta": delta, "n_masks": inputs["n_masks"], "seed": inputs["seed"]}
    if inputs["what"] == "neurons":
        gap = neuron_gap(graph, samples)
        found = validate_neurons(graph, samples, gap=gap, **given)
        loose = found.loose_linear, found.loose_quadratic, found.loose_random
        bound = random_pruning(graph, samples, keep=keep, delta=delta)
        violations, coverage = found.violations, found.lowest_coverage
    else:
        weights = validate_weights(graph, samples, **given)
        loose = weights.loose_any, weights.loose_known, weights.loose_rescaled
        bound = random_pruning(graph, samples, keep=keep, delta=delta, what="weights")
        violations, coverage = weights.violations, weights.lowest_coverage
    return {
        "violations": violations, "lowest_coverage": coverage, "loose_any": loose[0], "loose_known": loose[1],
        "loose_random": loose[2], "random_bound": bound.rms,
    }, None
