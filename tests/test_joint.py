"""Joint selection: against enumeration, and the curvature across layers against sample-by-sample Jacobians."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.costs import CostModel
from mipprune.curvature import expand_gates
from mipprune.game import as_data
from mipprune.pruning.joint import JointProblem


def costs_of(*widths: int) -> CostModel:
    sizes = [3, *widths, 2]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return mp.trace(nn.Sequential(*layers), torch.zeros(1, 3)).costs


def random_problem(seed: int, share: float = 0.5) -> JointProblem:
    rng = np.random.default_rng(seed)
    costs = costs_of(5, 4)
    root = rng.normal(size=(14, 9))
    limit = int(share * costs.cost("macs", costs.sizes))
    pinned = np.zeros(9, dtype=bool)
    pinned[rng.integers(9)] = True
    return JointProblem(
        0.3 * rng.normal(size=9), root.T @ root / 14, costs, {"macs": limit}, np.ones(9, dtype=bool), pinned, 1
    )


def best_by_enumeration(problem: JointProblem) -> float:
    best = np.inf
    for bits in itertools.product([False, True], repeat=9):
        kept = np.array(bits)
        counts = problem.costs.counts(kept)
        if kept[problem.pinned].all() and (counts >= 1).all() and problem._fits(counts):
            best = min(best, problem.value(kept))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_near_the_optimum_and_above_the_bound(seed: int) -> None:
    problem = random_problem(seed)
    kept = problem.solve()
    counts = problem.costs.counts(kept)
    assert problem._fits(counts)
    assert kept[problem.pinned].all()
    assert (counts >= 1).all()
    best, bound = best_by_enumeration(problem), problem.bound(kept)
    assert bound <= best + 1e-9
    assert problem.value(kept) <= best + 0.35 * (abs(best) + 0.1)


def test_mostly_optimal() -> None:
    hits = [random_problem(s) for s in range(12)]
    assert sum(p.value(p.solve()) <= best_by_enumeration(p) + 1e-9 for p in hits) >= 8


def test_curvature_across_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    x = torch.randn(11, 4).double()
    graph = mp.trace(model, x)
    data = as_data((x, torch.zeros(11, dtype=torch.int64)), graph)
    found = expand_gates(graph, data, joint=True, batch_size=4)
    want = torch.zeros(8, 8).double()
    for sample in x:
        def logits(gates: torch.Tensor, one: torch.Tensor = sample) -> torch.Tensor:
            return graph.program.run((one[None],), gates)[0]

        jacobian = torch.autograd.functional.jacobian(logits, torch.ones(8).double())
        p = torch.softmax(logits(torch.ones(8).double()), 0)
        want += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / 11
    np.testing.assert_allclose(found.joint, want.numpy(), atol=1e-12)
    for group, block in zip(graph.groups, found.curvature, strict=True):
        np.testing.assert_allclose(found.joint[group.units, group.units], block, atol=1e-14)


def test_prune_jointly(digits_flat: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10))
    x, y = digits_flat.train[0][:200], digits_flat.train[1][:200]
    result = mp.prune(model, (x, y), budget=mp.Macs(0.5), repair=(), stages=None, progress=False)
    assert result.report.surrogate == "joint"
    assert len(result.report.stages) == 8
    ratios = [stage.kept.sum() for stage in result.report.stages]
    assert ratios == sorted(ratios, reverse=True)
    assert all(stage.bound <= stage.objective for stage in result.report.stages)
    assert result.report.ratio("macs") <= 0.5
    with pytest.raises(mp.errors.ConfigError):
        mp.prune(model, (x, y), tolerance=mp.LossIncrease(0.1), surrogate="joint", progress=False)
