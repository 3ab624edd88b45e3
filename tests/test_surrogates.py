"""The shipped surrogates keep the contract, and refuse data that makes no sense."""

from __future__ import annotations

import numpy as np
import pytest

import mipprune as mp
from mipprune.errors import ConfigError
from mipprune.surrogates import (
    Additive,
    BudgetedAdditive,
    LinearHead,
    Pairwise,
    Quadratic,
    RobustAdditive,
    Surrogate,
    fit_error,
)
from mipprune.testing.surrogate_contract import SurrogateContract

RNG = np.random.default_rng(0)


def head(n: int, samples: int = 23, classes: int = 3, terms: int = 4) -> LinearHead:
    return LinearHead(RNG.random((samples, n)), RNG.normal(size=(classes, n)), RNG.normal(size=classes),
                      RNG.integers(0, classes, samples), terms)  # fmt: skip


class TestAdditive(SurrogateContract):
    def surrogates(self) -> list[Surrogate]:
        return [Additive(RNG.normal(size=n)) for n in (1, 4, 9)]


class TestQuadratic(SurrogateContract):
    def surrogates(self) -> list[Surrogate]:
        return [Quadratic(RNG.normal(size=n), RNG.normal(size=(rank, n))) for n, rank in ((1, 1), (5, 2), (4, 7))]


class TestLinearHead(SurrogateContract):
    def surrogates(self) -> list[Surrogate]:
        return [head(1), head(5), head(6, samples=2, terms=16)]


class TestRobustAdditive(SurrogateContract):
    def surrogates(self) -> list[Surrogate]:
        return [RobustAdditive(RNG.normal(size=n), RNG.random(n)) for n in (1, 4, 9)]


class TestBudgetedAdditive(SurrogateContract):
    def surrogates(self) -> list[Surrogate]:
        return [BudgetedAdditive(RNG.normal(size=n), RNG.random(n), budget) for n, budget in ((1, 1), (5, 2.5), (6, 0))]


def pairwise(n: int, n_pairs: int) -> Pairwise:
    pairs = RNG.permutation(np.stack(np.triu_indices(n, 1), axis=1))[:n_pairs]
    return Pairwise(RNG.normal(size=n), pairs, RNG.normal(size=len(pairs)))


class TestPairwise(SurrogateContract):
    def surrogates(self) -> list[Surrogate]:
        return [pairwise(2, 1), pairwise(6, 7), pairwise(5, 0)]


def masks(n: int) -> np.ndarray:
    return (np.arange(1 << n)[:, None] >> np.arange(n) & 1).astype(float)


def test_robust_terms_are_worst_cases() -> None:
    importance, deviation = RNG.normal(size=6), RNG.random(6)
    for z in masks(6):
        chosen = sorted(deviation[z > 0], reverse=True)
        for budget in (0, 1, 2, 6):
            drop = BudgetedAdditive(importance, deviation, budget).drop(z)
            assert drop == pytest.approx(importance @ z + sum(chosen[:budget]))
        half = BudgetedAdditive(importance, deviation, 1.5).drop(z)
        assert half == pytest.approx(importance @ z + sum(chosen[:1]) + 0.5 * sum(chosen[1:2]))
        cone = RobustAdditive(importance, deviation).drop(z)
        assert cone == pytest.approx(importance @ z + np.sqrt((deviation**2 * z).sum()))


def test_deviations_come_from_the_standard_errors() -> None:
    game = tiny_game(9)
    estimate = mp.shapley(game, method="permutation", n_evals=400, seed=1)
    twice = RobustAdditive.from_estimate(estimate, kappa=2.0)
    np.testing.assert_allclose(twice.deviation, 2.0 * estimate.stderr)
    np.testing.assert_allclose(twice.importance, estimate.values)
    sure = RobustAdditive.from_estimate(estimate, confidence=0.95)
    assert 1.64 < (sure.deviation / estimate.stderr)[0] < 1.8  # Student's t, so a little more than 1.645
    linear = BudgetedAdditive.from_estimate(estimate, budget=3, confidence=0.95)
    np.testing.assert_allclose(linear.deviation, sure.deviation)
    for wrong in ({}, {"kappa": 1.0, "confidence": 0.9}, {"confidence": 0.4}, {"kappa": -1.0}):
        with pytest.raises(ConfigError):
            RobustAdditive.from_estimate(estimate, **wrong)
    with pytest.raises(ValueError, match="budget"):
        BudgetedAdditive(np.ones(2), np.ones(2), -1.0)
    with pytest.raises(ValueError, match="deviation"):
        RobustAdditive(np.ones(2), -np.ones(2))


