"""Quadratic surrogate: gradient and Gauss-Newton curvature in the gates of the units."""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np

from ..records import frozen_array
from .base import Surrogate

__all__ = ["Quadratic"]


@dataclasses.dataclass(frozen=True, eq=False)
class Quadratic(Surrogate):
    """``drop(z) = gradient @ z + 1/2 |factor @ z|^2``, convex by construction.

    Attributes:
        gradient: float64, shape (n,).
        factor: float64, shape (r, n), with ``factor.T @ factor`` the curvature.  Rows are the convex terms, so rows
            along principal axes (see :meth:`from_curvature`) make the tightest relaxation.
    """

    gradient: np.ndarray
    factor: np.ndarray

    def __post_init__(self) -> None:
        gradient, factor = frozen_array(self.gradient), frozen_array(self.factor)
        if gradient.ndim != 1 or factor.ndim != 2 or factor.shape[1] != len(gradient):
            raise ValueError(f"expected gradient (n,) and factor (r, n), got {gradient.shape} and {factor.shape}")
        if not (np.isfinite(gradient).all() and np.isfinite(factor).all()):
            raise ValueError("gradient and factor must be finite")
        object.__setattr__(self, "gradient", gradient)
        object.__setattr__(self, "factor", factor)

    @classmethod
    def from_curvature(cls, gradient: np.ndarray, curvature: np.ndarray, rtol: float = 1e-12) -> Self:
        """Factor a positive semidefinite ``curvature`` (n, n) along its principal axes, largest first.  O(n^3).

        Eigenvalues below ``rtol`` times the largest are dropped (they are rounding noise of either sign).

        Raises:
            ValueError: the curvature has an eigenvalue below ``-1e-6`` times the largest: it isn't semidefinite.
        """
        curvature = np.asarray(curvature, dtype=np.float64)
        values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
        top = max(float(values[-1]), 0.0) if len(values) else 0.0
        if len(values) and values[0] < -1e-6 * max(top, 1e-300):
            raise ValueError(f"curvature isn't positive semidefinite: eigenvalues from {values[0]:.3g} to {top:.3g}")
        use = values > rtol * top
        factor = (np.sqrt(values[use])[:, None] * vectors[:, use].T)[::-1]
        return cls(np.asarray(gradient, dtype=np.float64), factor)

    @property
    def curvature(self) -> np.ndarray:
        """``factor.T @ factor``, shape (n, n)."""
        return self.factor.T @ self.factor

    @property
    def linear(self) -> np.ndarray:
        return self.gradient

    @property
    def n_terms(self) -> int:
        return len(self.factor)

    def terms(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        along = self.factor @ z
        return 0.5 * along**2, along[:, None] * self.factor

    def drops(self, z: np.ndarray) -> np.ndarray:
        z = np.asarray(z, dtype=np.float64)
        return z @ self.gradient + 0.5 * ((z @ self.factor.T) ** 2).sum(-1)

    def drop_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        along = self.factor @ z
        return float(self.gradient @ z + 0.5 * along @ along), self.gradient + self.factor.T @ along
