"""Bounds beside what masks really do: sampled masks, the network itself in float64, violations and looseness."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import BudgetError
from ..game import as_data
from ..graph import UnitGraph, trace
from ..records import Record
from .api import random_pruning
from .gap import NeuronGap, keep_probabilities, network_and_data, neuron_gap
from .tails import probability
from .weights import Masks, WeightMasks, magnitude_masks

__all__ = ["Validation", "WeightValidation", "measured_gaps", "measured_weight_gaps", "validate_neurons",
           "validate_weights"]


@dataclasses.dataclass(frozen=True, eq=False)
class Validation(Record):
    """What sampled masks did.

    Attributes:
        n_masks, n_samples: masks, and inputs that each was measured on.
        violations: (mask, sample) pairs with a gap above T1, masks with an rms gap above T2: 0 if all is well.
        coverage: share of (mask, sample) pairs within T5's bounds; ``lowest_coverage`` that of the worst sample.
        loose_linear, loose_quadratic, loose_random: median of bound / measured for T1 and T2; T5's bound over the
            (1 - delta) quantile of the gaps (median over samples).
    """

    n_masks: int
    n_samples: int
    delta: float
    violations: int
    coverage: float
    lowest_coverage: float
    loose_linear: float
    loose_quadratic: float
    loose_random: float


@torch.no_grad()
def measured_gaps(graph: UnitGraph, inputs: torch.Tensor, masks: np.ndarray, chunk: int = 1 << 14) -> np.ndarray:
    """``|f_mask(x) - f(x)|`` of masks (M, n) on inputs (N, ...): float64 (M, N), the network of ``graph`` in float64.

    M x N forward passes, ``chunk`` samples at a time.
    """
    model = copy.deepcopy(graph.model).double()
    x = inputs.double()
    double = trace(model, x[:1])
    dense = model(x).flatten(1)
    out = np.empty((len(masks), len(x)))
    step = max(1, chunk // len(x))
    for start in range(0, len(masks), step):
        gates = torch.from_numpy(masks[start : start + step].astype(np.float64))
        batch = x.repeat(len(gates), *[1] * (x.ndim - 1))
        found = double.program.run((batch,), gates.repeat_interleave(len(x), 0)).flatten(1)
        out[start : start + step] = (found.reshape(len(gates), len(x), -1) - dense).norm(dim=2).numpy()
    return out


def validate_neurons(
    model: nn.Module | UnitGraph, data: Any, *, keep: float = 0.8, delta: float = 0.05, n_masks: int = 1000,
    seed: int = 0, gap: NeuronGap | None = None,
) -> Validation:
    """Random masks that keep each unit with probability ``keep``, measured against T1, T2 and T5 of ``neuron_gap``.

    Args:
        model, data: as in :func:`random_pruning`; N samples.
        keep: from 0 to 1; delta: of T5.
        n_masks, seed: of the masks; at least 1, ``n_masks`` times N forward passes in float64.
        gap: what :func:`~mipprune.bounds.neuron_gap` found before, if it did.

    Raises:
        BudgetError: a keep or delta out of range, no mask.
    """
    _check_masks(n_masks)
    model, _, _ = network_and_data(model, data)
    samples = as_data(data, model)
    keep_probabilities(keep, model.n_units)
    gap = neuron_gap(model, data) if gap is None else gap
    masks = np.random.default_rng(seed).random((n_masks, model.n_units)) < keep
    real = measured_gaps(model, samples.inputs[0], masks)
    linear = (~masks).astype(np.float64) @ gap.coefficients.T
    quadratic = gap.quadratic(masks)
    rms = np.sqrt((real**2).mean(1))
    slack = 1e-9 * (1 + linear.max(initial=0.0))  # rounding of two float64 forward passes
    random = random_pruning(model, data, keep=keep, delta=delta)
    within = real <= random.values
    some = rms > slack
    usual = np.quantile(real, 1 - delta, axis=0)
    return Validation(
        n_masks=n_masks, n_samples=len(samples), delta=delta,
        violations=int((real > linear + slack).sum() + (rms > quadratic + slack).sum()),
        coverage=float(within.mean()), lowest_coverage=float(within.mean(0).min()),
        loose_linear=_median(linear[real > slack], real[real > slack]),
        loose_quadratic=_median(quadratic[some], rms[some]),
        loose_random=_median(random.values[usual > slack], usual[usual > slack]),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class WeightValidation(Record):
    """What removed weights did, beside T3, T4 and T6.

    Attributes:
        n_masks, n_samples: random masks of each of the two kinds, and inputs that each was measured on.
        keep: share of the weights that stay; delta: of T6.
        violations: gaps (per sample, and root mean square per mask) above T3 or T4: 0 if all is well.
        coverage: share of (mask, sample) pairs within T6's bounds; ``lowest_coverage`` that of the worst sample.
        loose_any, loose_known: median of bound / measured for T3, and for T4 on the same random masks.
        loose_magnitude: the same for T4 on the mask by magnitude (per layer).
        loose_rescaled: T6's bound over the (1 - delta) quantile of the gaps (median over samples).
    """

    n_masks: int
    n_samples: int
    keep: float
    delta: float
    violations: int
    coverage: float
    lowest_coverage: float
    loose_any: float
    loose_known: float
    loose_magnitude: float
    loose_rescaled: float


@torch.no_grad()
def measured_weight_gaps(
    graph: UnitGraph, inputs: torch.Tensor, weights: Iterable[Mapping[str, np.ndarray]]
) -> np.ndarray:
    """``|f_W^(x) - f(x)|`` of networks with other weights on inputs (N, ...): float64 (number of networks, N)."""
    model = copy.deepcopy(graph.model).double()
    x = inputs.double()
    dense = model(x).flatten(1)
    out = []
    for each in weights:
        for name, weight in each.items():
            model.get_parameter(name).copy_(torch.from_numpy(weight))
        out.append((model(x).flatten(1) - dense).norm(dim=1).numpy())
    return np.array(out).reshape(len(out), len(x))


def validate_weights(
    model: nn.Module | UnitGraph, data: Any, *, keep: float = 0.8, delta: float = 0.05, n_masks: int = 1000,
    seed: int = 0,
) -> WeightValidation:
    """Random weight masks that keep each weight with probability ``keep``, measured on the network in float64: as they
    are against T3 and T4, divided by ``keep`` (new masks) against T6; and the mask by magnitude against T3 and T4.

    ``n_masks`` times the norms of the pruned layers, O(n^3) each, for T4.

    Args:
        model, data, keep, delta, n_masks, seed: as in :func:`validate_neurons`.

    Raises:
        BudgetError: a keep or delta out of range, no mask.
    """
    _check_masks(n_masks)
    probability("keep", keep, "keep")
    probability("delta", delta)
    found = WeightMasks(model, data)
    inputs = as_data(data, found.graph).inputs[0]
    rescaled = found.rescaled(keep, delta)
    rng = np.random.default_rng(seed)

    def draw() -> Masks:
        return {name: rng.random(weight.shape) < keep for name, weight in found.weights.items()}

    masks = [magnitude_masks(found.weights, keep), *(draw() for _ in range(n_masks))]
    pruned = [found.pruned(mask) for mask in masks]
    real = measured_weight_gaps(found.graph, inputs, pruned)
    bounds = [[found.componentwise(mask) for mask in masks], [found.after(weights) for weights in pruned]]
    values = np.array([[bound.values for bound in each] for each in bounds])
    slack = 1e-9 * (1 + values.max(initial=0.0))  # rounding of two float64 forward passes
    rms = np.array([[bound.rms for bound in each] for each in bounds])
    above = int((real > values + slack).sum() + (np.sqrt((real**2).mean(1)) > rms + slack).sum())
    scaled = ({name: weight / keep for name, weight in found.pruned(draw()).items()} for _ in range(n_masks))
    drawn = measured_weight_gaps(found.graph, inputs, scaled)
    within = drawn <= rescaled.values + slack
    usual = np.quantile(drawn, 1 - delta, axis=0)
    some, some_magnitude = real[1:] > slack, real[0] > slack
    return WeightValidation(
        n_masks=n_masks, n_samples=len(inputs), keep=keep, delta=delta, violations=above,
        coverage=float(within.mean()), lowest_coverage=float(within.mean(0).min()),
        loose_any=_median(values[0, 1:][some], real[1:][some]),
        loose_known=_median(values[1, 1:][some], real[1:][some]),
        loose_magnitude=_median(values[1, 0][some_magnitude], real[0][some_magnitude]),
        loose_rescaled=_median(rescaled.values[usual > slack], usual[usual > slack]),
    )


def _check_masks(n_masks: int) -> None:
    if not isinstance(n_masks, int) or n_masks < 1:
        raise BudgetError(f"n_masks: expected a whole number of at least 1, got {n_masks!r}")


def _median(bound: np.ndarray, measured: np.ndarray) -> float:
    """Median of bound / measured; NaN where nothing moved."""
    return float(np.median(bound / measured)) if len(measured) else float("nan")
