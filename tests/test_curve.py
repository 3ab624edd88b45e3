"""Size curves: every fast path against enumeration, every bound against all masks."""

from __future__ import annotations

import dataclasses
import itertools
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize

from mipprune.errors import BudgetError, DataError, InfeasibleError, SolverError
from mipprune.solver import curve, curve_search
from mipprune.solver.capped_simplex import project_capped_simplex, tangent_bounds
from mipprune.solver.cardinality_convex import relax_convex
from mipprune.solver.cardinality_exact import branch_and_bound, quadratic_table, table_minima
from mipprune.solver.cardinality_qp import ActiveSet, StalledError
from mipprune.solver.cardinality_search import exchange, greedy_paths, kick, screened_exchange
from mipprune.solver.curve import LADDER, SizeCurve, size_curve, size_curves
from mipprune.surrogates import Additive, LinearHead, Quadratic, Surrogate

# ---------------------------------------------------------------------------------------------------------------------
# cases and references


def random_quadratic(n: int, rank: int, seed: int) -> Quadratic:
    rng = np.random.default_rng(seed)
    return Quadratic(rng.normal(0.05, 0.3, n), rng.normal(size=(rank, n)) * rng.exponential(0.5, n))


def hard_quadratic(n: int, seed: int) -> Quadratic:
    """Units that cancel each other in a few directions, like numbers to be partitioned: local optima abound."""
    return Quadratic(np.zeros(n), np.random.default_rng(seed).normal(size=(4, n)))


@st.composite
def small_quadratics(draw: st.DrawFn, largest: int = 7) -> Quadratic:
    """Small whole numbers, so that twins, ties, dead units and singular curvatures are common."""
    n, rank = draw(st.integers(1, largest)), draw(st.integers(0, 4))
    numbers = st.integers(-3, 3)
    gradient = draw(hnp.arrays(np.int64, n, elements=numbers))
    factor = draw(hnp.arrays(np.int64, (rank, n), elements=numbers))
    return Quadratic(gradient / 4.0, factor / 2.0)


def random_head(n: int, seed: int, classes: int = 3, samples: int = 20) -> LinearHead:
    rng = np.random.default_rng(seed)
    a = np.maximum(rng.normal(size=(samples, n)), 0.0)
    weight = rng.normal(size=(classes, n))
    return LinearHead(a, weight, rng.normal(size=classes), (a @ weight.T).argmax(1))


def all_masks(n: int) -> np.ndarray:
    return (np.arange(1 << n)[:, None] >> np.arange(n) & 1).astype(bool)


def best_by_count(surrogate: Surrogate, allowed: np.ndarray | None = None) -> dict[int, float]:
    """Kept count -> least drop over all masks (of those that ``allowed`` admits): the definition."""
    removed = all_masks(surrogate.n_units)
    if allowed is not None:
        removed = removed[allowed]
    drops = surrogate.drops(removed.astype(float))
    kept = surrogate.n_units - removed.sum(1)
    return {int(k): float(drops[kept == k].min()) for k in np.unique(kept)}


def dense(surrogate: Quadratic) -> tuple[np.ndarray, np.ndarray]:
    return np.array(surrogate.gradient), surrogate.curvature


def reference_relaxation(g: np.ndarray, h: np.ndarray, total: float, fixed: dict[int, float]) -> float:
    """Minimum over the capped simplex with some entries fixed, by trying every set of entries at their bounds."""
    n, best = len(g), np.inf
    free = [i for i in range(n) if i not in fixed]
    for sides in itertools.product((0.0, 1.0, None), repeat=len(free)):
        z = np.zeros(n)
        for i, value in fixed.items():
            z[i] = value
        loose = []
        for i, side in zip(free, sides):
            if side is None:
                loose.append(i)
            else:
                z[i] = side
        if loose:
            m = len(loose)
            system = np.block([[h[np.ix_(loose, loose)], np.ones((m, 1))], [np.ones((1, m)), np.zeros((1, 1))]])
            right = np.append(-(g + h @ z)[loose], total - z.sum())
            z[loose] = np.linalg.lstsq(system, right, rcond=None)[0][:m]
        if abs(z.sum() - total) < 1e-9 and (z > -1e-9).all() and (z < 1 + 1e-9).all():
            best = min(best, float(g @ z + 0.5 * z @ h @ z))
    return best


