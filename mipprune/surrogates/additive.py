"""Additive surrogate: every unit has one price."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..records import frozen_array
from .base import Surrogate

__all__ = ["Additive"]


@dataclasses.dataclass(frozen=True, eq=False)
class Additive(Surrogate):
    """``drop(z) = importance @ z``.

    Attributes:
        importance: float64 array of shape (n,): estimated loss increase when unit i alone is removed (a semivalue, a
            leave-one-out difference, a Taylor score), in the units of the value function.

    Interactions between units are ignored: removing two copies of one feature looks free.
    """

    importance: np.ndarray

    def __post_init__(self) -> None:
        importance = frozen_array(self.importance)
        if importance.ndim != 1 or not np.isfinite(importance).all():
            raise ValueError("importance: expected a vector of finite numbers")
        object.__setattr__(self, "importance", importance)

    @property
    def linear(self) -> np.ndarray:
        return self.importance

    @property
    def n_terms(self) -> int:
        return 0

    def terms(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(0), np.zeros((0, self.n_units))

    def drops(self, z: np.ndarray) -> np.ndarray:
        return np.asarray(z, dtype=np.float64) @ self.importance
