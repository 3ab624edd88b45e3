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
from mipprune.bounds import NeuronGap, neuron_gap
from mipprune.costs import BilinearCost, CostModel
from mipprune.errors import BudgetError, InfeasibleError, SolverError
from mipprune.solver import CertifiedChoice, certified_predictions
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


def _two_groups() -> CostModel:
    """Units, and a product of the two counts, as the weights between two layers are."""
    none = np.zeros(0, dtype=np.int64)
    macs = BilinearCost(3, np.array([2, 1]), np.array([0]), np.array([1]), np.array([4]))
    return CostModel(("a", "b"), np.array([4, 3]), {
        "units": BilinearCost(0, np.ones(2, dtype=np.int64), none, none, none), "macs": macs})


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), violations=st.integers(0, 6), share=st.floats(0.2, 1.0))
def test_budgets_and_bilinear_costs_agree_with_enumeration(seed: int, violations: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    gap, costs = _gap(rng.exponential(size=(6, 7)), 12 * rng.random(6) + 0.1), _two_groups()
    budgets, least = {"macs": int(share * costs.cost("macs", costs.sizes))}, np.array([1, 0])
    best, fewest = math.inf, math.inf
    for bits in itertools.product((False, True), repeat=7):
        kept = np.array(bits)
        counts = costs.counts(kept)
        if costs.cost("macs", counts) > budgets["macs"] or (counts < least).any() or not kept[5]:
            continue
        open_ = 6 - int(gap.deterministic(kept).prediction_kept(gap.margins).sum())
        fewest = min(fewest, open_)
        if open_ <= violations:
            best = min(best, costs.cost("macs", counts))
    requirements = {"costs": costs, "budgets": budgets, "min_keep": least, "keep": np.array([5])}
    if math.isinf(best):
        with pytest.raises(InfeasibleError, match="violations=None"):
            certified_predictions(gap, violations, objective="macs", **requirements)
    else:
        found = certified_predictions(gap, violations, objective="macs", **requirements)
        assert found.cost == best == found.costs["macs"] == costs.cost("macs", costs.counts(found.kept))
        assert found.proved
        assert found.kept[5]
    most = certified_predictions(gap, None, **requirements)
    assert most.cost == fewest == (~most.certified).sum()
    assert most.proved
    assert most.costs["macs"] <= budgets["macs"]


def test_a_networks_own_budgets() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = 4 * torch.randn(20, 8)
    graph = mp.trace(model, x[:1])
    gap, full = neuron_gap(graph, (x, torch.zeros(20))), graph.costs.cost("macs", graph.costs.sizes)
    shares = []
    for share in (1.0, 0.8, 0.6):
        found = certified_predictions(gap, None, costs=graph.costs, budgets={"macs": share * full})
        assert found.costs["macs"] <= share * full
        same = graph.program.run((x,), torch.tensor(found.kept).float()).argmax(1) == model(x).argmax(1)
        assert same.numpy()[found.certified].all()
        shares.append(found.certified.mean())
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0 > shares[-1]
    cheap = certified_predictions(gap, 10, costs=graph.costs, objective="params")
    assert cheap.cost == cheap.costs["params"] < graph.costs.cost("params", graph.costs.sizes)


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
    with pytest.raises(BudgetError, match=r"graph\.costs"):
        certified_predictions(gap, 1, budgets={"macs": 3}, costs=np.ones(4))
    with pytest.raises(BudgetError, match="needs budgets"):
        certified_predictions(gap, None)
    with pytest.raises(BudgetError, match="7 units, the gap 4"):
        certified_predictions(gap, 1, costs=_two_groups())
    with pytest.raises(BudgetError, match="unknown resource 'latency'"):
        certified_predictions(_gap(np.ones((3, 7)), np.ones(3)), 1, costs=_two_groups(), objective="latency")
    with pytest.raises(SolverError, match="unknown solver"):
        certified_predictions(gap, 1, solver="abacus")
    with pytest.raises(InfeasibleError, match="ball"):
        certified_predictions(_gap(np.ones((1, 4)), np.zeros(0)), 0)
    assert not certified_predictions(_gap(np.ones((2, 4)), np.full(2, np.inf)), 0).kept.any()