def check_curve(curve: SizeCurve, surrogate: Surrogate, allowed: np.ndarray | None = None) -> dict[int, float]:
    """A curve's masks have their drops, no mask beats the best and no bound lies above it; returns the best."""
    best = best_by_count(surrogate, allowed)
    assert (curve.fewest, curve.most) == (min(best), max(best))
    for count, mask, upper, lower in zip(curve.counts, curve.masks, curve.upper, curve.lower):
        assert mask.sum() == count
        assert upper == surrogate.drop(~mask)
        assert lower <= best[count] + 1e-9
        assert upper >= best[count] - 1e-9
        assert lower <= upper
    for j, lower in enumerate(curve.all_lower):
        assert lower <= best[curve.fewest + j] + 1e-9
    return best


# ---------------------------------------------------------------------------------------------------------------------
# the capped simplex and its relaxations


@given(
    y=hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(-3, 3).map(lambda v: round(v, 2))),
    share=st.floats(0, 1),
)
def test_projection_satisfies_the_variational_inequality(y: np.ndarray, share: float) -> None:
    total = share * len(y)
    z = project_capped_simplex(y, total)
    assert z.min() >= 0
    assert z.max() <= 1
    assert z.sum() == pytest.approx(total, abs=1e-9)
    # optimal iff no point of the set lies further along y - z; the furthest one fills up the largest entries
    along = np.sort(y - z)[::-1]
    fill = np.clip(total - np.arange(len(y)), 0.0, 1.0)
    assert along @ fill <= (y - z) @ z + 1e-9


@pytest.mark.parametrize("total", [0, 0.3, 1, 2.5, 4, 5])
def test_projection_against_a_quadratic_programming_solver(total: float) -> None:
    y = np.random.default_rng(int(10 * total)).normal(0.5, 1.0, 5)
    found = minimize(
        lambda z: 0.5 * ((z - y) ** 2).sum(), np.full(5, total / 5), jac=lambda z: z - y, method="SLSQP",
        bounds=[(0, 1)] * 5, constraints={"type": "eq", "fun": lambda z: z.sum() - total, "jac": lambda z: np.ones(5)},
        options={"ftol": 1e-14},
    )
    assert project_capped_simplex(y, total) == pytest.approx(found.x, abs=1e-6)


def test_projection_refuses_an_empty_set() -> None:
    with pytest.raises(ValueError, match="no point"):
        project_capped_simplex(np.zeros(3), 3.5)


@given(surrogate=small_quadratics(), seed=st.integers(0, 99))
def test_tangents_bound_every_size_from_any_point(surrogate: Quadratic, seed: int) -> None:
    z = np.random.default_rng(seed).normal(0.5, 1.0, surrogate.n_units)  # also outside the box
    bounds = tangent_bounds(*surrogate.drop_and_gradient(z), z)
    best = best_by_count(surrogate)
    assert all(bounds[r] <= best[surrogate.n_units - r] + 1e-9 for r in range(surrogate.n_units + 1))


def test_a_tangent_at_a_vertex_touches() -> None:
    surrogate = random_quadratic(6, 6, 0)
    for total in range(7):
        z = np.zeros(6)
        z[:total] = 1.0
        value, gradient = surrogate.drop_and_gradient(z)
        sides = sorted(itertools.combinations(range(6), total), key=lambda s: gradient[list(s)].sum())
        expected = value + gradient[list(sides[0])].sum() - gradient @ z
        assert tangent_bounds(value, gradient, z)[total] == pytest.approx(expected)


