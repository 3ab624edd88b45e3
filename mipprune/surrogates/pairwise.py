"""Pairwise surrogate: every unit has a price, and some pairs of units are worth more or less together."""

from __future__ import annotations

import dataclasses
from typing import Self

import networkx as nx
import numpy as np

from ..errors import ConfigError
from ..estimate import Estimate, Interactions
from ..records import frozen_array
from .base import Surrogate
from .quadratic import Quadratic

__all__ = ["Pairwise"]


@dataclasses.dataclass(frozen=True, eq=False)
class Pairwise(Surrogate):
    """``drop(z) = importance @ z - sum_p interaction_p z_i z_j`` at masks, p over the pairs (i, j).

    Products make it non-convex in general.  Between masks every product is replaced by its convex envelope on the box,
    ``-I z_i z_j`` by ``-I max(0, z_i + z_j - 1)`` for I < 0 and by ``-I min(z_i, z_j)`` for I > 0 (McCormick 1976), so
    each pair is one convex term that is exact at masks, and two tangents are all of it.  :meth:`convexified` is another
    surrogate that is equal at masks.

    Attributes:
        importance: float64, shape (n,): drop when a unit goes alone.
        pairs: int64, shape (P, 2), ``i < j``, each pair at most once.
        interaction: float64, shape (P,): ``v(S+i+j) - v(S+i) - v(S+j) + v(S)``; positive ones are worth more together.
    """

    importance: np.ndarray
    pairs: np.ndarray
    interaction: np.ndarray

    def __post_init__(self) -> None:
        for name, dtype in (("importance", float), ("pairs", np.int64), ("interaction", float)):
            object.__setattr__(self, name, frozen_array(getattr(self, name), dtype))
        n, pairs = len(self.importance), self.pairs
        if self.importance.ndim != 1 or pairs.shape != (len(self.interaction), 2):
            raise ValueError(
                f"expected importance (n,), pairs (P, 2), interaction (P,), "
                f"got {self.importance.shape}, {pairs.shape}, {self.interaction.shape}"
            )
        if not (np.isfinite(self.importance).all() and np.isfinite(self.interaction).all()):
            raise ValueError("importance and interaction must be finite")
        if len(pairs) and not ((pairs[:, 0] >= 0) & (pairs[:, 0] < pairs[:, 1]) & (pairs[:, 1] < n)).all():
            raise ValueError(f"pairs: expected unit numbers i < j below {n}")
        if len(np.unique(pairs, axis=0)) != len(pairs):
            raise ValueError("pairs: a pair appears twice")

    @classmethod
    def from_estimates(
        cls, estimate: Estimate, interactions: Interactions, level: float = 0.95, max_pairs: int | None = None
    ) -> Self:
        """The quadratic game that has these indices, with the pairs that differ from 0 significantly.

        A game of degree 2 with pair coefficients I has the slope ``phi_i + (1 - p) sum_j I_ij`` at the full coalition,
        where phi is its p-binomial semivalue (Shapley: p = 1/2): a unit's price alone.

        Args:
            estimate: Shapley, Banzhaf, p-binomial or leave-one-out values of the same game.
            interactions: its pairs, of :func:`mipprune.interactions`.
            level: a pair is kept if its confidence interval at this level leaves 0 out.
            max_pairs: at most so many, the strongest ones.

        Raises:
            ConfigError: different players, or an index without a p.
        """
        n = estimate.n_players
        if interactions.n_players != n:
            raise ConfigError(f"the estimate has {n} players, the interactions {interactions.n_players}")
        p = 0.5 if estimate.index == "shapley" else estimate.p
        if p is None:
            raise ConfigError(f"values of index {estimate.index!r} don't say at which coalitions they were taken")
        low, high = interactions.confidence_interval(level)
        pairs = interactions.top(n * (n - 1) // 2)  # strongest first
        i, j = pairs.T
        pairs = pairs[((low > 0) | (high < 0))[i, j]][:max_pairs]
        strength = interactions.values[pairs[:, 0], pairs[:, 1]]
        together = np.zeros(n)
        np.add.at(together, pairs.ravel(), np.repeat(strength, 2))
        return cls(estimate.values + (1.0 - p) * together, pairs, strength)

    @property
    def linear(self) -> np.ndarray:
        return self.importance

    @property
    def n_terms(self) -> int:
        return len(self.interaction)

    def pieces(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The linear piece of every pair's envelope that is active at ``z``: constants (P,) and slopes (P, 2)."""
        zi, zj = z[self.pairs[:, 0]], z[self.pairs[:, 1]]
        weight = -self.interaction
        both = (weight > 0) & (zi + zj > 1)
        first = (weight < 0) & (zi <= zj)
        second = (weight < 0) & (zi > zj)
        slopes = np.stack([np.where(both | first, weight, 0.0), np.where(both | second, weight, 0.0)], axis=1)
        return np.where(both, -weight, 0.0), slopes

    def terms(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        constants, slopes = self.pieces(z)
        gradients = np.zeros((self.n_terms, self.n_units))
        np.put_along_axis(gradients, self.pairs, slopes, axis=1)
        return constants + (slopes * z[self.pairs]).sum(1), gradients

    def drops(self, z: np.ndarray) -> np.ndarray:
        z = np.asarray(z, dtype=np.float64)
        zi, zj = z[:, self.pairs[:, 0]], z[:, self.pairs[:, 1]]
        weight = -self.interaction
        envelope = np.where(weight > 0, np.maximum(zi + zj - 1.0, 0.0), np.minimum(zi, zj))
        return z @ self.importance + envelope @ weight

    def components(self) -> list[np.ndarray]:
        """The interaction graph's connected components: unit numbers, ascending; units without a pair are alone."""
        graph = nx.Graph()
        graph.add_nodes_from(range(self.n_units))
        graph.add_edges_from(self.pairs[self.interaction != 0].tolist())
        return [np.array(sorted(part), dtype=np.int64) for part in nx.connected_components(graph)]

    def restricted(self, units: np.ndarray) -> Self:
        """The surrogate of some units (ascending) alone, the others kept."""
        inside = np.isin(self.pairs, units).all(1)
        return type(self)(
            self.importance[units], np.searchsorted(units, self.pairs[inside]), self.interaction[inside]
        )

    def convexified(self) -> Quadratic:
        """A convex quadratic that is equal at masks.  O(n^3).

        On masks ``d (z_i^2 - z_i) = 0``, so that a multiple d of the identity may be added to the curvature and taken
        off the slopes; per component, d is the least that makes it semidefinite (Hammer and Rubin 1970).
        """
        curvature = np.zeros((self.n_units, self.n_units))
        i, j = self.pairs.T
        curvature[i, j] = curvature[j, i] = -self.interaction
        shift = np.zeros(self.n_units)
        for part in self.components():
            block = curvature[np.ix_(part, part)]
            values = np.linalg.eigvalsh(block)
            shift[part] = max(0.0, -values[0]) + 1e-12 * np.abs(values).max()
        return Quadratic.from_curvature(self.importance - 0.5 * shift, curvature + np.diag(shift))
