"""Recombination: the knapsack, the dual and the exchanges against the enumeration of all masks of all layers."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import networkx as nx
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from mipprune.costs import BilinearCost, CostModel
from mipprune.errors import BudgetError, InfeasibleError, SolverError
from mipprune.solver import curve_search, recombine_solve
from mipprune.solver.curve import SizeCurve, size_curve
from mipprune.solver.linear_solver import LinearOutcome
from mipprune.solver.problem import Problem
from mipprune.solver.recombine import Recombination, recombine
from mipprune.solver.recombine_dual import ForestOracle, Lagrangian
from mipprune.solver.recombine_mip import Choices, Requirements, build_knapsack
from mipprune.solver.recombine_search import SizeExchange
from mipprune.solver.registry import solve_linear
from mipprune.surrogates import Quadratic

CHAIN, TRIANGLE = ((0, 1), (1, 2)), ((0, 1), (1, 2), (0, 2))


def cost(
    groups: int, linear: Sequence[int], products: Sequence[tuple[int, int, int]], constant: int = 0
) -> BilinearCost:
    left, right, coefficient = (np.array([p[i] for p in products], dtype=np.int64) for i in range(3))
    return BilinearCost(constant, np.array(linear, dtype=np.int64), left, right, coefficient)


def network(sizes: Sequence[int], pairs: Sequence[tuple[int, int]] = CHAIN, seed: int = 0) -> CostModel:
    """Groups whose counts are multiplied along ``pairs``, with a square and constants."""
    groups, rng = len(sizes), np.random.default_rng(seed)
    pairs = [p for p in pairs if max(p) < groups]
    macs = cost(groups, rng.integers(0, 5, groups), [(*p, int(rng.integers(1, 6))) for p in pairs], 3)
    params = cost(groups, rng.integers(1, 9, groups), [(0, 0, 2), *((*p, 2) for p in pairs)], 1)
    resources = {"units": cost(groups, [1] * groups, []), "macs": macs, "params": params}
    return CostModel(tuple(f"g{i}" for i in range(groups)), np.array(sizes), resources)


def layers(sizes: Sequence[int], seed: int) -> list[Quadratic]:
    rng = np.random.default_rng(seed)
    return [Quadratic(rng.normal(0.1, 0.2, n), rng.normal(size=(n, n)) * 0.5) for n in sizes]


def joined(surrogates: Sequence[Quadratic]) -> Quadratic:
    """The separable problem's surrogate: the sum of the layers' drops."""
    return Quadratic(
        np.concatenate([s.gradient for s in surrogates]), scipy.linalg.block_diag(*(s.factor for s in surrogates))
    )


def brute_force(surrogates: Sequence[Quadratic], costs: CostModel, **requirements: object) -> float:
    """Optimum over all masks of all units at once; ``inf`` if none is feasible."""
    objective = str(requirements.pop("objective", "drop"))
    limits = dict(requirements.pop("budgets", {}) or {})  # type: ignore[call-overload]
    max_drop = requirements.pop("max_drop", None)
    assert not requirements
    n = costs.n_units
    kept = (np.arange(1 << n)[:, None] >> np.arange(n) & 1).astype(bool)
    drops = joined(surrogates).drops((~kept).astype(float))
    counts = np.stack([kept[:, costs.group_of_unit == g].sum(1) for g in range(len(costs.groups))], 1)
    seen, where = np.unique(counts, axis=0, return_inverse=True)
    value = {name: np.array([c(k) for k in seen])[where] for name, c in costs.resources.items()}
    ok = np.ones(len(kept), dtype=bool)
    for name, limit in limits.items():
        ok &= value[name] <= limit
    if max_drop is not None:
        ok &= drops <= float(max_drop) + 1e-9  # type: ignore[arg-type]
    target = drops if objective == "drop" else value[objective].astype(float)
    return float(target[ok].min()) if ok.any() else math.inf


def inexact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves as those of large layers: local optima and relaxations, no enumeration."""
    monkeypatch.setattr(curve_search, "TABLE_UNITS", 0)