@settings(max_examples=40)
@given(surrogate=small_quadratics(5))
@example(surrogate=Quadratic(np.zeros(4), np.array([[1.0, 1.5, 0.5, -0.5]])))  # ran in circles once
def test_followed_relaxation_equals_the_minimum_over_all_active_sets(surrogate: Quadratic) -> None:
    g, h = dense(surrogate)
    state = ActiveSet(g, h)
    for total in range(len(g) + 1):
        state.move_total(total)
        assert state.z.min() >= -1e-9
        assert state.z.max() <= 1 + 1e-9
        assert state.z.sum() == pytest.approx(total, abs=1e-9)
        assert surrogate.drop(state.z) == pytest.approx(reference_relaxation(g, h, total, {}), abs=1e-6)
        assert state.value == pytest.approx(surrogate.drop(state.z), abs=1e-6)


@settings(max_examples=40)
@given(surrogate=small_quadratics(5), total=st.integers(0, 5), seed=st.integers(0, 999))
def test_holding_units_follows_the_minimum(surrogate: Quadratic, total: int, seed: int) -> None:
    g, h = dense(surrogate)
    n, rng = len(g), np.random.default_rng(seed)
    total = min(total, n)
    state = ActiveSet(g, h)
    state.move_total(total)
    fixed: dict[int, float] = {}
    for unit in rng.permutation(n)[:3].tolist():
        side = int(rng.integers(2))
        expected = reference_relaxation(g, h, total, {**fixed, unit: side})
        before = state.copy()
        if not np.isfinite(expected):
            with pytest.raises(StalledError):
                state.hold(unit, side)
            break
        state.hold(unit, side)
        fixed[unit] = side
        assert state.held.nonzero()[0].tolist() == sorted(fixed)
        assert state.z[unit] == side
        assert surrogate.drop(state.z) == pytest.approx(expected, abs=1e-6)
        assert not before.held[unit]  # the copy did not move along


def test_relaxations_of_a_layer_touch_their_tangents() -> None:
    surrogate = random_quadratic(60, 45, 3)
    g, h = dense(surrogate)
    state = ActiveSet(g, h)
    for total in range(61):
        state.move_total(total)
        value, gradient = surrogate.drop_and_gradient(state.z)
        assert value - tangent_bounds(value, gradient, state.z)[total] <= 1e-6


