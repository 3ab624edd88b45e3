"""The shipped surrogates keep the contract, and refuse data that makes no sense."""

from __future__ import annotations

import numpy as np
import pytest

from mipprune.surrogates import Additive, LinearHead, Quadratic, Surrogate
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
