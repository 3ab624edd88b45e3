"""Bounds beside what masks really do: sampled masks, the network itself in float64, violations and looseness."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from ..game import as_data
from ..game.data import read_data
from ..graph import UnitGraph, trace
from ..records import Record
from .gap import NeuronGap, neuron_gap

__all__ = ["Validation", "measured_gaps", "validate_neurons"]


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
    """``|f_mask(x) - f(x)|`` of masks (M, n) on inputs (N, ...): float64 (M, N), the network itself in float64."""
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
    """Random masks that keep each unit with probability ``keep``, measured against T1, T2 and T5 of ``neuron_gap``."""
    if not isinstance(model, UnitGraph):
        model = trace(model, tuple(x[:1] for x in read_data(data, model).inputs))
    samples = as_data(data, model)
    gap = neuron_gap(model, data) if gap is None else gap
    masks = np.random.default_rng(seed).random((n_masks, model.n_units)) < keep
    real = measured_gaps(model, samples.inputs[0], masks)
    linear = (~masks).astype(np.float64) @ gap.coefficients.T
    quadratic = gap.quadratic(masks)
    rms = np.sqrt((real**2).mean(1))
    slack = 1e-9 * (1 + linear.max(initial=0.0))  # rounding of two float64 forward passes
    random = gap.random(keep, delta)
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


def _median(bound: np.ndarray, measured: np.ndarray) -> float:
    """Median of bound / measured; NaN where nothing moved."""
    return float(np.median(bound / measured)) if len(measured) else float("nan")
