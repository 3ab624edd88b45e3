"""Convex surrogate of one layer: cross-entropy of an auxiliary linear head on the layer's masked activations."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import log_softmax

from ..records import frozen_array
from .base import Surrogate

__all__ = ["LinearHead"]


@dataclasses.dataclass(frozen=True, eq=False)
class LinearHead(Surrogate):
    """``drop(z) = mean_k [ CE(weight (a_k o (1 - z)) + bias, y_k) - CE(weight a_k + bias, y_k) ]``.

    The logits are affine in ``z`` and cross-entropy is convex in the logits, so the drop is convex in ``z``: this is
    the decoupled layer problem of 2002.07259 made convex (our form).

    Attributes:
        activations: float64, shape (N, n), one number per sample and unit.
        weight: float64, shape (C, n).
        bias: float64, shape (C,).
        targets: int64, shape (N,), classes in [0, C).
        samples_of_term: the samples are cut into this many groups of nearly equal size, one convex term each.
    """

    activations: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    targets: np.ndarray
    samples_of_term: int = 16

    def __post_init__(self) -> None:
        a, w, b = frozen_array(self.activations), frozen_array(self.weight), frozen_array(self.bias)
        y = frozen_array(self.targets, np.int64)
        if a.ndim != 2 or w.shape != (len(b), a.shape[1]) or y.shape != (len(a),) or len(a) == 0:
            raise ValueError(
                f"expected activations (N, n), weight (C, n), bias (C,), targets (N,), "
                f"got {a.shape}, {w.shape}, {b.shape}, {y.shape}"
            )
        if not all(np.isfinite(x).all() for x in (a, w, b)):
            raise ValueError("activations, weight and bias must be finite")
        if y.min() < 0 or y.max() >= len(b):
            raise ValueError(f"targets must lie in [0, {len(b)}), got {y.min()}..{y.max()}")
        for name, value in (("activations", a), ("weight", w), ("bias", b), ("targets", y)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "samples_of_term", max(1, min(int(self.samples_of_term), len(a))))

    @property
    def linear(self) -> np.ndarray:
        return np.zeros(self.activations.shape[1])

    @property
    def n_terms(self) -> int:
        return self.samples_of_term

    def _losses(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per-sample loss (N,) and log-probabilities (N, C)."""
        logp = log_softmax(self.activations @ (self.weight * (1.0 - z)).T + self.bias, axis=1)
        return -logp[np.arange(len(logp)), self.targets], logp

    @property
    def dense_losses(self) -> np.ndarray:
        """Per-sample cross-entropy of the head on the unmasked activations, shape (N,)."""
        cached = self.__dict__.get("_dense_losses")
        if cached is None:
            cached = frozen_array(self._losses(np.zeros(self.n_units))[0])
            object.__setattr__(self, "_dense_losses", cached)
        return cached

    def _starts(self) -> np.ndarray:
        n = len(self.activations)
        return (np.arange(self.samples_of_term) * n) // self.samples_of_term

    def terms(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        losses, logp = self._losses(z)
        n, starts = len(losses), self._starts()
        residual = np.exp(logp)
        residual[np.arange(n), self.targets] -= 1.0
        values = np.add.reduceat(losses - self.dense_losses, starts) / n
        parts = [slice(*ends) for ends in zip(starts, [*starts[1:], n], strict=True)]
        return values, np.array([self._gradient(residual[part], self.activations[part]) for part in parts]) / n

    def _gradient(self, residual: np.ndarray, activations: np.ndarray) -> np.ndarray:
        """Gradient (n,) of the summed loss of some samples from their residuals (M, C).  O(M C n), nothing larger."""
        return -((residual.T @ activations) * self.weight).sum(0)

    def drops(self, z: np.ndarray) -> np.ndarray:
        base = self.dense_losses.mean()
        return np.array([self._losses(row)[0].mean() - base for row in np.asarray(z, dtype=np.float64)])

    def drop_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        losses, logp = self._losses(z)
        residual = np.exp(logp)
        residual[np.arange(len(losses)), self.targets] -= 1.0
        gradient = self._gradient(residual, self.activations) / len(losses)
        return float(losses.mean() - self.dense_losses.mean()), gradient
