"""What a network costs as an exact function of how many units each group keeps.

A linear or convolution layer costs (inputs kept) x (outputs kept) x (a constant), a bias or a batch-norm parameter
costs (units kept) x (a constant).  So every cost is a polynomial of degree two in the kept counts, with integer
coefficients, and nothing needs to be estimated.  This module knows neither torch nor solvers.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .errors import BudgetError
from .records import Record

__all__ = ["BilinearCost", "CostModel"]


@dataclasses.dataclass(frozen=True, eq=False)
class BilinearCost(Record):
    """``constant + sum_g linear[g] k_g + sum_t coefficient[t] k_{left[t]} k_{right[t]}``, all integers.

    Attributes:
        constant: cost of what can't be pruned.
        linear: int64 array of shape (G,).
        left, right: int64 arrays of shape (T,), group numbers with ``left <= right``; ``left == right`` is a square.
        coefficient: int64 array of shape (T,).
    """

    constant: int
    linear: np.ndarray
    left: np.ndarray
    right: np.ndarray
    coefficient: np.ndarray

    def __call__(self, counts: np.ndarray) -> int:
        """Cost at the kept ``counts`` (shape (G,), integers); exact."""
        k = np.asarray(counts, dtype=np.int64)
        return int(self.constant + self.linear @ k + (self.coefficient * k[self.left] * k[self.right]).sum())

    def marginal(self, counts: np.ndarray) -> np.ndarray:
        """Cost saved by removing one more unit of each group, others unchanged: int64 of shape (G,)."""
        k = np.asarray(counts, dtype=np.int64)
        saved = self.linear.astype(np.int64).copy()
        cross = self.left != self.right
        np.add.at(saved, self.left[cross], self.coefficient[cross] * k[self.right[cross]])
        np.add.at(saved, self.right[cross], self.coefficient[cross] * k[self.left[cross]])
        square = ~cross
        np.add.at(saved, self.left[square], self.coefficient[square] * (2 * k[self.left[square]] - 1))
        return saved


@dataclasses.dataclass(frozen=True, eq=False)
class CostModel(Record):
    """The prunable groups of a network and its costs.

    Attributes:
        groups: G group names.
        sizes: int64 array of shape (G,), units per group.
        resources: name -> cost; a traced network has ``"units"``, ``"params"`` and ``"macs"``.
    """

    groups: tuple[str, ...]
    sizes: np.ndarray
    resources: dict[str, BilinearCost]

    @property
    def n_units(self) -> int:
        return int(self.sizes.sum())

    @property
    def group_of_unit(self) -> np.ndarray:
        """Group number of every unit: int64 of shape (n_units,), ascending (units are numbered group by group)."""
        return np.repeat(np.arange(len(self.groups)), self.sizes)

    def counts(self, kept: np.ndarray) -> np.ndarray:
        """Kept units per group of a boolean mask of shape (n_units,): int64 of shape (G,)."""
        return np.bincount(self.group_of_unit, weights=np.asarray(kept, float), minlength=len(self.groups)).astype(int)

    def cost(self, resource: str, counts: np.ndarray) -> int:
        """Cost of ``resource`` at the kept ``counts``; raises :class:`BudgetError` on an unknown resource."""
        return self[resource](counts)

    def __getitem__(self, resource: str) -> BilinearCost:
        try:
            return self.resources[resource]
        except KeyError:
            raise BudgetError(f"unknown resource {resource!r}; this network has {sorted(self.resources)}") from None

    @classmethod
    def units_only(cls, n: int, name: str = "units") -> CostModel:
        """One group of ``n`` units that cost one each: enough to solve a stored game with no network at hand."""
        none = np.zeros(0, dtype=np.int64)
        unit = BilinearCost(0, np.ones(1, dtype=np.int64), none, none, none)
        return cls((name,), np.array([n], dtype=np.int64), {"units": unit})