def check(result: Recombination, surrogates: Sequence[Quadratic], costs: CostModel, **requirements: object) -> float:
    """The result is what it says under the problem it stands for, and its bound is one; returns the optimum."""
    objective = str(requirements.get("objective", "drop"))
    problem = Problem.build(
        joined(surrogates), objective, costs=costs, budgets=requirements.get("budgets"),  # type: ignore[arg-type]
        max_drop=requirements.get("max_drop"),  # type: ignore[arg-type]
    )
    evaluation = problem.evaluate(result.kept)
    assert evaluation.feasible, evaluation.violations
    assert result.objective == pytest.approx(evaluation.objective, abs=1e-9)
    assert result.drop == pytest.approx(evaluation.drop, abs=1e-9)
    assert result.costs == evaluation.costs
    assert result.objective_kind == objective
    assert result.counts.tolist() == costs.counts(result.kept).tolist()
    best = brute_force(surrogates, costs, **requirements)
    assert result.bound <= best + 1e-7 * max(1.0, abs(best))
    assert result.objective >= best - 1e-9
    return best


CASES = [
    {"budgets": {"macs": 0.5}},
    {"budgets": {"macs": 0.25, "params": 0.6}},
    {"budgets": {"units": 0.5}},
    {"objective": "macs", "max_drop": 0.15},
    {"objective": "params", "max_drop": 0.3, "budgets": {"units": 0.7}},
    {"objective": "units", "max_drop": 0.1},
    {},
]


def scaled(case: dict[str, object], surrogates: Sequence[Quadratic], costs: CostModel) -> dict[str, object]:
    """Budgets from fractions of the dense network, drops from fractions of the largest."""
    case = dict(case)
    if "budgets" in case:
        fractions: dict[str, float] = case["budgets"]  # type: ignore[assignment]
        case["budgets"] = {name: int(part * costs[name](costs.sizes)) for name, part in fractions.items()}
    if "max_drop" in case:
        case["max_drop"] = float(case["max_drop"]) * joined(surrogates).drop(np.ones(costs.n_units))  # type: ignore[arg-type]
    return case


# ---------------------------------------------------------------------------------------------------------------------
# against all masks


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("sizes", "pairs"), [((4, 5, 3), CHAIN), ((3, 4, 4), TRIANGLE), ((6, 5), CHAIN), ((8,), ())])
def test_exact_curves_give_the_optimum(case: dict[str, object], sizes: tuple[int, ...], pairs: tuple) -> None:
    costs, surrogates = network(sizes, pairs, 1), layers(sizes, len(sizes))
    case = scaled(case, surrogates, costs)
    result = recombine([size_curve(s) for s in surrogates], costs, **case)
    best = check(result, surrogates, costs, **case)
    assert result.objective == pytest.approx(best, abs=1e-9)
    assert result.proved
    assert result.gap == 0.0
    assert result.termination == "optimal"


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), triangle=st.booleans(), seed=st.integers(0, 10**6),
    which=st.sampled_from(CASES), share=st.floats(0.05, 1.0),
)
def test_random_networks_give_the_optimum(
    sizes: list[int], triangle: bool, seed: int, which: dict[str, object], share: float
) -> None:
    costs, surrogates = network(sizes, TRIANGLE if triangle else CHAIN, seed), layers(sizes, seed)
    case = dict(which)
    if "budgets" in case:
        case["budgets"] = dict.fromkeys(case["budgets"], share)  # type: ignore[call-overload]
    case = scaled(case, surrogates, costs)
    best = brute_force(surrogates, costs, **case)
    curves = [size_curve(s) for s in surrogates]
    if math.isinf(best):
        with pytest.raises(InfeasibleError):
            recombine(curves, costs, **case)
        return
    result = recombine(curves, costs, **case)
    check(result, surrogates, costs, **case)
    assert result.objective == pytest.approx(best, abs=1e-8)
    assert result.bound == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("ladder", [False, True])
