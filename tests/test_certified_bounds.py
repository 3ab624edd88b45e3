"""Certified predictions: the program's mask is the cheapest, and what it certifies doesn't change."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mipprune as mp
from mipprune.bounds import CertifiedChoice, NeuronGap, certified_predictions, neuron_gap
from mipprune.errors import BudgetError, InfeasibleError
from mipprune.surrogates import WorstRow


def _gap(rows: np.ndarray, margins: np.ndarray) -> NeuronGap:
    return NeuronGap(rows, (), margins, {"a": (0, rows.shape[1])})


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), violations=st.integers(0, 6))
def test_it_is_the_cheapest_of_all_masks(seed: int, violations: int) -> None:
    rng = np.random.default_rng(seed)
    gap = _gap(rng.exponential(size=(6, 7)), 8 * rng.random(6) + 0.1)
    costs = rng.random(7)
    found = certified_predictions(gap, violations, costs=costs)
    best = math.inf
    for bits in itertools.product((False, True), repeat=7):
        kept = np.array(bits)
        sure = gap.deterministic(kept).prediction_kept(gap.margins).sum()
        if sure >= 6 - violations:
            best = min(best, float(costs @ kept))
    assert found.cost == pytest.approx(best, abs=1e-9)
    assert found.proved
    assert found.bound <= found.cost
    assert found.cost == pytest.approx(float(costs @ found.kept))
    assert found.certified.sum() >= 6 - violations
    assert found == CertifiedChoice.from_dict(found.to_dict())


def test_certified_samples_keep_their_class() -> None:
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4)).eval(), 4 * torch.randn(30, 8)
    graph = mp.trace(model, x[:1])
    gap = neuron_gap(graph, (x, torch.zeros(30)))
    costs = []
    for violations in (0, 3, 10, 30):
        found = certified_predictions(gap, violations)
        pruned = graph.program.run((x,), torch.tensor(found.kept).float())
        same = (pruned.argmax(1) == model(x).argmax(1)).numpy()
        assert same[found.certified].all()
        assert found.certified.sum() >= 30 - violations
        costs.append(found.cost)
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[2] > costs[3] == 0
    rows = WorstRow(math.sqrt(2) * gap.coefficients / gap.margins[:, None])
    alone = mp.solve(mp.Problem.minimize_units(rows, 1 - 1e-6), solver="scip", time_limit=20)
    assert alone.kept.sum() == costs[0]


def test_no_time_leaves_a_mask_that_holds() -> None:
    rng = np.random.default_rng(0)
    gap = _gap(rng.exponential(size=(60, 80)), 20 * rng.random(60) + 0.1)
    found = certified_predictions(gap, 6, time_limit=1e-4)
    assert found.certified.sum() >= 54
    assert found.bound <= found.cost


def test_what_cannot_be_met_is_refused() -> None:
    gap = _gap(np.ones((3, 4)), np.array([0.0, 1.0, 2.0]))
    with pytest.raises(InfeasibleError, match="1 samples are ties"):
        certified_predictions(gap, 0)
    assert not certified_predictions(gap, 1).certified[0]
    with pytest.raises(BudgetError, match="violations"):
        certified_predictions(gap, 4)
    with pytest.raises(BudgetError, match="costs"):
        certified_predictions(gap, 1, costs=np.ones(3))
    with pytest.raises(InfeasibleError, match="ball"):
        certified_predictions(_gap(np.ones((1, 4)), np.zeros(0)), 0)
    assert not certified_predictions(_gap(np.ones((2, 4)), np.full(2, np.inf)), 0).kept.any()
