"""Random small problems over all surrogates, objectives and requirements, for enumeration to judge solvers by."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..costs import BilinearCost, CostModel, TabulatedCost
from ..solver import Problem
from ..surrogates import Additive, BudgetedAdditive, LinearHead, Pairwise, Quadratic, RobustAdditive, Surrogate

__all__ = ["N_KINDS", "random_costs", "random_problem", "random_surrogate"]

#: Kinds of surrogates that :func:`random_surrogate` makes, numbered from 0.
N_KINDS = 6


def random_surrogate(rng: np.random.Generator, n: int, kind: int) -> Surrogate:
    """A surrogate of ``n`` units: additive, quadratic, head, robust (cone, budget) or pairwise."""
    if kind == 0:
        return Additive(rng.normal(0.3, 1.0, n))
    if kind == 1:
        return Quadratic(rng.normal(0.1, 0.5, n), rng.normal(size=(rng.integers(1, n + 1), n)))
    if kind in (3, 4):
        deviation = rng.exponential(0.3, n) * (rng.random(n) < 0.8)
        importance = rng.normal(0.3, 1.0, n)
        return (
            RobustAdditive(importance, deviation) if kind == 3
            else BudgetedAdditive(importance, deviation, float(rng.choice([0.0, 1.5, 2.0, 4.0])))
        )
    if kind == 5:
        pairs = np.stack(np.triu_indices(n, 1), axis=1)
        pairs = pairs[rng.random(len(pairs)) < 0.25]
        return Pairwise(rng.normal(0.5, 0.5, n), pairs, rng.normal(0.0, 0.7, len(pairs)))
    return LinearHead(rng.random((30, n)), 2 * rng.normal(size=(3, n)), np.zeros(3), rng.integers(0, 3, 30), 4)


def random_costs(rng: np.random.Generator, n: int, *, table: bool = False) -> CostModel:
    """One to three groups with a bilinear resource, squares included, and a tabulated one if asked for."""
    groups = int(rng.integers(1, 4))
    cuts = np.sort(rng.choice(np.arange(1, n), groups - 1, replace=False))
    sizes = np.diff([0, *cuts, n])
    pairs = [(g, h) for g in range(groups) for h in range(g, groups) if rng.random() < 0.6] or [(0, 0)]
    left, right = (np.array(side, dtype=np.int64) for side in zip(*pairs))
    macs = BilinearCost(int(rng.integers(0, 9)), rng.integers(0, 5, groups), left, right,
                        rng.integers(1, 6, len(pairs)))
    none = np.zeros(0, dtype=np.int64)
    units = BilinearCost(0, np.ones(groups, dtype=np.int64), none, none, none)
    costs = CostModel(tuple(f"g{i}" for i in range(groups)), sizes.astype(np.int64), {"units": units, "macs": macs})
    if not table:
        return costs
    shapes = [(sizes[g] + 1,) if g == h else (sizes[g] + 1, sizes[h] + 1) for g, h in pairs]
    latency = TabulatedCost(int(rng.integers(0, 9)), left, right, tuple(rng.integers(0, 40, shape) for shape in shapes))
    return costs.with_resource("latency", latency)


def random_problem(seed: int, *, wide: bool = False) -> Problem:
    """An instance with n <= 14; about one in ten is infeasible.

    ``wide``: also robust and pairwise surrogates, width multiples and tabulated costs.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 11 if seed % 5 else 15))
    surrogate, costs = random_surrogate(rng, n, seed % (N_KINDS if wide else 3)), random_costs(rng, n, table=wide)
    spread = abs(surrogate.drop(np.ones(n))) + 0.1
    pins = rng.permutation(n)
    extra: dict[str, Any] = {"min_keep": int(rng.integers(0, 3)), "keep": pins[: rng.integers(0, 2)],
                             "remove": pins[2 : 2 + rng.integers(0, 2)]}
    if wide and rng.random() < 0.5:
        extra["multiples"] = rng.integers(1, 4, len(costs.groups))
    if rng.random() < 0.3:
        extra["forbidden"] = rng.random((3, n)) < 0.5
    counted = "latency" if wide and rng.random() < 0.6 else "macs"
    dense = costs.cost(counted, costs.sizes)
    objective = ("units", counted, "drop")[int(rng.integers(3))]
    if objective == "drop" or rng.random() < 0.3:
        extra["budgets"] = {counted: dense * rng.uniform(0.5, 0.95)}
    if objective != "drop" or rng.random() < 0.2:
        extra["max_drop"] = float(rng.uniform(-0.1, 0.6) * spread)
    return Problem.build(surrogate, objective, costs=costs, **extra)