def test_a_pairwise_surrogate_is_exact_at_masks_and_so_is_its_convex_twin() -> None:
    surrogate = pairwise(7, 9)
    twin = surrogate.convexified()
    for z in masks(7):
        products = surrogate.interaction @ z[surrogate.pairs].prod(1)
        assert surrogate.drop(z) == pytest.approx(surrogate.importance @ z - products)
        assert twin.drop(z) == pytest.approx(surrogate.drop(z), abs=1e-9)
    parts = surrogate.components()
    assert np.sort(np.concatenate(parts)).tolist() == list(range(7))
    for z in masks(7):
        assert sum(surrogate.restricted(part).drop(z[part]) for part in parts) == pytest.approx(surrogate.drop(z))


def tiny_game(n: int, seed: int = 0) -> mp.TableGame:
    """A game of degree 2: a quadratic in the coalition."""
    rng = np.random.default_rng(seed)
    pairs, kept = np.triu(rng.normal(size=(n, n)), 1), masks(n)
    return mp.TableGame(kept @ rng.normal(size=n) + np.einsum("mi,ij,mj->m", kept, pairs, kept))


@pytest.mark.parametrize("index", ["shapley", "banzhaf", "leave_one_out"])
def test_a_game_of_degree_two_is_fitted_without_error(index: str) -> None:
    game = tiny_game(8)
    estimate = {"shapley": mp.shapley, "banzhaf": mp.banzhaf, "leave_one_out": mp.leave_one_out}[index](game)
    surrogate = Pairwise.from_estimates(estimate, mp.interactions(game))
    fit = fit_error(surrogate, game, seed=5)
    assert fit.rmse < 1e-9
    assert fit.explained == pytest.approx(1.0)
    additive = fit_error(Additive(estimate.values), game, seed=5)
    assert additive.rmse > 0.1
    assert "rmse" in str(additive)
    few = Pairwise.from_estimates(estimate, mp.interactions(game), max_pairs=3)
    assert len(few.pairs) == 3
    assert 0 < fit_error(few, game, seed=5).rmse < additive.rmse or index == "leave_one_out"


def test_fit_errors_are_what_they_say() -> None:
    game = tiny_game(6)
    surrogate = Additive(RNG.normal(size=6))
    fit = fit_error(surrogate, game, n_coalitions=50, keep_rate=0.5, seed=3)
    error = fit.predicted - fit.real
    assert fit.rmse == pytest.approx(np.sqrt((error**2).mean()))
    assert (fit.bias, fit.worst) == (pytest.approx(error.mean()), pytest.approx(np.abs(error).max()))
    assert fit.real.min() >= game.value_full - game.table.max() - 1e-12
    assert type(fit).from_dict(fit.to_dict()) == fit
    assert np.isnan(fit_error(surrogate, game, keep_rate=1.0).rank_correlation)
    for wrong in ({"keep_rate": 1.5}, {"keep_rate": (0.9, 0.1)}, {"n_coalitions": 1}):
        with pytest.raises(ConfigError):
            fit_error(surrogate, game, **wrong)
    with pytest.raises(ConfigError, match="5 units"):
        fit_error(Additive(np.ones(5)), game)


def test_pairs_that_make_no_sense() -> None:
    wrong = (([[0, 3]], "below 3"), ([[1, 0]], "below 3"), ([[0, 1], [0, 1]], "twice"), ([[0]], "expected"))
    for pairs, message in wrong:
        with pytest.raises(ValueError, match=message):
            Pairwise(np.ones(3), np.array(pairs), np.ones(len(pairs)))


def test_a_curvature_is_factored_along_its_axes() -> None:
    factor = RNG.normal(size=(3, 6))
    surrogate = Quadratic.from_curvature(np.zeros(6), factor.T @ factor)
    assert surrogate.factor.shape == (3, 6)
    np.testing.assert_allclose(surrogate.curvature, factor.T @ factor, atol=1e-10)
    lengths = np.linalg.norm(surrogate.factor, axis=1)
    assert (np.diff(lengths) <= 0).all()
    assert Quadratic.from_curvature(np.ones(3), np.zeros((3, 3))).n_terms == 0


def test_impossible_data() -> None:
    with pytest.raises(ValueError, match="semidefinite"):
        Quadratic.from_curvature(np.zeros(2), np.diag([1.0, -1.0]))
    with pytest.raises(ValueError, match="finite"):
        Additive(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="expected gradient"):
        Quadratic(np.zeros(3), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="finite"):
        Quadratic(np.zeros(2), np.full((1, 2), np.inf))
    with pytest.raises(ValueError, match="targets"):
        LinearHead(np.ones((4, 2)), np.ones((3, 2)), np.zeros(3), np.array([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="expected activations"):
        LinearHead(np.ones((4, 2)), np.ones((3, 5)), np.zeros(3), np.zeros(4, dtype=int))


def test_data_is_frozen() -> None:
    importance = np.ones(3)
    surrogate = Additive(importance)
    importance[0] = 5.0
    assert surrogate.importance[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        surrogate.importance[0] = 2.0
