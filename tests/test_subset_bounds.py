"""Lower bounds on what removing units costs after a refit, against the enumeration of all choices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mipprune.curvature.subset_bounds import LEAST_GATE, Regression, _share_out, least_errors


def covariance(rng: np.random.Generator, size: int, factors: int, noise: float) -> np.ndarray:
    load = rng.normal(size=(size, factors))
    return load @ load.T + noise * np.diag(rng.uniform(0.5, 2.0, size))


def error(cov: np.ndarray, weight: np.ndarray, kept: np.ndarray) -> float:
    """The plain least-squares error of all outputs when only the inputs ``kept`` may be used."""
    across = cov[kept] @ weight.T
    left = weight @ cov @ weight.T - across.T @ np.linalg.solve(cov[np.ix_(kept, kept)], across)
    return float(np.trace(left))


def enumerated(covs: list[np.ndarray], weights: list[np.ndarray], n: int) -> np.ndarray:
    """Least sum of the errors over all choices of r units; inputs behind the first n b are never removed."""
    best = np.full(n + 1, np.inf)
    for mask in itertools.product([False, True], repeat=n):
        total = 0.0
        for cov, weight in zip(covs, weights, strict=True):
            b = len(cov) // n
            others = np.arange(n * b, len(cov))
            kept = np.concatenate([np.flatnonzero(np.repeat(mask, b)), others])
            total += error(cov, weight, kept)
        best[n - sum(mask)] = min(best[n - sum(mask)], total)
    return best


def regression(cov: np.ndarray, weight: np.ndarray, own: int) -> Regression:
    return Regression(np.linalg.inv(cov)[:own, :own], weight[:, :own])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), n=st.integers(1, 7), blocks=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    factors=st.integers(1, 3), noise=st.sampled_from([0.01, 0.3, 3.0]), outputs=st.integers(1, 4),
)
def test_no_choice_is_better(
    seed: int, n: int, blocks: list[int], factors: int, noise: float, outputs: int
) -> None:
    rng = np.random.default_rng(seed)
    covs = [covariance(rng, n * b, factors, noise) for b in blocks]
    weights = [rng.normal(size=(outputs, n * b)) for b in blocks]
    found = least_errors([regression(c, w, len(c)) for c, w in zip(covs, weights, strict=True)], n)
    best = enumerated(covs, weights, n)
    assert (found <= best * (1 + 1e-7) + 1e-9).all()
    assert found[0] == pytest.approx(0.0, abs=1e-9 * best[-1])
    assert (np.diff(found) >= 0).all()
    assert found[1] == pytest.approx(best[1], rel=1e-6)  # one unit: its own error is exact
    assert found[n] == pytest.approx(best[n], rel=1e-6)  # all of them: nothing is explained


def test_inputs_of_others_stay_and_are_refitted() -> None:
    rng = np.random.default_rng(0)
    n, others = 6, 3
    cov, weight = covariance(rng, n + others, 2, 0.2), rng.normal(size=(3, n + others))
    best = np.full(n + 1, np.inf)
    for mask in itertools.product([False, True], repeat=n):
        kept = np.concatenate([np.flatnonzero(mask), np.arange(n, n + others)])
        best[n - sum(mask)] = min(best[n - sum(mask)], error(cov, weight, kept))
    found = least_errors([regression(cov, weight, n)], n)
    assert (found <= best * (1 + 1e-9) + 1e-12).all()
    assert found[n] == pytest.approx(best[n], rel=1e-8)


@pytest.mark.parametrize("b", [1, 3])
def test_exact_for_independent_units(b: int) -> None:
    rng = np.random.default_rng(b)
    n = 8
    cov = np.zeros((n * b, n * b))
    for u in range(n):
        cov[u * b : (u + 1) * b, u * b : (u + 1) * b] = covariance(rng, b, 2, 0.1)
    weight = rng.normal(size=(4, n * b))
    found = least_errors([regression(cov, weight, n * b)], n)
    assert found == pytest.approx(enumerated([cov], [weight], n), rel=1e-7, abs=1e-12)


def test_correlated_units_are_bounded_far_above_single_ones() -> None:
    """What the relaxation is for: many units that explain each other."""
    rng = np.random.default_rng(1)
    n = 12
    cov, weight = covariance(rng, n, 4, 0.5), rng.normal(size=(8, n))
    one = regression(cov, weight, n)
    found, best = least_errors([one], n), enumerated([cov], [weight], n)
    single = np.sort([error(cov, weight, np.delete(np.arange(n), u)) for u in range(n)])
    half = n // 2
    assert found[half] > 2 * single[half - 1]
    assert found[half] > 0.3 * best[half]


def test_few_units_cannot_explain_many_outputs() -> None:
    rng = np.random.default_rng(2)
    n = 9
    cov, weight = np.full((n, n), 0.95) + 0.05 * np.eye(n), rng.normal(size=(n, n))
    found, best = least_errors([regression(cov, weight, n)], n), enumerated([cov], [weight], n)
    values = np.sort(np.linalg.eigvalsh(weight @ cov @ weight.T))
    assert found[n - 1] >= values[:-1].sum() * (1 - 1e-9)
    assert found[n - 1] <= best[n - 1]


def test_wide_layers_do_without_tangents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mipprune.curvature.subset_bounds.MOST_WORK", 0)
    rng = np.random.default_rng(3)
    cov, weight = covariance(rng, 5, 2, 0.5), rng.normal(size=(3, 5))
    found, best = least_errors([regression(cov, weight, 5)], 5), enumerated([cov], [weight], 5)
    assert (found <= best + 1e-12).all()
    assert found[1] == pytest.approx(best[1])


def test_nearly_dependent_inputs_leave_the_single_errors() -> None:
    """Fewer samples than inputs and hardly a ridge: the inverse is not positive definite any more."""
    rng = np.random.default_rng(4)
    precision = covariance(rng, 6, 2, 0.5)
    precision[:2, :2] = [[1.0, 1.0 + 1e-9], [1.0 + 1e-9, 1.0]]  # one unit of two inputs, slightly indefinite
    weight = rng.normal(size=(3, 6))
    found = least_errors([Regression(precision, weight)], 3)
    blocks = [slice(0, 2), slice(2, 4), slice(4, 6)]
    single = [np.trace(weight[:, s] @ np.linalg.solve(precision[s, s], weight[:, s].T)) for s in blocks]
    assert found == pytest.approx(np.maximum.accumulate([0.0, *sorted(single)]))


def test_without_readers_nothing_is_known() -> None:
    assert (least_errors([], 3) == 0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12), st.floats(0.01, 1.0))
def test_gates_share_out_a_count(roots: list[float], share: float) -> None:
    count = max(1.0, share * len(roots))
    gates = _share_out(np.array(roots), count)
    assert ((gates >= LEAST_GATE) & (gates <= 1)).all()
    free = (gates > LEAST_GATE) & (gates < 1)
    assert gates.sum() == pytest.approx(count, abs=LEAST_GATE * len(roots) + 1e-9)
    ratio = gates[free] / np.array(roots)[free]
    assert ratio == pytest.approx(np.full(free.sum(), ratio[0] if free.any() else 0.0))
