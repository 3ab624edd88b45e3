"""Bounds on the output gap as the solver's requirement: a mask within the limit is proved to stay within it."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..records import frozen_array
from .base import Surrogate

__all__ = ["GapNorm", "WorstRow"]


@dataclasses.dataclass(frozen=True, eq=False)
class WorstRow(Surrogate):
    """``drop(z) = max_k rows[k] @ z``: the largest bound among N samples (T1 of docs/bounds.md).

    With ``rows = gap.coefficients`` a limit on the drop is a limit on the gap of every sample.  With ``rows =
    sqrt(2) gap.coefficients / gap.margins[:, None]`` a drop below 1 keeps all predictions (T7).  A maximum of linear
    functions, so that its tangents are exact rows.

    Attributes:
        rows: float64 (N, n), at least 0.
    """

    rows: np.ndarray

    def __post_init__(self) -> None:
        rows = frozen_array(self.rows)
        if rows.ndim != 2 or len(rows) == 0 or not np.isfinite(rows).all() or (rows < 0).any():
            raise ValueError("rows: expected a matrix (N, n), N at least 1, of finite numbers that are at least 0")
        object.__setattr__(self, "rows", rows)

    @property
    def linear(self) -> np.ndarray:
        return np.zeros(self.rows.shape[1])

    @property
    def n_terms(self) -> int:
        return 1

    def terms(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        each = self.rows @ z
        worst = int(each.argmax())
        return each[worst : worst + 1], self.rows[worst : worst + 1]

    def drops(self, z: np.ndarray) -> np.ndarray:
        return np.asarray((np.asarray(z, dtype=np.float64) @ self.rows.T).max(-1))


@dataclasses.dataclass(frozen=True, eq=False)
class GapNorm(Surrogate):
    """``drop(z) = sum_l |factors[l] @ z|``: the bound on the root mean square gap (T2), one second-order cone a layer.

    Attributes:
        factors: float64 arrays (r_l, n), for example ``gap.factors``.
    """

    factors: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        factors = tuple(frozen_array(f) for f in self.factors)
        if not factors or any(f.ndim != 2 or f.shape[1] != factors[0].shape[-1] for f in factors):
            raise ValueError("factors: expected at least one matrix, all of the same number of columns")
        if not all(np.isfinite(f).all() for f in factors):
            raise ValueError("factors must be finite")
        object.__setattr__(self, "factors", factors)

    @property
    def linear(self) -> np.ndarray:
        return np.zeros(self.factors[0].shape[1])

    @property
    def n_terms(self) -> int:
        return len(self.factors)

    def terms(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, slopes = np.zeros(len(self.factors)), np.zeros((len(self.factors), self.n_units))
        for i, factor in enumerate(self.factors):
            along = factor @ z
            values[i] = np.linalg.norm(along)
            if values[i] > 0:  # 0 is a subgradient where nothing is removed
                slopes[i] = factor.T @ (along / values[i])
        return values, slopes

    def drops(self, z: np.ndarray) -> np.ndarray:
        z = np.asarray(z, dtype=np.float64)
        return np.asarray(sum(np.linalg.norm(z @ f.T, axis=-1) for f in self.factors))
