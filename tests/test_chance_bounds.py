"""The chance constraint: least expected cost, probabilities that keep their word, a mask that is checked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mipprune as mp
from mipprune.bounds import ChanceChoice, NeuronGap, chance_constrained, measured_gaps, neuron_gap
from mipprune.errors import BudgetError, InfeasibleError
from mipprune.surrogates import WorstRow


def _gap(rows: np.ndarray) -> NeuronGap:
    return NeuronGap(rows, (), np.zeros(0), {"a": (0, rows.shape[1])})


def _knapsack(c: np.ndarray, costs: np.ndarray, room: float) -> float:
    """Reference for one row: the fractional knapsack, dearest per unit of gap first."""
    left = float(costs.sum())
    for i in np.argsort(-costs / c):
        share = min(1.0, room / c[i])
        left, room = left - share * costs[i], room - share * c[i]
    return left


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 30), delta=st.sampled_from([0.3, 0.05]), extra=st.floats(1e-9, 0.8))
def test_one_row_is_the_fractional_knapsack(seed: int, n: int, delta: float, extra: float) -> None:
    rng = np.random.default_rng(seed)
    c, costs = rng.exponential(size=n) + 0.01, rng.exponential(size=n) + 0.01
    tail = float(np.linalg.norm(c)) * math.sqrt(math.log(1 / delta) / 2)
    gap, eps = _gap(c[None]), tail + extra * float(c.sum())
    found = chance_constrained(gap, eps, delta, costs=costs, seed=seed)
    assert found.expected == pytest.approx(_knapsack(c, costs, eps - tail), rel=1e-6, abs=1e-9)
    assert found.bound <= eps * (1 + 1e-12)
    assert gap.random(found.keep, delta, "hoeffding").rms == pytest.approx(found.bound, rel=1e-9)
    assert c @ ~found.kept == pytest.approx(found.value)
    assert found.value <= eps
    assert found.cost == pytest.approx(float(costs @ found.kept))
    mask = mp.solve(mp.Problem.minimize_units(WorstRow(c[None]), eps), solver="scip", time_limit=20)
    plain = chance_constrained(gap, eps, delta, seed=seed)
    assert mask.kept.sum() <= plain.kept.sum()  # as its documentation says


def test_drawn_masks_keep_the_network_within_eps() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)).eval(), torch.randn(20, 6)
    graph = mp.trace(model, x[:1])
    gap = neuron_gap(graph, (x, torch.zeros(20)))
    for over in ("rms", "worst", "samples"):
        rows = {"rms": gap.rms_coefficients, "worst": gap.worst_coefficients, "samples": gap.coefficients}[over]
        eps = 0.6 * float(rows.sum(-1).max())
        found = chance_constrained(gap, eps, 0.1, over=over, seed=1)
        assert 0 < found.kept.sum() < 40
        assert found.met >= 0.9 * found.drawn if over != "samples" else found.met > 0
        masks = np.random.default_rng(2).random((500, 40)) < found.keep
        real = measured_gaps(graph, x, masks)
        size = np.sqrt((real**2).mean(1, keepdims=True)) if over == "rms" else real
        assert ((size <= eps).mean(0) >= 0.9).all()
        assert gap.deterministic(found.kept).rms <= eps
        if over != "rms":
            assert gap.deterministic(found.kept).worst <= eps
            assert measured_gaps(graph, x, found.kept[None]).max() <= eps
        again = chance_constrained(gap, eps, 0.1, over=over, seed=1)
        assert again == found == ChanceChoice.from_dict(found.to_dict())
    each = chance_constrained(gap, eps, 0.1, over="samples", seed=1).expected
    assert each <= chance_constrained(gap, eps, 0.1, over="worst", seed=1).expected + 1e-9  # one row stands for all


def test_a_mask_that_breaks_eps_is_never_returned() -> None:
    # many rows with fractions and a weak bound: single draws often miss one of them
    rows = np.random.default_rng(0).exponential(size=(30, 12))
    eps = 0.3 * float(rows.sum(1).max())
    found = chance_constrained(_gap(rows), eps, 0.9, over="samples", draws=500)
    assert 0 < found.met < found.drawn
    assert (rows @ ~found.kept).max() <= eps
    drawn = np.array([np.random.default_rng(seed).random(12) < 1 - found.keep for seed in range(20)])
    misses = int((drawn @ rows.T > eps).any(1).argmax())
    assert (rows @ drawn[misses]).max() > eps
    with pytest.raises(InfeasibleError, match="none of 1 drawn") as caught:
        chance_constrained(_gap(rows), eps, 0.9, over="samples", draws=1, seed=misses)
    assert caught.value.nearest == pytest.approx((rows @ drawn[misses]).max())


def test_what_cannot_be_met_is_refused() -> None:
    gap = _gap(np.ones((1, 4)))
    with pytest.raises(InfeasibleError, match="tail alone") as caught:
        chance_constrained(gap, 0.5, 0.05)
    assert caught.value.nearest == pytest.approx(2 * math.sqrt(math.log(20) / 2))
    assert chance_constrained(gap, caught.value.nearest, 0.05).kept.all()
    with pytest.raises(BudgetError, match="delta"):
        chance_constrained(gap, 3.0, 1.0)
    with pytest.raises(BudgetError, match="eps"):
        chance_constrained(gap, math.nan)
    with pytest.raises(BudgetError, match="over"):
        chance_constrained(gap, 3.0, over="mean")
    with pytest.raises(BudgetError, match="costs"):
        chance_constrained(gap, 3.0, costs=-np.ones(4))
    with pytest.raises(BudgetError, match="draws"):
        chance_constrained(gap, 3.0, draws=0)
