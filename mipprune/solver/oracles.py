"""Convex functions of the undecided units, with the second derivatives that a branch and bound lives on."""

from __future__ import annotations

import abc
from typing import Self

import numpy as np

from ..surrogates.base import Surrogate
from ..surrogates.head import LinearHead
from ..surrogates.quadratic import Quadratic

__all__ = ["FunctionOracle", "HeadOracle", "Oracle", "QuadraticOracle", "oracle_of"]

#: So many pairs of classes, the heaviest, make a head's model curvature (90 to 99 % of it); no bound rests on it.
LEAST_ROWS, ROWS_PER_UNIT = 1000, 8


class Oracle(abc.ABC):
    """A convex function ``f`` of the removal vector of u units.

    Attributes:
        is_quadratic: the curvature is the same everywhere.
    """

    is_quadratic = False

    @abc.abstractmethod
    def value_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """``f(z)`` and its gradient (u,)."""

    @abc.abstractmethod
    def curvature(self, z: np.ndarray) -> np.ndarray:
        """Second derivatives at ``z``, shape (u, u), positive semidefinite.  A model: no bound may rest on it."""

    @abc.abstractmethod
    def values_around(self, z: np.ndarray, moves: list[np.ndarray]) -> np.ndarray:
        """``f`` at the mask ``z`` (float64 of zeros and ones) with the units of each move on the other side: (M,)."""

    @abc.abstractmethod
    def restrict(self, z: np.ndarray, loose: np.ndarray, probes: np.ndarray, error: float) -> Self | FunctionOracle:
        """A convex function of the ``loose`` units alone (int64 indices), the others at their values in ``z``.

        It lies nowhere above ``f``, and at the ``probes`` (shape (P, u)) at most about ``error`` below it.
        """


class QuadraticOracle(Oracle):
    """``constant + linear @ z + 1/2 z @ matrix @ z``."""

    is_quadratic = True

    def __init__(self, constant: float, linear: np.ndarray, matrix: np.ndarray) -> None:
        self.constant, self.linear, self.matrix = constant, linear, matrix

    def value_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        turn = self.matrix @ z
        return float(self.constant + self.linear @ z + 0.5 * z @ turn), self.linear + turn

    def curvature(self, z: np.ndarray) -> np.ndarray:
        return self.matrix

    def values_around(self, z: np.ndarray, moves: list[np.ndarray]) -> np.ndarray:
        value, gradient = self.value_and_gradient(z)
        step = 1.0 - 2.0 * z
        return np.array(
            [value + gradient[m] @ step[m] + 0.5 * step[m] @ self.matrix[np.ix_(m, m)] @ step[m] for m in moves]
        )

    def restrict(self, z: np.ndarray, loose: np.ndarray, probes: np.ndarray, error: float) -> QuadraticOracle:
        settled = z.copy()
        settled[loose] = 0.0
        value, gradient = self.value_and_gradient(settled)
        return QuadraticOracle(value, gradient[loose], self.matrix[np.ix_(loose, loose)])