def test_gaps_in_the_curves_stay_in_the_answer(
    case: dict[str, object], ladder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inexact(monkeypatch)
    sizes = (5, 4, 3)
    costs, surrogates = network(sizes, CHAIN, 2), layers(sizes, 7)
    case = scaled(case, surrogates, costs)
    every = [[0, 2, 5], [0, 1, 3, 4], [0, 2, 3]]
    curves = [size_curve(s, k if ladder else None, max_nodes=0) for s, k in zip(surrogates, every)]
    assert not all(c.proved.all() for c in curves)
    result = recombine(curves, costs, **case)
    check(result, surrogates, costs, **case)
    assert result.termination == "optimal"


def test_without_a_forest_the_mip_alone_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (5, 4, 3)
    costs, surrogates = network(sizes, CHAIN, 4), layers(sizes, 4)
    case = {"budgets": {"macs": costs["macs"](costs.sizes) // 3}}
    curves = [size_curve(s) for s in surrogates]
    expected = recombine(curves, costs, **case)

    def circle(*_: object) -> ForestOracle:
        raise nx.HasACycle("on purpose")

    monkeypatch.setattr(recombine_solve, "ForestOracle", circle)
    result = recombine(curves, costs, **case)
    assert result.objective == pytest.approx(expected.objective, abs=1e-9)
    assert result.proved


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("weak_dual", [False, True])
def test_the_mip_makes_up_for_a_poor_start(
    case: dict[str, object], weak_dual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Lagrangian.maximise
    monkeypatch.setattr(SizeExchange, "descend", lambda self, chosen, *_: chosen)
    monkeypatch.setattr(
        Lagrangian, "maximise", lambda self, offer, **_: plain(self, lambda _: None, max_rounds=1 if weak_dual else 50)
    )
    for seed in range(6, 10):
        sizes = (5, 4, 3)
        costs, surrogates = network(sizes, CHAIN, seed), layers(sizes, seed)
        needs = scaled(case, surrogates, costs)
        result = recombine([size_curve(s) for s in surrogates], costs, **needs)
        assert result.objective == pytest.approx(check(result, surrogates, costs, **needs), abs=1e-9)
        assert result.proved


def test_a_mip_cut_short_proves_no_more_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (5, 4, 3)
    costs, surrogates = network(sizes, TRIANGLE, 6), layers(sizes, 6)
    case = {"budgets": {"macs": costs["macs"](costs.sizes) // 3}}
    monkeypatch.setattr(
        recombine_solve, "solve_linear", lambda *_, **__: LinearOutcome(None, math.inf, -5.0, "time_limit", 0.1)
    )
    result = recombine([size_curve(s) for s in surrogates], costs, **case)
    best = check(result, surrogates, costs, **case)
    assert result.termination == "time_limit"
    assert result.bound < best
    assert not result.proved


@pytest.mark.parametrize("solver", ["highs", "scip"])
def test_solvers_agree(solver: str) -> None:
    sizes = (4, 4, 4)
    costs, surrogates = network(sizes, TRIANGLE, 3), layers(sizes, 3)
    case = {"objective": "macs", "max_drop": 0.3}
    result = recombine([size_curve(s) for s in surrogates], costs, solver=solver, **case)
    assert result.objective == check(result, surrogates, costs, **case)
    assert result.solver == solver
    assert result.version[0].isdigit()


def test_a_cost_that_falls_when_more_is_kept() -> None:
    sizes = (4, 3)
    odd = cost(2, [5, 5], [(0, 1, -2)], 1)
    costs = CostModel(("a", "b"), np.array(sizes), {"odd": odd})
    surrogates = layers(sizes, 0)
    for limit in (4, 7, 11):
        case = {"budgets": {"odd": limit}}
        result = recombine([size_curve(s) for s in surrogates], costs, **case)
        assert result.objective == pytest.approx(check(result, surrogates, costs, **case), abs=1e-9)
    # a group of dead units: its largest size, no better in drop than its smallest, pays for the other group
    valuable, dead = Quadratic(np.full(4, 0.3), np.zeros((0, 4))), Quadratic(np.zeros(3), np.zeros((0, 3)))
    result = recombine([size_curve(valuable), size_curve(dead)], costs, budgets={"odd": 12})
    assert result.counts.tolist() == [4, 3]
    assert (result.objective, result.bound) == (0.0, 0.0)
    with pytest.raises(InfeasibleError, match="no sizes meet"):
        recombine([size_curve(s) for s in surrogates], costs, budgets={"odd": 0})


# ---------------------------------------------------------------------------------------------------------------------
# the parts


def random_choices(rng: np.random.Generator, groups: int = 3) -> Choices:
    counts = tuple(np.unique(rng.integers(0, 9, rng.integers(1, 6))) for _ in range(groups))
    return Choices(counts, tuple(rng.normal(size=len(c)).round(2) for c in counts))


def all_selections(choices: Choices) -> list[np.ndarray]:
    return [np.array(c) for c in itertools.product(*(range(len(count)) for count in choices.counts))]


@given(seed=st.integers(0, 10**6))
def test_forest_oracle_and_its_marginals(seed: int) -> None:
    rng = np.random.default_rng(seed)
    choices = random_choices(rng, 4)
    star = [((0, 1), (0, 2), (0, 3)), ((0, 1), (2, 3)), ((1, 3), (2, 3)), ()][seed % 4]
    costs = network((9, 9, 9, 9), star, seed)
    requirements = Requirements(costs, "macs", 1.0, {"params": 10})
    oracle = ForestOracle(choices, requirements)
    price_drop, prices = rng.random(), rng.random(2)
    values = {}
    for chosen in all_selections(choices):
        counts = choices.counts_at(chosen)
        spent = [costs[name](counts) for name in oracle.names]
        values[tuple(chosen)] = price_drop * choices.drop_at(chosen) + float(prices @ spent)
    value, chosen = oracle.minimise(price_drop, prices)
    assert value == pytest.approx(min(values.values()))
    assert values[tuple(chosen)] == pytest.approx(value)
    for g, marginal in enumerate(oracle.min_marginals(price_drop, prices)):
        for i, found in enumerate(marginal):
            assert found == pytest.approx(min(v for key, v in values.items() if key[g] == i))


def test_a_circle_is_no_forest() -> None:
    requirements = Requirements(network((2, 2, 2), TRIANGLE), "macs", math.inf, {})
    with pytest.raises(nx.HasACycle):
        ForestOracle(random_choices(np.random.default_rng(0)), requirements)


def random_requirements(rng: np.random.Generator, pairs: Sequence[tuple[int, int]]) -> Requirements:
    costs = network((9, 9, 9), pairs, int(rng.integers(10**6)))
    budgets = {name: int(rng.integers(5, 400)) for name in ("macs", "params") if rng.random() < 0.6}
    objective = str(rng.choice(["drop", "macs", "units"]))
    return Requirements(costs, objective, math.inf if objective == "drop" else float(rng.normal()), budgets)


def optimum(choices: Choices, requirements: Requirements) -> tuple[float, np.ndarray | None]:
    best, where = math.inf, None
    for chosen in all_selections(choices):
        counts, drop = choices.counts_at(chosen), choices.drop_at(chosen)
        if drop > requirements.drop_limit:
            continue
        if any(requirements.costs[name](counts) > limit for name, limit in requirements.budgets.items()):
            continue
        value = drop if requirements.objective == "drop" else float(requirements.costs[requirements.objective](counts))
        if value < best:
            best, where = value, chosen
    return best, where


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_dual_bounds_and_never_strikes_out_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    choices, requirements = random_choices(rng), random_requirements(rng, CHAIN)
    best, where = optimum(choices, requirements)
    dual = Lagrangian(ForestOracle(choices, requirements), requirements)
    offered: list[np.ndarray] = []
    dual.maximise(offered.append)
    assert offered
    assert dual.bound <= best + 1e-7 * max(1.0, abs(best))
    if where is not None:
        assert all(possible[i] for possible, i in zip(dual.possible(best), where))
    if not requirements.budgets and math.isinf(requirements.drop_limit):
        assert dual.bound == pytest.approx(best)


def test_dual_is_tight_and_strikes_out_most_sizes() -> None:
    rng = np.random.default_rng(0)
    counts = np.arange(1, 65)
    drops = tuple(np.sort(rng.exponential(size=64)).cumsum()[::-1] for _ in range(3))  # convex, as layers are
    choices = Choices((counts,) * 3, drops)
    costs = network((64,) * 3, CHAIN, 0)
    requirements = Requirements(costs, "drop", math.inf, {"macs": costs["macs"](costs.sizes) // 4})
    dual = Lagrangian(ForestOracle(choices, requirements), requirements)
    search, best = SizeExchange(choices, requirements), math.inf

    def offer(chosen: np.ndarray) -> None:
        nonlocal best
        violation, drop, _ = search.merit(chosen)
        best = min(best, drop) if violation == 0 else best

    dual.maximise(offer)
    offer(search.descend(search.greedy()))
    assert dual.bound <= best <= dual.bound * 1.02
    assert sum(int(use.sum()) for use in dual.possible(best)) < 64


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), triangle=st.booleans())
def test_the_program_alone_equals_enumeration(seed: int, triangle: bool) -> None:
    rng = np.random.default_rng(seed)
    choices, requirements = random_choices(rng), random_requirements(rng, TRIANGLE if triangle else CHAIN)
    best, where = optimum(choices, requirements)
    knapsack = build_knapsack(choices, requirements)
    outcome = solve_linear(knapsack.mip)
    if where is None:
        assert outcome.termination == "infeasible"
        return
    assert outcome.objective * knapsack.unit == pytest.approx(best, abs=1e-6 * max(1.0, abs(best)))
    x = knapsack.point(choices, where)
    assert knapsack.mip.violation(x) < 1e-9
    assert (float(knapsack.mip.c @ x) + knapsack.mip.constant) * knapsack.unit == pytest.approx(best)


@given(seed=st.integers(0, 10**6))
def test_exchanges_end_where_no_two_groups_improve(seed: int) -> None:
    rng = np.random.default_rng(seed)
    choices, requirements = random_choices(rng), random_requirements(rng, TRIANGLE)
    search = SizeExchange(choices, requirements)
    start = np.array([rng.integers(len(c)) for c in choices.counts])
    end = search.descend(start)
    assert search.merit(end) <= search.merit(start)
    violation, objective, _ = search.merit(end)
    for g, h in itertools.combinations(range(3), 2):
        for i, j in itertools.product(range(len(choices.counts[g])), range(len(choices.counts[h]))):
            trial = end.copy()
            trial[g], trial[h] = i, j
            other = search.merit(trial)
            assert other[0] >= violation - 1e-12
            if other[0] <= violation:
                assert other[1] >= objective - 1e-9


def test_merit_is_what_the_requirements_say() -> None:
    rng = np.random.default_rng(3)
    choices = random_choices(rng)
    for _ in range(20):
        requirements = random_requirements(rng, TRIANGLE)
        search = SizeExchange(choices, requirements)
        for chosen in all_selections(choices):
            counts, drop = choices.counts_at(chosen), choices.drop_at(chosen)
            feasible = drop <= requirements.drop_limit and all(
                requirements.costs[n](counts) <= limit for n, limit in requirements.budgets.items()
            )
            violation, objective, _ = search.merit(chosen)
            assert (violation == 0) == feasible
            expected = drop if requirements.objective == "drop" else requirements.costs[requirements.objective](counts)
            assert objective == pytest.approx(expected)


def test_greedy_meets_the_budget() -> None:
    counts = np.arange(1, 9)
    choices = Choices((counts,) * 3, tuple(np.linspace(s, 0, 8) ** 2 for s in (1.0, 2.0, 3.0)))
    costs = network((8, 8, 8))
    requirements = Requirements(costs, "drop", math.inf, {"macs": costs["macs"](costs.sizes) // 2})
    chosen = SizeExchange(choices, requirements).greedy()
    assert costs["macs"](choices.counts_at(chosen)) <= requirements.budgets["macs"]
    assert chosen[2] > chosen[0]  # the layer that hurts most keeps most


@given(seed=st.integers(0, 10**6), most=st.integers(1, 5))
def test_fewer_choices_for_bounds(seed: int, most: int) -> None:
    choices = random_choices(np.random.default_rng(seed))
    coarse = choices.coarse(most)
    for count, drop, low, least in zip(choices.counts, choices.drops, coarse.counts, coarse.drops):
        assert len(low) == min(most, len(count))
        for k, d in zip(count, drop):  # every size has a stand-in that is no larger and drops no more
            assert ((low <= k) & (least <= d)).any()
    useful = choices.undominated()
    for count, drop, low, least in zip(choices.counts, choices.drops, useful.counts, useful.drops):
        assert (np.diff(least) < 0).all()
        for k, d in zip(count, drop):
            assert ((low <= k) & (least <= d)).any()
        assert {*zip(low, least)} <= {*zip(count, drop)}


# ---------------------------------------------------------------------------------------------------------------------
# ties, limits, interruptions


def test_among_equal_drops_the_cheaper_network() -> None:
    dead = Quadratic(np.array([0.0, 0.0, 0.0, 0.5]), np.zeros((0, 4)))
    live = Quadratic(np.array([0.3, 0.4]), np.zeros((0, 2)))
    costs = network((4, 2))
    result = recombine([size_curve(dead), size_curve(live)], costs, budgets={"macs": 10**6})
    assert result.drop == 0.0
    assert result.counts.tolist() == [1, 2]
    assert recombine([size_curve(dead), size_curve(live)], costs).counts.tolist() == [1, 2]


def test_among_equal_costs_the_smaller_drop() -> None:
    first, second = Quadratic(np.array([0.1, 0.5]), np.zeros((0, 2))), Quadratic(np.array([0.2, 0.5]), np.zeros((0, 2)))
    costs = CostModel(("a", "b"), np.array([2, 2]), {"units": cost(2, [1, 1], [])})
    result = recombine([size_curve(first), size_curve(second)], costs, objective="units", max_drop=0.25)
    assert result.objective == 3
    assert result.drop == pytest.approx(0.1)


def test_exchanges_break_ties_by_the_second_choice() -> None:
    drops = (np.array([0.5, 0.0]), np.array([0.5, 0.0]))
    choices = Choices((np.array([1, 2]), np.array([1, 2])), drops)
    costs = CostModel(("a", "b"), np.array([2, 2]), {"macs": cost(2, [3, 5], []), "units": cost(2, [1, 1], [])})
    by_drop = SizeExchange(choices, Requirements(costs, "drop", math.inf, {"macs": 13}))
    assert by_drop.descend(np.array([0, 1])).tolist() == [1, 0]  # same drop, 11 macs and not 13
    choices = Choices(choices.counts, (np.array([0.5, 0.0]), np.array([0.4, 0.0])))
    by_units = SizeExchange(choices, Requirements(costs, "units", 0.6, {}))
    assert by_units.descend(np.array([0, 1])).tolist() == [1, 0]  # three units either way


def test_minimum_keep_and_pins_come_from_the_curves() -> None:
    sizes = (5, 4)
    costs, surrogates = network(sizes), layers(sizes, 1)
    curves = [size_curve(surrogates[0], min_keep=3, keep=[2]), size_curve(surrogates[1], remove=[0])]
    result = recombine(curves, costs, budgets={"units": 4})
    assert result.counts[0] >= 3
    assert result.kept[2]
    assert not result.kept[5]
    with pytest.raises(InfeasibleError, match="'units' is 2, but the smallest sizes of all curves cost 3") as refused:
        recombine(curves, costs, budgets={"units": 2})
    assert (refused.value.requirement, refused.value.nearest) == ("units", 3)


def test_a_drop_that_cannot_be_met_names_the_nearest() -> None:
    sizes = (4, 4)
    costs, surrogates = network(sizes), layers(sizes, 2)
    curves = [size_curve(s) for s in surrogates]
    budgets = {"macs": costs["macs"](costs.sizes) // 3}
    nearest = brute_force(surrogates, costs, budgets=budgets)
    with pytest.raises(InfeasibleError, match=r"max_drop is .* within the budgets") as refused:
        recombine(curves, costs, objective="units", max_drop=nearest - 1e-3, budgets=budgets)
    assert refused.value.requirement == "max_drop"
    assert refused.value.nearest == pytest.approx(nearest)
    result = recombine(curves, costs, objective="units", max_drop=nearest, budgets=budgets)
    check(result, surrogates, costs, objective="units", max_drop=nearest, budgets=budgets)


@pytest.mark.parametrize("case", [c for c in CASES if "max_drop" not in c], ids=str)
@pytest.mark.parametrize("pairs", [CHAIN, TRIANGLE])
def test_no_time_still_gives_a_selection_and_a_bound(case: dict[str, object], pairs: tuple) -> None:
    sizes = (5, 4, 3)
    costs, surrogates = network(sizes, pairs), layers(sizes, 2)
    case = scaled(case, surrogates, costs)
    result = recombine([size_curve(s) for s in surrogates], costs, time_limit=0.0, **case)
    check(result, surrogates, costs, **case)
    assert result.termination == "time_limit" or result.proved
    assert math.isfinite(result.bound)


@pytest.mark.parametrize("share", [0.05, 0.15, 0.3, 0.6])
def test_the_dual_of_a_counted_cost_is_rounded_up_to_no_more_than_the_optimum(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> LinearOutcome:
        return LinearOutcome(None, math.inf, -math.inf, "time_limit", 0.1)

    monkeypatch.setattr(recombine_solve, "solve_linear", stopped)
    monkeypatch.setattr(SizeExchange, "descend", lambda self, chosen, *_: chosen)
    for seed in range(6):
        costs, surrogates = network((5, 4, 3), CHAIN, seed), layers((5, 4, 3), seed)
        case = scaled({"objective": "macs", "max_drop": share}, surrogates, costs)
        result = recombine([size_curve(s) for s in surrogates], costs, **case)
        check(result, surrogates, costs, **case)
        assert result.bound == round(result.bound)


@pytest.mark.parametrize("where", ["mip", "start"])
def test_interrupt_returns_the_best_so_far(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    inexact(monkeypatch)
    sizes = (5, 4, 3)
    costs, surrogates = network(sizes, TRIANGLE), layers(sizes, 2)
    case = {"budgets": {"macs": costs["macs"](costs.sizes) // 3}}
    curves = [size_curve(s, max_nodes=0) for s in surrogates]
    if where == "mip":
        monkeypatch.setattr(recombine_solve, "solve_linear", interrupted)
    else:
        monkeypatch.setattr(SizeExchange, "descend", interrupted)
    result = recombine(curves, costs, **case)
    check(result, surrogates, costs, **case)
    assert result.termination == "interrupted"
    assert math.isfinite(result.bound)


def test_a_drop_limit_without_time_is_no_proof_of_infeasibility() -> None:
    sizes = (4, 3)
    costs, surrogates = network(sizes), layers(sizes, 2)
    curves = [size_curve(s) for s in surrogates]
    budgets = {"macs": costs["macs"](costs.sizes) // 3}
    with pytest.raises(SolverError, match="no selection was found"):
        recombine(curves, costs, objective="units", max_drop=-100.0, budgets=budgets, time_limit=0.0)


def test_refusals() -> None:
    curve = size_curve(layers((3,), 0)[0])
    costs = network((3,), ())
    with pytest.raises(ValueError, match="one curve per group"):
        recombine([curve, curve], costs)
    with pytest.raises(BudgetError, match="unknown resource 'watts'"):
        recombine([curve], costs, objective="watts")
    with pytest.raises(BudgetError, match="unknown resource 'watts'"):
        recombine([curve], costs, budgets={"watts": 3})
    with pytest.raises(BudgetError, match="must be finite"):
        recombine([curve], costs, budgets={"macs": math.nan})
    with pytest.raises(BudgetError, match="max_drop must be finite"):
        recombine([curve], costs, max_drop=math.inf)
    with pytest.raises(SolverError, match="unknown solver"):
        recombine([curve], costs, solver="abacus")


def test_record() -> None:
    sizes = (4, 3)
    result = recombine([size_curve(s) for s in layers(sizes, 0)], network(sizes), budgets={"units": 3.9})
    assert Recombination.from_dict(result.to_dict()) == result
    assert result.n_kept <= 3
    assert "proved optimal" in str(result)
    assert not result.counts.flags.writeable


def test_curves_of_any_origin_will_do() -> None:
    """Only the record matters: drops measured by another method, a single size."""
    measured = SizeCurve(
        counts=np.array([3, 1]), masks=np.array([[1, 1, 1], [0, 1, 0]], bool), upper=np.array([0.0, 2.0]), fewest=0,
        all_lower=np.array([2.5, 1.0, 0.5, 0.0]), termination="iteration_limit", seconds=0.0,
    )
    costs = network((3,), ())
    result = recombine([measured], costs, budgets={"units": 2})
    assert result.kept.tolist() == [False, True, False]
    assert result.objective == 2.0
    assert result.bound == pytest.approx(0.5)
    assert dataclasses.replace(result, bound=-math.inf).gap == math.inf
