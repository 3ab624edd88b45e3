"""The contract between what was measured and what a solver is asked."""

from __future__ import annotations

import abc
import dataclasses

import numpy as np

from ..records import Record

__all__ = ["Surrogate"]


@dataclasses.dataclass(frozen=True, eq=False)
class Surrogate(Record, abc.ABC):
    """Estimated loss increase as a *convex* function of the removal vector ``z`` in ``[0, 1]^n`` (1 = removed).

    ``drop(z) = linear @ z + sum_b term_b(z)``: an exactly linear part and B convex smooth terms.  Solvers keep the
    linear part as a row and approximate each term from below by its tangents, so more (and more one-dimensional)
    terms make tighter relaxations.  ``drop(0)`` is 0.  The drop may be negative: removing a harmful unit helps.

    A subclass is a frozen dataclass of numpy data and implements :attr:`linear`, :attr:`n_terms`, :meth:`terms` and
    :meth:`drops`.  All numbers are float64.  ``mipprune.testing.SurrogateContract`` checks an implementation.
    """

    @property
    @abc.abstractmethod
    def linear(self) -> np.ndarray:
        """The linear part, shape (n,)."""

    @property
    @abc.abstractmethod
    def n_terms(self) -> int:
        """Number B of convex terms; 0 means that the surrogate is linear."""

    @abc.abstractmethod
    def terms(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (B,) and gradients (B, n) of the convex terms at ``z`` of shape (n,)."""

    @abc.abstractmethod
    def drops(self, z: np.ndarray) -> np.ndarray:
        """``drop`` of every row of ``z`` (shape (M, n)): shape (M,).  May work row by row or all at once."""

    @property
    def n_units(self) -> int:
        """Number of units n."""
        return len(self.linear)

    @property
    def is_linear(self) -> bool:
        """Whether there are no convex terms, so that the drop is one row of a program."""
        return self.n_terms == 0

    def drop(self, z: np.ndarray) -> float:
        """``drop(z)`` of one removal vector."""
        return float(self.drops(np.asarray(z, dtype=np.float64)[None])[0])

    def drop_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """``drop(z)`` and its gradient of shape (n,)."""
        values, gradients = self.terms(z)
        return float(self.linear @ z + values.sum()), self.linear + gradients.sum(0)