def test_stiffness_is_the_curvature_along_the_response_of_the_others() -> None:
    g, h = dense(random_quadratic(8, 8, 5))
    state = ActiveSet(g, h)
    state.move_total(4)
    free, stiffness = state.stiffness()
    assert len(free) >= 3
    for i, expected in zip(free, stiffness):
        others = [j for j in free if j != i]
        system = np.block(
            [[h[np.ix_(others, others)], np.ones((len(others), 1))], [np.ones((1, len(others))), np.zeros((1, 1))]]
        )
        step = np.zeros(8)
        step[i] = 1.0
        step[others] = np.linalg.solve(system, np.append(-h[others, i], -1.0))[:-1]
        assert expected == pytest.approx(step @ h @ step, rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_projected_gradients_reach_the_followed_relaxation(seed: int) -> None:
    surrogate = random_quadratic(24, 20, seed)
    state = ActiveSet(*dense(surrogate))
    bounds, z = np.full(25, -np.inf), np.zeros(24)
    for total in range(25):
        state.move_total(total)
        z = relax_convex(surrogate.drop_and_gradient, z, total, bounds, tolerance=1e-6, max_steps=2000)
        assert z.sum() == pytest.approx(total)
        assert bounds[total] == pytest.approx(state.value, abs=3e-6)
        assert surrogate.drop(z) == pytest.approx(state.value, abs=3e-6)


def test_projected_gradients_stop_when_told() -> None:
    surrogate = random_quadratic(10, 10, 0)
    calls = iter([True, False])
    bounds = np.full(11, -np.inf)
    z = relax_convex(
        surrogate.drop_and_gradient, np.zeros(10), 5, bounds, tolerance=0.0, goes_on=lambda: next(calls)
    )
    assert z.sum() == pytest.approx(5)
    assert next(calls, None) is None
    assert np.isfinite(bounds).all()


# ---------------------------------------------------------------------------------------------------------------------
# masks


@given(surrogate=small_quadratics())
def test_greedy_paths_equal_a_plain_greedy(surrogate: Quadratic) -> None:
    n = surrogate.n_units
    removed, added = greedy_paths(*dense(surrogate))
    for path, start in ((removed, False), (added[::-1], True)):
        assert (path[0] == start).all()
        for before, after in itertools.pairwise(path):
            trials = [before.copy() for _ in range(n)]
            for i in range(n):
                trials[i][i] = not start
            drops = [surrogate.drop(t) for t in trials if (t != before).any()]
            assert (after != before).sum() == 1
            assert surrogate.drop(after) == pytest.approx(min(drops), abs=1e-9)


@given(surrogate=small_quadratics(), seed=st.integers(0, 99))
def test_no_single_exchange_improves_what_exchange_returns(surrogate: Quadratic, seed: int) -> None:
    n, rng = surrogate.n_units, np.random.default_rng(seed)
    start = rng.random(n) < rng.random()
    z = exchange(*dense(surrogate), start)
    assert z.sum() == start.sum()
    value = surrogate.drop(z)
    assert value <= surrogate.drop(start) + 1e-9
    for i, j in itertools.product(np.flatnonzero(~z), np.flatnonzero(z)):
        trial = z.copy()
        trial[i], trial[j] = True, False
        assert surrogate.drop(trial) >= value - 1e-9


def test_screening_by_cauchy_schwarz_loses_no_exchange() -> None:
    for seed in range(20):
        surrogate = random_quadratic(30, 30, seed)
        g, h = dense(surrogate)
        z = exchange(g, h, np.arange(30) < 12)
        gradient, half = g + h @ z, 0.5 * np.diag(h)
        out, back = np.flatnonzero(~z), np.flatnonzero(z)
        change = (gradient + half)[out][:, None] + (half - gradient)[back][None, :] - h[np.ix_(out, back)]
        assert change.min() >= -1e-9


def test_a_kick_keeps_the_size_and_moves_the_asked_number() -> None:
    rng = np.random.default_rng(0)
    z = np.arange(10) < 4
    kicked = kick(z, rng.normal(size=10), 3, rng)
    assert kicked.sum() == 4
    assert (kicked != z).sum() == 6
    assert (kick(np.ones(3, bool), np.zeros(3), 2, rng) == 1).all()


def test_screened_exchange_improves_an_oracle() -> None:
    head = random_head(10, 0)
    start = np.arange(10) < 5
    z, value = screened_exchange(head.drop_and_gradient, head.drops, start)
    assert z.sum() == 5
    assert value == pytest.approx(head.drop(z), abs=1e-12)
    assert value < head.drop(start)
    again, _ = screened_exchange(head.drop_and_gradient, head.drops, z)
    assert (again == z).all()


# ---------------------------------------------------------------------------------------------------------------------
# exact


@given(surrogate=small_quadratics())
def test_table_holds_every_mask_and_its_minima(surrogate: Quadratic) -> None:
    n = surrogate.n_units
    table = quadratic_table(*dense(surrogate))
    assert table == pytest.approx(surrogate.drops(all_masks(n).astype(float)), abs=1e-9)
    best = best_by_count(surrogate)
    for r, (z, value) in enumerate(table_minima(table)):
        assert z.sum() == r
        assert value == pytest.approx(best[n - r], abs=1e-9)
        assert surrogate.drop(z) == pytest.approx(value, abs=1e-9)


def _branch(surrogate: Quadratic, total: int, nodes: int) -> tuple[float, float]:
    g, h = dense(surrogate)
    state = ActiveSet(g, h)
    state.move_total(total)
    start = np.arange(len(g)) < total
    steps = iter(range(nodes))
    result = branch_and_bound(state, g, h, start, lambda: next(steps, None) is not None, 1e-9)
    assert result.z.sum() == total
    assert result.value == pytest.approx(surrogate.drop(result.z), abs=1e-9)
    return result.value, result.bound


@settings(max_examples=60)
@given(surrogate=small_quadratics(), share=st.floats(0, 1))
def test_branch_and_bound_closes_small_layers(surrogate: Quadratic, share: float) -> None:
    total = round(share * surrogate.n_units)
    best = best_by_count(surrogate)[surrogate.n_units - total]
    value, bound = _branch(surrogate, total, 10**6)
    assert value == pytest.approx(best, abs=1e-7)
    assert bound <= best + 1e-9
    assert bound == pytest.approx(best, abs=1e-7)


@pytest.mark.parametrize("seed", range(6))
def test_branch_and_bound_is_valid_wherever_it_stops(seed: int) -> None:
    surrogate = random_quadratic(12, 9, seed)
    best = best_by_count(surrogate)
    for total in range(13):
        bounds = []
        for nodes in (0, 1, 3, 10, 10**6):
            value, bound = _branch(surrogate, total, nodes)
            assert bound <= best[12 - total] + 1e-9
            assert value >= best[12 - total] - 1e-9
            bounds.append(bound)
        assert bounds == sorted(bounds)
        assert value == pytest.approx(best[12 - total], abs=1e-7)
        assert bound == pytest.approx(best[12 - total], abs=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_a_coarse_branch_and_bound_is_off_by_no_more_than_its_tolerance(seed: int) -> None:
    surrogate = hard_quadratic(11, seed)
    g, h = dense(surrogate)
    best, state = best_by_count(surrogate), ActiveSet(g, h)
    missed = 0
    for total in range(12):
        state.move_total(total)
        start = np.arange(11) < total
        result = branch_and_bound(state, g, h, start, lambda: True, tolerance=0.5)
        assert result.bound <= best[11 - total] + 1e-9
        assert result.value <= best[11 - total] + 0.5
        missed += result.value > best[11 - total] + 1e-9
    assert missed  # else the tolerance was not put to the test


# ---------------------------------------------------------------------------------------------------------------------
# curves


@given(
    prices=hnp.arrays(np.float64, st.integers(1, 9), elements=st.integers(-4, 4).map(lambda v: v / 8)),
    min_keep=st.integers(0, 4),
)
def test_additive_curve_is_sorting(prices: np.ndarray, min_keep: int) -> None:
    curve = size_curve(Additive(prices), min_keep=min_keep)
    n = len(prices)
    assert curve.counts.tolist() == list(range(n, min(min_keep, n) - 1, -1))
    cheapest = np.concatenate([[0.0], np.cumsum(np.sort(prices))])
    assert curve.upper == pytest.approx(cheapest[n - curve.counts])
    assert (curve.lower == curve.upper).all()
    assert curve.termination == "optimal"


def _without_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve_search, "TABLE_UNITS", 0)
    monkeypatch.setattr(curve_search, "ORACLE_TABLE_UNITS", 0)


@settings(max_examples=50)
@given(surrogate=small_quadratics(), table=st.booleans(), nodes=st.sampled_from([0, 4, None]))
def test_quadratic_curve_against_all_masks(surrogate: Quadratic, table: bool, nodes: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not table:
            _without_table(patch)
        curve = size_curve(surrogate, max_nodes=nodes)
    best = check_curve(curve, surrogate)
    if table or nodes is None:
        assert curve.proved.all()
        assert curve.termination == "optimal"
        assert curve.upper == pytest.approx([best[k] for k in curve.counts], abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_quadratic_incumbents_at_twelve_units(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    surrogate = random_quadratic(12, 10, seed)
    _without_table(monkeypatch)
    found = size_curve(surrogate, max_nodes=0)
    best = check_curve(found, surrogate)
    exact = np.array([best[k] for k in found.counts])
    assert (found.upper - exact).sum() <= 0.02 * exact.max()  # exchanges come close
    closed = size_curve(surrogate, max_nodes=None)
    assert closed.upper == pytest.approx(exact, abs=1e-9)
    assert closed.proved.all()


def test_a_few_nodes_from_poor_masks_prove_only_what_they_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_table(monkeypatch)
    monkeypatch.setattr(curve_search, "exchange", lambda linear, curvature, z: z)
    monkeypatch.setattr(curve_search, "KICKS", 0)
    missed = 0
    for seed, nodes in itertools.product(range(4), (2, 8)):
        surrogate = hard_quadratic(12, seed)
        found = size_curve(surrogate, max_nodes=nodes)
        best = check_curve(found, surrogate)
        missed += (found.upper > np.array([best[k] for k in found.counts]) + 1e-9).sum()
        assert (found.all_lower >= size_curve(surrogate, max_nodes=0).all_lower - 1e-9).all()
    assert missed  # else there was nothing to prove too much about


def test_pins_shape_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    for surrogate in (random_quadratic(9, 7, 1), random_head(9, 1), Additive(np.linspace(-1, 1, 9))):
        keep, remove = np.array([0, 4]), np.arange(9) == 7
        removed = all_masks(9)
        allowed = ~removed[:, keep].any(1) & removed[:, 7]
        for table in (True, False):
            with monkeypatch.context() as patch:
                if not table:
                    _without_table(patch)
                curve = size_curve(surrogate, keep=keep, remove=remove, max_nodes=None)
            check_curve(curve, surrogate, allowed)
            assert (curve.fewest, curve.most) == (2, 8)
            assert curve.masks[:, keep].all()
            assert not curve.masks[:, 7].any()
            assert curve.proved.all() or isinstance(surrogate, LinearHead)


def test_nothing_left_to_decide() -> None:
    curve = size_curve(random_quadratic(4, 3, 0), keep=[0, 1], remove=[2, 3])
    assert curve.counts.tolist() == [2]
    assert curve.termination == "optimal"


@pytest.mark.parametrize("seed", range(3))
def test_oracle_curve_against_all_masks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    head = random_head(9, seed)
    exact = size_curve(head)
    best = check_curve(exact, head)
    assert exact.proved.all()
    _without_table(monkeypatch)
    curve = size_curve(head)
    check_curve(curve, head)
    assert curve.termination == "iteration_limit"
    assert (curve.upper - [best[k] for k in curve.counts]).sum() <= 0.05 * max(best.values())
    assert curve.gaps[0] == 0.0  # nothing removed: the tangent there is exact


def test_a_sparse_ladder_still_bounds_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_table(monkeypatch)
    for surrogate in (random_quadratic(11, 9, 2), random_head(9, 2)):
        curve = size_curve(surrogate, [2, 8, 5, 5], min_keep=1, max_nodes=0)
        assert curve.counts.tolist() == [8, 5, 2]
        check_curve(curve, surrogate, all_masks(surrogate.n_units).sum(1) < surrogate.n_units)
        assert np.isfinite(curve.all_lower).all()


def test_ladders() -> None:
    small, large = Additive(np.ones(LADDER - 1)), Additive(np.ones(1000))
    assert len(size_curve(small).counts) == LADDER
    counts = size_curve(large, min_keep=10).counts
    assert (counts[0], counts[-1]) == (1000, 10)
    assert len(counts) == LADDER // 2 + 1
    assert -np.diff(counts).min() <= -np.diff(counts).max() + 1
    assert len(size_curve(large, min_keep=10).all_lower) == 991


def test_every_layer_searches_the_sizes_it_was_given() -> None:
    layers = [random_quadratic(6, 4, 0), random_quadratic(5, 4, 1)]
    some, all_of_it = size_curves(layers, [[2, 5], None])
    assert some.counts.tolist() == [5, 2]
    assert all_of_it.counts.tolist() == [5, 4, 3, 2, 1, 0]
    alone = size_curve(layers[0], [2, 5])
    np.testing.assert_array_equal(some.masks, alone.masks)
    with pytest.raises(ValueError, match="zip"):
        size_curves(layers, [[2]])


def test_results_do_not_depend_on_the_number_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    head = random_head(14, 3, samples=10)
    monkeypatch.setattr(curve_search, "CHUNK", 5)
    one, two = size_curve(head, n_jobs=1), size_curve(head, n_jobs=2)
    assert (one.masks == two.masks).all()
    assert one.all_lower == pytest.approx(two.all_lower, abs=1e-12)
    curves = size_curves([head, random_quadratic(5, 4, 0)], min_keep=[1, 2])
    assert [c.fewest for c in curves] == [1, 2]
    assert (curves[0].masks == one.masks[:-1]).all()


def test_same_seed_same_curve() -> None:
    surrogate = random_quadratic(30, 20, 4)
    one, two = size_curve(surrogate, seed=3), size_curve(surrogate, seed=3)
    assert dataclasses.replace(one, seconds=0.0) == dataclasses.replace(two, seconds=0.0)


@pytest.mark.parametrize("surrogate", [random_quadratic(11, 8, 0), random_head(9, 0)], ids=["quadratic", "oracle"])
def test_no_time_at_all_still_gives_a_valid_curve(surrogate: Surrogate, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_table(monkeypatch)
    curve = size_curve(surrogate, time_limit=0.0)
    check_curve(curve, surrogate)
    assert curve.termination == "time_limit"
    assert len(curve.counts) == surrogate.n_units + 1


def test_a_time_limit_is_shared_by_all_sizes() -> None:
    rng = np.random.default_rng(0)
    surrogate = Quadratic(rng.normal(0.0, 0.3, 60), rng.normal(size=(50, 60)) * 0.3)
    started = time.perf_counter()
    found = size_curve(surrogate, range(20, 41), max_nodes=None, time_limit=0.6)
    assert time.perf_counter() - started < 5.0
    assert found.termination == "time_limit"
    without = size_curve(surrogate, range(20, 41), max_nodes=0)
    assert (found.lower[~without.proved] > without.lower[~without.proved]).all()


@pytest.mark.parametrize("where", ["exchange", "branch_and_bound", "relax_convex", "screened_exchange", "kick"])
def test_interrupt_returns_the_best_so_far(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]
    plain = getattr(curve_search, where)

    def interrupted(*args: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return plain(*args, **options)

    _without_table(monkeypatch)
    monkeypatch.setattr(curve_search, where, interrupted)
    quadratic = where in ("exchange", "branch_and_bound", "kick")
    surrogate = random_quadratic(11, 8, 0) if quadratic else random_head(9, 0)
    curve = size_curve(surrogate)
    assert calls[0] == 4
    check_curve(curve, surrogate)
    assert curve.termination == "interrupted"


@pytest.mark.parametrize("raised", ["in a layer", "between layers"])
def test_interrupt_ends_all_layers(raised: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_table(monkeypatch)
    surrogates = [random_quadratic(9, 8, seed) for seed in range(3)]
    calls = [0]

    def interrupted(*_: object, **__: object) -> None:
        calls[0] += 1
        raise KeyboardInterrupt

    if raised == "in a layer":
        monkeypatch.setattr(curve_search, "kick", interrupted)
    else:
        plain = curve.search_sizes
        raises = iter([False, True, False, False])
        monkeypatch.setattr(curve, "search_sizes", lambda *a: interrupted() if next(raises) else plain(*a))
    curves = size_curves(surrogates)
    assert calls[0] == 1
    for found, surrogate in zip(curves, surrogates, strict=True):
        check_curve(found, surrogate)
    last = ["interrupted"] * 3 if raised == "in a layer" else ["optimal", "interrupted", "interrupted"]
    assert [c.termination for c in curves] == last


def test_an_interrupted_oracle_starts_no_other_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]

    def interrupted(*_: object, **__: object) -> None:
        calls[0] += 1
        raise KeyboardInterrupt

    _without_table(monkeypatch)
    monkeypatch.setattr(curve_search, "CHUNK", 3)
    monkeypatch.setattr(curve_search, "relax_convex", interrupted)
    found = size_curve(random_head(9, 0))
    assert (calls[0], found.termination) == (1, "interrupted")
    check_curve(found, random_head(9, 0))


def test_a_stalled_active_set_falls_back_to_projected_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def stalled(self: ActiveSet, total: int) -> None:
        if total > 2:
            raise StalledError("on purpose")
        plain(self, total)

    plain = ActiveSet.move_total
    surrogate = random_quadratic(11, 8, 0)
    _without_table(monkeypatch)
    expected = size_curve(surrogate, max_nodes=0)
    monkeypatch.setattr(ActiveSet, "move_total", stalled)
    curve = size_curve(surrogate, max_nodes=0)
    check_curve(curve, surrogate)
    assert curve.all_lower == pytest.approx(expected.all_lower, abs=1e-4 * expected.upper.max())


@dataclasses.dataclass(frozen=True, eq=False)
class _Broken(Additive):
    """A surrogate whose drop is what the test says, while its gradient stays that of the linear function."""

    bend: float = 0.0

    @property
    def n_terms(self) -> int:
        return 1

    def terms(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(1), np.zeros((1, len(z)))

    def drops(self, z: np.ndarray) -> np.ndarray:
        return z @ self.importance + np.where(z.sum(-1) > 1.5, self.bend, 0.0)


def test_refusals() -> None:
    additive = Additive(np.arange(5.0))
    with pytest.raises(InfeasibleError, match="keep 4 units but only 3") as refused:
        size_curve(additive, min_keep=4, remove=[0, 1])
    assert (refused.value.requirement, refused.value.nearest) == ("min_keep", 3)
    with pytest.raises(BudgetError, match="both stay and go"):
        size_curve(additive, keep=[1], remove=[1])
    with pytest.raises(BudgetError, match=r"\[6\] lie outside 2\.\.5"):
        size_curve(additive, [6, 3], min_keep=2)
    with pytest.raises(BudgetError, match="no size"):
        size_curve(additive, [])
    with pytest.raises(ValueError, match="masks of 5 units"):
        size_curve(additive, keep=np.ones(4, bool))
    with pytest.raises(DataError, match="drop is inf"):
        size_curve(_Broken(np.arange(20.0), np.inf))
    with pytest.raises(DataError, match="drop is nan when 2 units go"):
        size_curve(_Broken(np.arange(20.0), np.nan), remove=[3, 4])
    with pytest.raises(SolverError, match="isn't convex"):
        size_curve(_Broken(np.arange(20.0), -300.0))


def test_record() -> None:
    curve = size_curve(random_quadratic(6, 5, 0))
    assert SizeCurve.from_dict(curve.to_dict()) == curve
    assert (curve.mask(4) == curve.masks[2]).all()
    assert "7 of 7 proved" in str(curve)
    with pytest.raises(KeyError, match="size 9 was not searched"):
        curve.mask(9)
    for change, what in (
        ({"counts": curve.counts[::-1]}, "falling"),
        ({"upper": curve.upper[1:]}, "one row per size"),
        ({"fewest": 1}, "counts must lie"),
        ({"termination": "tired"}, "termination"),
    ):
        with pytest.raises(ValueError, match=what):
            dataclasses.replace(curve, **change)
