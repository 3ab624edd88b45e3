"""Slow references for mipprune.estimate: every index by its definition, one coalition after another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from ..game.base import Game

__all__ = [
    "degree_two_fit", "faithful_shapley_by_least_squares", "interactions_by_enumeration", "semivalue_by_enumeration",
    "shapley_by_permutations", "shapley_by_subsets",
]


def shapley_by_permutations(game: Game) -> np.ndarray:
    """Mean marginal contribution over all n! orders: float64 (n,).  For n <= 7."""
    n = game.n_players
    out = np.zeros(n)
    for order in itertools.permutations(range(n)):
        coalition = np.zeros(n, dtype=bool)
        before = game.value(coalition)
        for player in order:
            coalition[player] = True
            after = game.value(coalition)
            out[player] += after - before
            before = after
    return out / math.factorial(n)


def shapley_by_subsets(game: Game) -> np.ndarray:
    """``sum_S |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))``: float64 (n,).  For n <= 10."""
    n = game.n_players
    return _first(game, lambda s: math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n))


def semivalue_by_enumeration(game: Game, p: float) -> np.ndarray:
    """``sum_S p^|S| (1 - p)^(n - 1 - |S|) (v(S + i) - v(S))``: float64 (n,).  For n <= 10."""
    n = game.n_players
    return _first(game, lambda s: p**s * (1 - p) ** (n - 1 - s))


def interactions_by_enumeration(game: Game, index: str, p: float = 0.5) -> np.ndarray:
    """Pairwise interactions by their definition: float64 (n, n).  For n <= 10.

    ``"shapley"``: weights ``|S|! (n - |S| - 2)! / (n - 1)!``; ``"banzhaf"``: ``p^|S| (1 - p)^(n - 2 - |S|)``.
    """
    n = game.n_players
    out = np.zeros((n, n))
    for i, j in itertools.combinations(range(n), 2):
        for inside in _subsets([k for k in range(n) if k not in (i, j)]):
            s = len(inside)
            if index == "shapley":
                weight = math.factorial(s) * math.factorial(n - s - 2) / math.factorial(n - 1)
            else:
                weight = p**s * (1 - p) ** (n - 2 - s)
            second = _v(game, *inside, i, j) - _v(game, *inside, i) - _v(game, *inside, j) + _v(game, *inside)
            out[i, j] += weight * second
    return out + out.T


def degree_two_fit(game: Game, p: float = 0.5) -> np.ndarray:
    """Pair coefficients (n, n) of the least-squares polynomial of degree 2 in the membership bits, Bernoulli(p) law."""
    rows, sizes, values = _all(game)
    n = game.n_players
    weight = p**sizes * (1 - p) ** (n - sizes)
    return _pairs(np.linalg.lstsq(rows * np.sqrt(weight)[:, None], values * np.sqrt(weight), rcond=None)[0], n)


def faithful_shapley_by_least_squares(game: Game) -> np.ndarray:
    """Pairs (n, n) of the faithful Shapley interaction of order 2: degree-2 fit with the Shapley kernel.

    The empty and the full coalition must be met exactly; the kernel is ``(s - 1)! (n - s - 1)!`` in between.  The
    equality constraints are eliminated through their null space.
    """
    rows, sizes, values = _all(game)
    n = game.n_players
    ends = (sizes == 0) | (sizes == n)
    fixed = np.linalg.lstsq(rows[ends], values[ends], rcond=None)[0]
    null = np.linalg.svd(rows[ends])[2][2:].T
    inner = rows[~ends]
    weight = np.sqrt([math.factorial(s - 1) * math.factorial(n - s - 1) for s in sizes[~ends]])
    free = np.linalg.lstsq(
        (inner @ null) * weight[:, None], (values[~ends] - inner @ fixed) * weight, rcond=None
    )[0]
    return _pairs(fixed + null @ free, n)


def _first(game: Game, weight: Callable[[int], float]) -> np.ndarray:
    n = game.n_players
    out = np.zeros(n)
    for i in range(n):
        for inside in _subsets([k for k in range(n) if k != i]):
            out[i] += weight(len(inside)) * (_v(game, *inside, i) - _v(game, *inside))
    return out


def _subsets(players: list[int]) -> Iterator[tuple[int, ...]]:
    for size in range(len(players) + 1):
        yield from itertools.combinations(players, size)


def _v(game: Game, *members: int) -> float:
    coalition = np.zeros(game.n_players, dtype=bool)
    coalition[list(members)] = True
    return game.value(coalition)


def _all(game: Game) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Monomials up to degree 2 (2^n, 1 + n + n(n-1)/2), sizes and values of all coalitions."""
    n = game.n_players
    bits = np.array(list(itertools.product([0.0, 1.0], repeat=n)))
    pairs = [bits[:, i] * bits[:, j] for i, j in itertools.combinations(range(n), 2)]
    rows = np.column_stack([np.ones(len(bits)), bits, *pairs])
    return rows, bits.sum(axis=1).astype(int), np.array([game.value(b.astype(bool)) for b in bits])


def _pairs(coefficients: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros((n, n))
    for c, (i, j) in zip(coefficients[1 + n :], itertools.combinations(range(n), 2), strict=True):
        out[i, j] = out[j, i] = c
    return out
