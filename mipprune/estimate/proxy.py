"""A quadratic proxy of a game as control variate: what it explains is known exactly, only the rest is sampled."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..game.base import Game
from .blocks import State
from .density import Density
from .designs import uniforms
from .sampling import Source

__all__ = ["AdjustedSource", "QuadraticProxy", "ResidualGame", "draw_pilot", "fit_proxy", "pilot_size"]

#: Most coalitions that a proxy is fitted to: the fit takes time cubic in their number, about a second for these.
MOST_PILOTS = 1024

#: Ridge parameters that are tried, relative to the kernel's mean eigenvalue.
RIDGES = 10.0 ** np.arange(-8, 3)


@dataclasses.dataclass(frozen=True)
class QuadraticProxy:
    """``q(S) = constant + b'x + x'Px`` in the memberships ``x_i = [i in S]``, P symmetric with a zero diagonal.

    Where every other player is in with mean probability p, the mean first difference is ``b_i + 2 p sum_j P_ij``: the
    p-binomial semivalue, and for p = 1/2 also any index whose law is symmetric, such as Shapley's (our derivation).

    The coefficients lie on a binary grid on which all partial sums are exact floats, so ``q`` has the same bits in
    whatever batch a coalition comes.

    Attributes:
        p: mean membership of the index the proxy is for.
        linear: float64 (n,), b.
        pairs: float64 (n, n), P.
        explained: share of the pilot's variance that a fit without each coalition predicts of it.
    """

    p: float
    constant: float
    linear: np.ndarray
    pairs: np.ndarray
    explained: float

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        """``q`` of coalitions (bool, (M, n)): float64 (M,)."""
        x = coalitions.astype(np.float64)
        return self.constant + x @ self.linear + ((x @ self.pairs) * x).sum(axis=1)

    @property
    def index(self) -> np.ndarray:
        """The proxy's own semivalue (Shapley value for p = 1/2): float64 (n,)."""
        return self.linear + 2 * self.p * self.pairs.sum(axis=1)


def pilot_size(n_evals: int) -> int:
    """Coalitions of a budget that are spent on the proxy: a quarter, 1024 at most."""
    return min(MOST_PILOTS, n_evals // 4)


def draw_pilot(seed: int, count: int, n_players: int, density: Density) -> np.ndarray:
    """Coalitions with the law of ``density``, independent of those that the same ``seed`` gives the sampling."""
    stream = int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0])
    u = uniforms(stream, 0, count, 1 + n_players)
    return density.masks(u, antithetic=False)[0]


def fit_proxy(coalitions: np.ndarray, values: np.ndarray, density: Density) -> QuadraticProxy:
    """Kernel ridge regression on all single players and pairs, with the ridge of least leave-one-out error.

    Memberships are standardised, ``z_i = (x_i - p) / sqrt(p (1 - p))``.  The kernel is ``1 + (z.w) / n + e2 / C(n, 2)``
    with e2 the sum of products over pairs, ``((z.w)^2 - (z^2).(w^2)) / 2``: its features are a constant, all
    memberships and all products of two, orthogonal under independent memberships, without ever writing them down.
    Time O(m^3 + m^2 n + m n^2), memory O(m^2 + n^2) for m coalitions.
    """
    p = 0.5 if density.p is None else density.p
    scale = 1.0 / np.sqrt(p * (1 - p))
    z = (coalitions - p) * scale
    m, n = z.shape
    n_pairs = max(1, n * (n - 1) // 2)
    dot = z @ z.T
    kernel = 1 + dot / n + (dot**2 - (z**2) @ (z**2).T) / (2 * n_pairs)
    mean = float(values.mean())
    level, basis = np.linalg.eigh(kernel)
    level = np.maximum(level, 0.0)
    rotated = basis.T @ (values - mean)
    best = (np.inf, np.zeros(m))
    for ridge in RIDGES * max(float(level.mean()), 1e-300):
        weight = basis @ (rotated / (level + ridge))
        left_out = weight / ((basis**2) @ (1.0 / (level + ridge)))  # residual of each value, predicted without it
        error = float((left_out**2).sum())
        if error < best[0]:
            best = (error, weight)
    error, weight = best
    variance = float(((values - mean) ** 2).sum())
    explained = 1.0 - error / variance if variance > 0 else 0.0
    linear, pairs = z.T @ weight / n, (z * weight[:, None]).T @ z / n_pairs
    pairs = (pairs + pairs.T) / 2
    np.fill_diagonal(pairs, 0.0)
    # from z to the memberships x themselves
    linear, pairs = scale * linear, scale**2 * pairs / 2
    constant = mean + weight.sum() - p * linear.sum() + p**2 * pairs.sum()
    linear = linear - 2 * p * pairs.sum(axis=1)
    total = abs(constant) + np.abs(linear).sum() + np.abs(pairs).sum()
    grid = 2.0 ** (np.ceil(np.log2(max(total, 1e-300))) - 52)
    constant, linear, pairs = (np.round(part / grid) * grid for part in (constant, linear, pairs))
    return QuadraticProxy(p, float(constant), linear, pairs, explained)


class ResidualGame(Game):
    """What a proxy leaves unexplained: ``v(S) - q(S)``."""

    def __init__(self, game: Game, proxy: QuadraticProxy) -> None:
        self.game, self.proxy = game, proxy

    @property
    def n_players(self) -> int:
        return self.game.n_players

    @property
    def player_names(self) -> tuple[str, ...]:
        return self.game.player_names

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        return self.game.values(coalitions) - self.proxy.values(coalitions)


class AdjustedSource(Source):
    """Another source on the residual game, with the proxy's own index added: unbiased if that source is.

    The proxy comes from coalitions of its own, so given the proxy the replicates are independent of it.
    """

    def __init__(self, inner: Source, proxy: QuadraticProxy) -> None:
        self.inner, self.proxy = inner, proxy
        self.size, self.cost, self.least = inner.size, inner.cost, inner.least

    def replicates(self, first: int, count: int) -> np.ndarray:
        return self.inner.replicates(first, count)

    def empty(self) -> State:
        return self.inner.empty()

    def finish(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        means, sizes = self.inner.finish(state)
        return means + self.proxy.index, sizes
