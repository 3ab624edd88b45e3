"""Bounds for removed weights hold for every mask, cover what random masks do, and know their limits."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.bounds import GapBound, WeightMasks, WeightValidation, removed_norm, validate_weights
from mipprune.bounds.validate import measured_weight_gaps
from mipprune.errors import BudgetError, DataError, InfeasibleError
from mipprune.testing import NETWORKS
from mipprune.testing.cases import NetworkCase


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 4))


CASES = (NetworkCase("mlp", _mlp, (8,), (20, 12)),
         *(case for case in NETWORKS if case.name in {"cnn", "residual_net"}))


def _gaps(model: nn.Module, x: torch.Tensor, weights: dict[str, np.ndarray]) -> np.ndarray:
    """The real gap (N,) of the model's own forward pass with other weights, float64."""
    changed = copy.deepcopy(model).double()
    dense = changed(x.double())
    with torch.no_grad():
        for name, weight in weights.items():
            changed.get_parameter(name).copy_(torch.from_numpy(weight))
    return (changed(x.double()) - dense).flatten(1).norm(dim=1).detach().numpy()


def _check(case: NetworkCase, keeps: tuple[float, ...], n_masks: int) -> None:
    model, x = case.build(), case.inputs(5)
    graph = mp.trace(model, x[:1])
    for keep in keeps:
        found = validate_weights(graph, (x, torch.zeros(5)), keep=keep, delta=0.1, n_masks=n_masks, seed=1)
        print(case.name, found)
        assert found.violations == 0
        assert found.lowest_coverage >= 0.9
        for loose in (found.loose_any, found.loose_known, found.loose_magnitude, found.loose_rescaled):
            assert loose >= 1


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_no_mask_breaks_the_bounds(case: NetworkCase) -> None:
    _check(case, (0.4, 0.6, 0.8, 0.95), 250)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_few_masks_do_not_break_the_bounds(case: NetworkCase) -> None:
    _check(case, (0.8,), 10)


def test_validation_measures_the_network_itself() -> None:
    torch.manual_seed(0)
    model, x = _mlp().eval(), torch.randn(5, 8)
    found = WeightMasks(model, (x, torch.zeros(5)))
    rng = np.random.default_rng(0)
    pruned = [found.pruned({n: rng.random(w.shape) < 0.5 for n, w in found.weights.items()}) for _ in range(3)]
    real = measured_weight_gaps(found.graph, x, pruned)
    np.testing.assert_allclose(real, [_gaps(model, x, weights) for weights in pruned], rtol=1e-12)
    same = validate_weights(model, (x, torch.zeros(5)), n_masks=4, seed=3)
    again = validate_weights(model, (x, torch.zeros(5)), n_masks=4, seed=3)
    assert same == again == WeightValidation.from_dict(same.to_dict())
    assert (same.n_masks, same.n_samples) == (4, 5)


@pytest.mark.parametrize("broken", ["componentwise", "after", "rescaled"])
def test_validation_sees_a_bound_that_is_too_small(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    real = getattr(WeightMasks, broken)

    def small(self: WeightMasks, *args: object) -> GapBound:
        bound = real(self, *args)
        return dataclasses.replace(bound, values=bound.values / 1000, rms=bound.rms / 1000)

    monkeypatch.setattr(WeightMasks, broken, small)
    found = validate_weights(_mlp().eval(), (torch.randn(5, 8), torch.zeros(5)), n_masks=5)
    assert (found.coverage < 0.5) if broken == "rescaled" else (found.violations > 0)


def test_calls_and_their_records() -> None:
    torch.manual_seed(0)
    model, x = _mlp().eval(), torch.randn(5, 8)
    data = (x, torch.zeros(5))
    for bound in (mp.bounds.magnitude_pruning(model, data, keep=0.7), mp.bounds.random_pruning(model, data, keep=0.9),
                  mp.bounds.random_pruning(model, data, keep=0.9, what="weights")):
        assert mp.bounds.GapBound.from_dict(bound.to_dict()) == bound
        assert bound.rms <= bound.worst
    full = {"0.weight": np.ones((20, 8), dtype=bool)}
    assert mp.bounds.weight_gap(model, data, full).worst == 0
    gap = mp.bounds.neuron_gap(model, data)
    eps = 0.5 * float(gap.rms_coefficients.sum())
    keep = mp.bounds.keep_for(gap, eps, 0.1)
    assert gap.random(keep, 0.1).rms <= eps < gap.random(keep - 0.01, 0.1).rms
    with pytest.raises(InfeasibleError, match="eps"):
        mp.bounds.keep_for(gap, 0.0, 0.1)
    with pytest.raises(DataError, match=r"no weight 'x'"):
        mp.bounds.weight_gap(model, data, {"x": full["0.weight"]})
    with pytest.raises(BudgetError, match="keep"):
        mp.bounds.random_pruning(model, data, keep=0.0, what="weights")


@pytest.mark.parametrize("rule", ["magnitude", "random"])
def test_removed_weights_have_the_norm_of_the_limit(rule: str) -> None:
    rng = np.random.default_rng(0)
    d, q, k = 500, 0.4, 1.5
    w = rng.uniform(-k, k, (d, d)) / math.sqrt(d)
    gone = np.abs(w) < q * k / math.sqrt(d) if rule == "magnitude" else rng.random((d, d)) < q
    assert np.linalg.norm(np.where(gone, w, 0.0), 2) == pytest.approx(removed_norm(q, k, rule), rel=0.03)


@pytest.mark.parametrize("rule", ["magnitude", "random"])
def test_networks_of_the_width_meet_the_gap(rule: str) -> None:
    eps, delta, alpha, depth = 2.0, 0.1, 0.7, 2
    d = mp.bounds.width_for(eps, delta, depth=depth, exponent=alpha, rule=rule)
    assert 2 < d <= 4096
    d, q = min(d, 1024), min(d, 1024) ** -alpha
    rng = np.random.default_rng(0)
    h = g = rng.normal(size=d) / math.sqrt(d)
    for _ in range(depth):
        w = rng.uniform(-1, 1, (d, d)) / math.sqrt(d)
        gone = np.abs(w) < q / math.sqrt(d) if rule == "magnitude" else rng.random((d, d)) < q
        h, g = np.maximum(w @ h, 0), np.maximum(np.where(gone, 0, w) @ g, 0)
    assert np.linalg.norm(g - h) <= eps
    with pytest.raises(InfeasibleError):
        mp.bounds.width_for(1e-6, delta, depth=depth, exponent=alpha, rule=rule, largest=1000)