class HeadOracle(Oracle):
    """Cross-entropy of a linear head on S samples, plus a linear function.

    Attributes:
        activations: float64 (S, u); ``weight``: float64 (C, u); ``logits``: float64 (S, C) with all u units on.
        targets: int64 (S,).
        scale: what the loss of one sample counts.
        constant, slope: the linear function, slope of shape (u,).
    """

    def __init__(
        self, activations: np.ndarray, weight: np.ndarray, logits: np.ndarray, targets: np.ndarray, scale: float,
        constant: float, slope: np.ndarray,
    ) -> None:
        self.activations, self.weight, self.logits, self.targets = activations, weight, logits, targets
        self.scale, self.constant, self.slope = scale, constant, slope
        self._samples = np.arange(len(targets))
        self._single = activations.astype(np.float32)

    @classmethod
    def of(cls, head: LinearHead, base: np.ndarray, free: np.ndarray) -> Self:
        """The drop of ``head`` as a function of the ``free`` units, the others removed as ``base`` says."""
        everything = np.array_equal(free, np.arange(head.n_units))
        on = np.ones(head.n_units) - base
        return cls(
            head.activations if everything else np.ascontiguousarray(head.activations[:, free]),
            head.weight[:, free],
            head.activations @ (head.weight * on).T + head.bias,
            head.targets,
            1.0 / len(head.targets),
            -float(head.dense_losses.mean()),
            np.zeros(len(free)),
        )

    def _shifted(self, z: np.ndarray) -> np.ndarray:
        return self.logits - self.activations @ (self.weight * z).T

    def _losses(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses (..., S) and probabilities (..., S, C) at logits (..., S, C)."""
        logits = logits - logits.max(-1, keepdims=True)
        p = np.exp(logits)
        total = p.sum(-1)
        p /= total[..., None]
        return np.log(total) - logits[..., self._samples, self.targets], p

    def _residuals(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        losses, residual = self._losses(self._shifted(z))
        residual[self._samples, self.targets] -= 1.0
        return losses, residual

    def value_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        losses, residual = self._residuals(z)
        gradient = self.slope - self.scale * ((residual.T @ self.activations) * self.weight).sum(0)
        return float(self.constant + self.slope @ z + self.scale * losses.sum()), gradient

    def curvature(self, z: np.ndarray) -> np.ndarray:
        """``sum p_ki p_kj v v'`` with ``v = a_k o (W_i - W_j)`` over the samples k and the pairs of classes i < j.

        That is the Gauss-Newton matrix, since ``diag p - p p' = sum_{i<j} p_i p_j (e_i - e_j)(e_i - e_j)'``, and most
        samples have one pair that matters.
        """
        _, p = self._losses(self._shifted(z))
        first, second = np.triu_indices(len(self.weight), 1)
        weights = p[:, first] * p[:, second]
        heaviest = max(LEAST_ROWS, ROWS_PER_UNIT * len(z))
        if weights.size > heaviest:
            chosen = np.sort(np.argpartition(weights, -heaviest, axis=None)[-heaviest:])
        else:
            chosen = np.arange(weights.size)
        sample, pair = np.unravel_index(chosen, weights.shape)
        rows = (self.weight[first] - self.weight[second]).astype(np.float32)[pair]
        rows *= self._single[sample]
        rows *= np.sqrt(self.scale * weights[sample, pair]).astype(np.float32)[:, None]
        return np.asarray(rows.T @ rows, dtype=np.float64)

    def values_around(self, z: np.ndarray, moves: list[np.ndarray]) -> np.ndarray:
        """O(S C) per move and unit, where a fresh evaluation takes O(S C u)."""
        logits, step = self._shifted(z), 1.0 - 2.0 * z
        linear = self.constant + self.slope @ z
        out = np.empty(len(moves))
        for row, units in enumerate(moves):
            change = self.activations[:, units] @ (self.weight[:, units] * step[units]).T
            losses, _ = self._losses(logits - change)
            out[row] = linear + self.slope[units] @ step[units] + self.scale * losses.sum()
        return out

    def restrict(self, z: np.ndarray, loose: np.ndarray, probes: np.ndarray, error: float) -> HeadOracle:
        """Samples whose losses hardly leave their tangents at ``z`` are replaced by these: a lower bound still."""
        logits = self._shifted(z)
        losses, residual = self._residuals(z)
        excess = np.zeros(len(losses))
        for probe in probes:  # loss minus tangent, largest over the probes
            there = self._shifted(probe)
            tangent = losses + (residual * (there - logits)).sum(1)
            np.maximum(excess, self._losses(there)[0] - tangent, out=excess)
        order = np.argsort(excess, kind="stable")
        out = order[: int(np.searchsorted(self.scale * np.cumsum(excess[order]), error))]
        use = np.setdiff1d(self._samples, out)
        tangent = self.slope - self.scale * ((residual[out].T @ self.activations[out]) * self.weight).sum(0)
        settled = z.copy()
        settled[loose] = 0.0
        return HeadOracle(
            np.ascontiguousarray(self.activations[np.ix_(use, loose)]),
            np.ascontiguousarray(self.weight[:, loose]),
            self.logits[use] - self.activations[use] @ (self.weight * settled).T,
            self.targets[use],
            self.scale,
            # slope @ settled + tangents of those left out, which pass through their losses at z
            float(self.constant + self.scale * losses[out].sum() + self.slope @ z - tangent[loose] @ z[loose]),
            tangent[loose],
        )


class FunctionOracle(Oracle):
    """Any convex surrogate, as a function of the free units; the others removed as ``base`` says."""

    def __init__(self, surrogate: Surrogate, base: np.ndarray, free: np.ndarray) -> None:
        self.surrogate, self.base, self.free = surrogate, base, free

    def _embed(self, z: np.ndarray) -> np.ndarray:
        full = np.broadcast_to(self.base, (*z.shape[:-1], len(self.base))).copy()
        full[..., self.free] = z
        return full

    def value_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = self.surrogate.drop_and_gradient(self._embed(z))
        return value, gradient[self.free]

    def curvature(self, z: np.ndarray) -> np.ndarray:
        """Differences of u gradients, and the nearest positive semidefinite matrix to them."""
        gradient = self.value_and_gradient(z)[1]
        columns = np.empty((len(z), len(z)))
        for unit in range(len(z)):
            moved = z.copy()
            moved[unit] += 1e-4 if z[unit] < 0.5 else -1e-4
            columns[:, unit] = (self.value_and_gradient(moved)[1] - gradient) / (moved[unit] - z[unit])
        values, vectors = np.linalg.eigh(0.5 * (columns + columns.T))
        return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)

    def values_around(self, z: np.ndarray, moves: list[np.ndarray]) -> np.ndarray:
        masks = np.repeat(z[None], len(moves), axis=0)
        for row, units in zip(masks, moves, strict=True):
            row[units] = 1.0 - row[units]
        return self.surrogate.drops(self._embed(masks)) if len(moves) else np.zeros(0)

    def restrict(self, z: np.ndarray, loose: np.ndarray, probes: np.ndarray, error: float) -> FunctionOracle:
        return FunctionOracle(self.surrogate, self._embed(z), self.free[loose])


def oracle_of(surrogate: Surrogate, base: np.ndarray, free: np.ndarray) -> Oracle:
    """The drop as a function of the ``free`` units (int64 indices), the others removed as ``base`` (n,) says."""
    if isinstance(surrogate, LinearHead):
        return HeadOracle.of(surrogate, base, free)
    if isinstance(surrogate, Quadratic) or surrogate.is_linear:
        value, gradient = surrogate.drop_and_gradient(base)
        factor = surrogate.factor[:, free] if isinstance(surrogate, Quadratic) else np.zeros((0, len(free)))
        return QuadraticOracle(value, gradient[free], factor.T @ factor)
    return FunctionOracle(surrogate, base, free)
