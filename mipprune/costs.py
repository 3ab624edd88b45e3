"""What a network costs as an exact function of how many units each group keeps.

A linear or convolution layer costs (inputs kept) x (outputs kept) x (a constant), a bias or a batch-norm parameter
costs (units kept) x (a constant).  So every cost is a polynomial of degree two in the kept counts, with integer
coefficients, and nothing needs to be estimated.  This module knows neither torch nor solvers.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Self

import numpy as np

from .errors import BudgetError
from .records import Record, frozen_array

__all__ = ["BilinearCost", "Cost", "CostModel", "TabulatedCost"]


@dataclasses.dataclass(frozen=True, eq=False)
class Cost(Record, abc.ABC):
    """A whole number that depends on the kept counts k of the groups, through one or two of them at a time.

    Attributes:
        constant: cost of what can't be pruned.
    """

    constant: int

    @abc.abstractmethod
    def of_counts(self, counts: np.ndarray) -> np.ndarray:
        """Costs of many count vectors (M, G): int64, shape (M,)."""

    @abc.abstractmethod
    def tables(self, counts: Sequence[np.ndarray]) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """The cost without its constant, as a sum of tables over some counts of every group.

        Args:
            counts: G vectors of kept counts.

        Returns:
            Groups (one, or two ascending, each at most once) and int64 tables with one axis per group.
        """

    @property
    @abc.abstractmethod
    def lattice(self) -> tuple[int, int]:
        """``(offset, unit)`` so that every cost is ``offset`` plus a multiple of ``unit``."""

    @property
    @abc.abstractmethod
    def monotone(self) -> bool:
        """Whether keeping less never costs more."""

    @property
    @abc.abstractmethod
    def groups(self) -> frozenset[int]:
        """Numbers of the groups that the cost depends on."""

    @property
    @abc.abstractmethod
    def pairs(self) -> frozenset[tuple[int, int]]:
        """The pairs of different groups (ascending) whose counts act together."""

    def __call__(self, counts: np.ndarray) -> int:
        """Cost at the kept ``counts`` (shape (G,), integers); exact."""
        return int(self.of_counts(np.asarray(counts, dtype=np.int64)[None])[0])

    def marginal(self, counts: np.ndarray) -> np.ndarray:
        """Cost saved by removing one more unit of each group at the kept ``counts``, (G,): int64 (G,), 0 if empty."""
        k = np.asarray(counts, dtype=np.int64)
        fewer = np.maximum(k - np.eye(len(k), dtype=np.int64), 0)
        return np.asarray(self(k) - self.of_counts(fewer))


@dataclasses.dataclass(frozen=True, eq=False)
class BilinearCost(Cost):
    """``constant + sum_g linear[g] k_g + sum_t coefficient[t] k_{left[t]} k_{right[t]}``, all integers.

    Attributes:
        constant: cost of what can't be pruned.
        linear: int64 array of shape (G,).
        left, right: int64 arrays of shape (T,), group numbers with ``left <= right``; ``left == right`` is a square.
        coefficient: int64 array of shape (T,).
    """

    linear: np.ndarray
    left: np.ndarray
    right: np.ndarray
    coefficient: np.ndarray

    def of_counts(self, counts: np.ndarray) -> np.ndarray:
        products = (self.coefficient * counts[:, self.left] * counts[:, self.right]).sum(1)
        return np.asarray(self.constant + counts @ self.linear + products)

    def tables(self, counts: Sequence[np.ndarray]) -> list[tuple[tuple[int, ...], np.ndarray]]:
        found: dict[tuple[int, ...], np.ndarray] = {
            (group,): factor * counts[group] for group, factor in enumerate(self.linear) if factor
        }
        for g, h, factor in zip(self.left.tolist(), self.right.tolist(), self.coefficient.tolist()):
            a, b = min(g, h), max(g, h)
            table = factor * (counts[a] ** 2 if a == b else np.multiply.outer(counts[a], counts[b]))
            scope = (a,) if a == b else (a, b)
            found[scope] = found[scope] + table if scope in found else table
        return list(found.items())

    @property
    def lattice(self) -> tuple[int, int]:
        return int(self.constant), math.gcd(*self.linear.tolist(), *self.coefficient.tolist()) or 1

    @property
    def monotone(self) -> bool:
        return bool((self.linear >= 0).all() and (self.coefficient >= 0).all())

    @property
    def groups(self) -> frozenset[int]:
        used = self.coefficient != 0
        return frozenset(np.concatenate([np.flatnonzero(self.linear), self.left[used], self.right[used]]).tolist())

    @property
    def pairs(self) -> frozenset[tuple[int, int]]:
        joint = (self.coefficient != 0) & (self.left != self.right)
        ends = zip(self.left[joint].tolist(), self.right[joint].tolist())
        return frozenset((min(pair), max(pair)) for pair in ends)

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
class TabulatedCost(Cost):
    """``constant + sum_t table_t[k_{left[t]}, k_{right[t]}]``: a cost measured at every width, latency for example.

    A layer's latency depends on the counts of its inputs and its outputs, so a network's is a sum over neighbouring
    groups.  State it in whole small units (nanoseconds): solvers and certificates treat it exactly.

    Attributes:
        left, right: int64, shape (T,): group numbers, ``left < right``, or ``left == right`` for a table of one count.
        values: T int64 arrays of shape (size of left + 1, size of right + 1), or (size + 1,) for one count; entry
            [a, b] is the cost when a and b units are kept.
    """

    left: np.ndarray
    right: np.ndarray
    values: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "left", frozen_array(self.left, np.int64))
        object.__setattr__(self, "right", frozen_array(self.right, np.int64))
        tables = []
        if not len(self.left) == len(self.right) == len(self.values):
            raise BudgetError("left, right and values: expected one entry per table")
        for g, h, table in zip(self.left.tolist(), self.right.tolist(), self.values):
            if g > h or np.ndim(table) != (1 if g == h else 2):
                raise BudgetError(f"the table of groups {g} and {h}: expected left <= right and an axis per group")
            if not np.array_equal(np.asarray(table), np.asarray(table).astype(np.int64)):
                raise BudgetError(f"the table of groups {g} and {h}: expected whole numbers; choose a smaller unit")
            tables.append(frozen_array(table, np.int64))
        object.__setattr__(self, "values", tuple(tables))

    def of_counts(self, counts: np.ndarray) -> np.ndarray:
        total = np.full(len(counts), self.constant, dtype=np.int64)
        for g, h, table in zip(self.left, self.right, self.values):
            total += table[counts[:, g]] if g == h else table[counts[:, g], counts[:, h]]
        return total

    def tables(self, counts: Sequence[np.ndarray]) -> list[tuple[tuple[int, ...], np.ndarray]]:
        found: dict[tuple[int, ...], np.ndarray] = {}
        for g, h, table in zip(self.left.tolist(), self.right.tolist(), self.values):
            scope = (g,) if g == h else (g, h)
            part = table[np.ix_(*(counts[v] for v in scope))]
            found[scope] = found[scope] + part if scope in found else part
        return list(found.items())

    @property
    def lattice(self) -> tuple[int, int]:
        if not self.values:
            return self.constant, 1
        offset = int(self.constant + sum(int(table.flat[0]) for table in self.values))
        steps = [math.gcd(*np.unique(table - table.flat[0]).tolist()) for table in self.values]
        return offset, math.gcd(*steps) or 1

    @property
    def monotone(self) -> bool:
        return all((np.diff(table, axis=axis) >= 0).all() for table in self.values for axis in range(table.ndim))

    @property
    def groups(self) -> frozenset[int]:
        return frozenset([*self.left.tolist(), *self.right.tolist()])

    @property
    def pairs(self) -> frozenset[tuple[int, int]]:
        return frozenset((g, h) for g, h in zip(self.left.tolist(), self.right.tolist()) if g != h)


@dataclasses.dataclass(frozen=True, eq=False)
class CostModel(Record):
    """The prunable groups of a network and its costs.

    Attributes:
        groups: G group names.
        sizes: int64 array of shape (G,), units per group.
        resources: name -> cost; a traced network has ``"units"``, ``"params"`` and ``"macs"``.

    Raises:
        BudgetError: a resource whose tables or group numbers don't fit the groups.
    """

    groups: tuple[str, ...]
    sizes: np.ndarray
    resources: dict[str, Cost]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", frozen_array(self.sizes, np.int64))
        for name, cost in self.resources.items():
            if not cost.groups <= set(range(len(self.groups))):
                raise BudgetError(
                    f"resource {name!r} speaks of groups {sorted(cost.groups)}, there are {len(self.groups)}"
                )
            if isinstance(cost, TabulatedCost):
                for g, h, table in zip(cost.left, cost.right, cost.values):
                    wanted = tuple(int(self.sizes[v]) + 1 for v in ((g,) if g == h else (g, h)))
                    if table.shape != wanted:
                        raise BudgetError(
                            f"resource {name!r}, groups {g} and {h}: expected a table of shape {wanted}, "
                            f"got {table.shape}"
                        )

    def with_resource(self, name: str, cost: Cost) -> Self:
        """A copy with one more resource (or another cost for one)."""
        return dataclasses.replace(self, resources={**self.resources, name: cost})

    @property
    def n_units(self) -> int:
        """Units of all groups together."""
        return int(self.sizes.sum())

    @property
    def group_of_unit(self) -> np.ndarray:
        """Group number of every unit: int64 of shape (n_units,), ascending (units are numbered group by group)."""
        return np.repeat(np.arange(len(self.groups)), self.sizes)

    def counts(self, kept: np.ndarray) -> np.ndarray:
        """Kept units per group of the mask ``kept`` (bool, shape (n_units,)): int64 of shape (G,)."""
        return np.bincount(self.group_of_unit, weights=np.asarray(kept, float), minlength=len(self.groups)).astype(int)

    def cost(self, resource: str, counts: np.ndarray) -> int:
        """Cost of ``resource`` at the kept ``counts``; raises :class:`BudgetError` on an unknown resource."""
        return self[resource](counts)

    def __getitem__(self, resource: str) -> Cost:
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
