"""Additive surrogates that pay for what the estimate doesn't know: standard errors enter the decision."""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np
from scipy import special

from ..errors import ConfigError
from ..estimate import Estimate
from ..records import frozen_array
from .base import Surrogate

__all__ = ["BudgetedAdditive", "RobustAdditive"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Uncertain(Surrogate):
    """``importance @ z`` and one convex term that grows with the deviations of the units removed.

    Attributes:
        importance: float64, shape (n,).
        deviation: float64, shape (n,), at least 0, in the same unit.
    """

    importance: np.ndarray
    deviation: np.ndarray

    def __post_init__(self) -> None:
        for name in ("importance", "deviation"):
            array = frozen_array(getattr(self, name))
            if array.ndim != 1 or not np.isfinite(array).all():
                raise ValueError(f"{name}: expected a vector of finite numbers")
            object.__setattr__(self, name, array)
        if self.importance.shape != self.deviation.shape or (self.deviation < 0).any():
            raise ValueError("deviation: expected one number per unit, none below 0")

    @property
    def linear(self) -> np.ndarray:
        return self.importance

    @property
    def n_terms(self) -> int:
        return 1


@dataclasses.dataclass(frozen=True, eq=False)
class RobustAdditive(_Uncertain):
    """``drop(z) = importance @ z + |deviation o z|``: the estimate plus kappa standard errors of the sum (a cone).

    For a mask, ``z_i^2 = z_i``, so the term is ``kappa sqrt(sum sigma_i^2 z_i)``, kappa standard errors of the sum if
    the units' errors are independent.  (Written with ``z_i`` it would be concave between masks; as a norm it is
    convex.)  Errors of units that were measured on the same coalitions are correlated: positively correlated ones make
    the true standard error larger, up to ``sum sigma_i z_i``, which is :class:`BudgetedAdditive` with a budget of n.
    Robust counterpart for an ellipsoid of errors: Ben-Tal and Nemirovski 1999.
    """

    @classmethod
    def from_estimate(cls, estimate: Estimate, kappa: float | None = None, confidence: float | None = None) -> Self:
        """Deviations of ``kappa`` standard errors, or of as many as a one-sided ``confidence`` above 0.5 takes.

        Raises:
            ConfigError: neither or both are given, or one is out of range.
        """
        return cls(estimate.values, _kappa(estimate, kappa, confidence) * estimate.stderr)

    def terms(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = self.deviation * z
        length = float(np.linalg.norm(scaled))
        slope = self.deviation * scaled / length if length > 0 else np.zeros(len(z))
        return np.array([length]), slope[None]

    def drops(self, z: np.ndarray) -> np.ndarray:
        z = np.asarray(z, dtype=np.float64)
        return z @ self.importance + np.linalg.norm(z * self.deviation, axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class BudgetedAdditive(_Uncertain):
    """``drop(z) = importance @ z +`` the sum of the ``budget`` largest ``deviation_i z_i``.

    The linear form of robustness: at most ``budget`` units are as bad as their deviation at once (Bertsimas and Sim
    2004, eq. 4).  A maximum of linear functions, so that its tangents are exact rows.

    Attributes:
        budget: at least 0; a fraction counts that much of the next largest.
    """

    budget: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.budget < np.inf:
            raise ValueError(f"budget: expected a number of units, at least 0, got {self.budget}")
        object.__setattr__(self, "budget", float(self.budget))

    @classmethod
    def from_estimate(
        cls, estimate: Estimate, budget: float, kappa: float | None = None, confidence: float | None = None
    ) -> Self:
        """The values of ``estimate``, deviations as in :meth:`RobustAdditive.from_estimate`.

        Args:
            estimate: sampled, else there are no deviations.
            budget: how many units are at their worst at once.
            kappa, confidence: give one: standard errors per deviation, or the one-sided confidence that they come from.

        Raises:
            ConfigError: neither or both are given, or one is out of range.
        """
        return cls(estimate.values, _kappa(estimate, kappa, confidence) * estimate.stderr, budget)

    @property
    def shares(self) -> np.ndarray:
        """How much of the largest, the second largest, ... deviation counts: float64, shape (n,)."""
        return np.clip(self.budget - np.arange(self.n_units), 0.0, 1.0)

    def worst(self, z: np.ndarray) -> np.ndarray:
        """How much of every unit's deviation counts at ``z``: float64, shape (n,)."""
        out = np.empty(self.n_units)
        out[np.argsort(-self.deviation * z, kind="stable")] = self.shares
        return out

    def terms(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slope = self.worst(z) * self.deviation
        return np.array([slope @ z]), slope[None]

    def drops(self, z: np.ndarray) -> np.ndarray:
        z = np.asarray(z, dtype=np.float64)
        return z @ self.importance - np.sort(-z * self.deviation, axis=-1) @ self.shares


def _kappa(estimate: Estimate, kappa: float | None, confidence: float | None) -> float:
    if (kappa is None) == (confidence is None):
        raise ConfigError("give kappa (a number of standard errors) or confidence (a probability), one of them")
    if kappa is not None:
        if not 0 <= kappa < np.inf:
            raise ConfigError(f"kappa={kappa}: expected a number of standard errors, at least 0")
        return float(kappa)
    assert confidence is not None
    if not 0.5 < confidence < 1:
        raise ConfigError(f"confidence={confidence}: expected a probability above 0.5 and below 1, e.g. 0.95")
    degrees = estimate.degrees_of_freedom
    return float(special.stdtrit(degrees, confidence) if degrees else special.ndtri(confidence))
