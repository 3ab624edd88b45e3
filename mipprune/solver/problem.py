"""The pruning problem as pure data: what is minimised, under which requirements.  No model, no solver."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np

from ..costs import CostModel
from ..errors import BudgetError, InfeasibleError
from ..records import Record, digest_of, frozen_array
from ..surrogates.base import Surrogate

__all__ = ["Evaluation", "Problem"]

#: A requirement on the drop counts as met within this slack, times ``max(1, |limit|)``: the rounding of float64 sums.
FEASIBILITY_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation(Record):
    """A mask under a problem's exact functions, recomputed in float64 without any solver.

    Attributes:
        objective: value of the problem's objective.
        drop: value of the surrogate.
        costs: resource -> cost.
        violations: requirements that the mask breaks, in words; empty when feasible.
    """

    objective: float
    drop: float
    costs: dict[str, int]
    violations: tuple[str, ...]

    @property
    def feasible(self) -> bool:
        """Whether all requirements are met."""
        return not self.violations


@dataclasses.dataclass(frozen=True, eq=False)
class Problem(Record):
    """Choose which units to keep.

    Build one with :meth:`minimize_units`, :meth:`minimize_cost` or :meth:`minimize_drop`.

    Attributes:
        surrogate: the drop as a function of the removed units, n units.
        costs: the groups and the cost of every resource in the kept counts.
        objective: ``"drop"`` (the surrogate) or the name of a resource of ``costs``.
        max_drop: largest drop allowed, or ``None``.
        budgets: resource -> largest cost allowed (absolute, not a ratio).
        min_keep: int64, shape (G,): fewest units to keep per group.
        keep: bool, shape (n,): units that must stay.
        remove: bool, shape (n,): units that must go.
        forbidden: bool, shape (F, n): kept masks that aren't allowed (no-good cuts).
        multiples: int64, shape (G,), at least 1: a group keeps a multiple of so many units, or all that it has.
    """

    surrogate: Surrogate
    costs: CostModel
    objective: str
    max_drop: float | None
    budgets: dict[str, int]
    min_keep: np.ndarray
    keep: np.ndarray
    remove: np.ndarray
    forbidden: np.ndarray
    multiples: np.ndarray

    def __post_init__(self) -> None:
        n, groups = self.surrogate.n_units, len(self.costs.groups)
        if self.costs.n_units != n:
            raise ValueError(f"the surrogate has {n} units, the cost model {self.costs.n_units}")
        if self.objective != "drop":
            self.costs[self.objective]  # raises BudgetError on an unknown resource
        for resource in self.budgets:
            self.costs[resource]
        for name, shape, dtype in (
            ("min_keep", (groups,), np.int64),
            ("keep", (n,), bool),
            ("remove", (n,), bool),
            ("forbidden", (len(self.forbidden), n), bool),
            ("multiples", (groups,), np.int64),
        ):
            array = frozen_array(getattr(self, name), dtype)
            if array.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
            object.__setattr__(self, name, array)
        if (self.keep & self.remove).any():
            raise BudgetError(f"units {np.flatnonzero(self.keep & self.remove).tolist()} must both stay and go")
        if self.max_drop is not None and not np.isfinite(self.max_drop):
            raise BudgetError(f"max_drop must be finite, got {self.max_drop}")
        if (self.multiples < 1).any():
            raise BudgetError(f"multiples must be at least 1, got {self.multiples.tolist()}")
        self._check_counts()

    # -- construction ----------------------------------------------------------------------------------------------

    @classmethod
    def minimize_units(cls, surrogate: Surrogate, max_drop: float, **requirements: object) -> Self:
        """Fewest units whose removal costs at most ``max_drop``.  Further ``requirements``: see :meth:`build`."""
        return cls.build(surrogate, "units", max_drop=max_drop, **requirements)  # type: ignore[arg-type]

    @classmethod
    def minimize_cost(
        cls, surrogate: Surrogate, costs: CostModel, resource: str, max_drop: float, **requirements: object
    ) -> Self:
        """Cheapest network in ``resource`` whose drop is at most ``max_drop``.

        Args:
            surrogate: estimates the drop.
            costs: of the network.
            resource: one of the costs.
            max_drop: in the surrogate's unit.
            requirements: further ones, as :class:`Problem` has them.
        """
        return cls.build(surrogate, resource, costs=costs, max_drop=max_drop, **requirements)  # type: ignore[arg-type]

    @classmethod
    def minimize_drop(
        cls,
        surrogate: Surrogate,
        *,
        budgets: Mapping[str, float],
        costs: CostModel | None = None,
        **requirements: object,
    ) -> Self:
        """Smallest drop under budgets.

        Args:
            surrogate: estimates the drop.
            budgets: resource -> largest cost allowed (absolute).
            costs: of the network; without them ``"units"`` is the only resource.
            requirements: further ones, as :class:`Problem` has them.
        """
        return cls.build(surrogate, "drop", costs=costs, budgets=budgets, **requirements)  # type: ignore[arg-type]

    @classmethod
    def build(
        cls,
        surrogate: Surrogate,
        objective: str,
        *,
        costs: CostModel | None = None,
        max_drop: float | None = None,
        budgets: Mapping[str, float] | None = None,
        min_keep: int | np.ndarray = 0,
        keep: np.ndarray | None = None,
        remove: np.ndarray | None = None,
        forbidden: np.ndarray | None = None,
        multiples: int | np.ndarray = 1,
    ) -> Self:
        """Fill in the defaults: one group of units that cost one each, nothing pinned, nothing forbidden.

        Args:
            keep, remove: unit numbers or boolean masks.
            min_keep: one number for all groups, or one per group; never above a group's size.
            forbidden: bool, shape (F, n).
            multiples: one number for all groups, or one per group; 8, say, for widths that hardware likes.

        Raises:
            BudgetError: an unknown resource, contradicting pins, a number that isn't finite.
            InfeasibleError: the counts alone rule every mask out (a budget below the cheapest network, for example).
        """
        n = surrogate.n_units
        costs = costs if costs is not None else CostModel.units_only(n)
        budgets = dict(budgets or {})
        for resource, limit in budgets.items():
            if not np.isfinite(limit):
                raise BudgetError(f"the budget of {resource!r} must be finite, got {limit}")
        return cls(
            surrogate=surrogate,
            costs=costs,
            objective=objective,
            max_drop=None if max_drop is None else float(max_drop),
            budgets={resource: int(np.floor(limit)) for resource, limit in budgets.items()},
            min_keep=np.minimum(np.broadcast_to(np.asarray(min_keep), costs.sizes.shape), costs.sizes),
            keep=_as_mask(keep, n, "keep"),
            remove=_as_mask(remove, n, "remove"),
            forbidden=np.zeros((0, n), dtype=bool) if forbidden is None else np.atleast_2d(forbidden),
            multiples=np.broadcast_to(np.asarray(multiples), costs.sizes.shape),
        )

    # -- exact evaluation ------------------------------------------------------------------------------------------

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.surrogate.n_units

    @property
    def digest(self) -> str:
        """SHA-256 of the problem's whole content, hexadecimal."""
        return digest_of(self)

    @property
    def fewest(self) -> np.ndarray:
        """Fewest units that each group can keep, from ``min_keep`` and ``keep``: int64 (G,)."""
        return np.maximum(self.min_keep, self.costs.counts(self.keep))

    @property
    def most(self) -> np.ndarray:
        """Most units that each group can keep, from ``remove``: int64 (G,)."""
        return self.costs.sizes - self.costs.counts(self.remove)

    def allowed_counts(self, group: int) -> np.ndarray:
        """Counts that a group may keep, from pins, ``min_keep`` and ``multiples``: int64, ascending."""
        counts = np.arange(self.fewest[group], self.most[group] + 1)
        return counts[(counts % self.multiples[group] == 0) | (counts == self.costs.sizes[group])]

    def count_violations(self, counts: np.ndarray) -> np.ndarray:
        """How many units the groups lack for ``min_keep`` and ``multiples``, of count vectors (M, G): int64 (M,)."""
        lacking = np.maximum(self.min_keep - counts, 0)
        short = -counts % self.multiples
        return np.asarray((lacking + np.where(counts == self.costs.sizes, 0, short)).sum(1))

    def evaluate(self, kept: np.ndarray) -> Evaluation:
        """The mask ``kept`` (bool, shape (n,)) under the exact surrogate, costs and requirements."""
        kept = np.asarray(kept, dtype=bool)
        if kept.shape != (self.n_units,):
            raise ValueError(f"expected a mask of {self.n_units} units, got shape {kept.shape}")
        counts = self.costs.counts(kept)
        costs = {name: cost(counts) for name, cost in self.costs.resources.items()}
        drop = self.surrogate.drop(~kept)
        objective = drop if self.objective == "drop" else float(costs[self.objective])
        violations = []
        if not np.isfinite(drop):
            violations.append(f"drop is {drop}")
        if self.max_drop is not None and drop > self.drop_limit:
            violations.append(f"drop {drop:.6g} > {self.max_drop:.6g}")
        for resource, limit in self.budgets.items():
            if costs[resource] > limit:
                violations.append(f"{resource} {costs[resource]} > {limit}")
        for group in np.flatnonzero(counts < self.min_keep):
            violations.append(f"group {self.costs.groups[group]!r} keeps {counts[group]} < {self.min_keep[group]}")
        for group in np.flatnonzero((counts % self.multiples != 0) & (counts != self.costs.sizes)):
            violations.append(
                f"group {self.costs.groups[group]!r} keeps {counts[group]}, no multiple of {self.multiples[group]}"
            )
        if (self.keep & ~kept).any():
            violations.append(f"removed units that must stay: {np.flatnonzero(self.keep & ~kept).tolist()}")
        if (self.remove & kept).any():
            violations.append(f"kept units that must go: {np.flatnonzero(self.remove & kept).tolist()}")
        if len(self.forbidden) and (self.forbidden == kept).all(1).any():
            violations.append("the mask is forbidden")
        return Evaluation(objective, drop, costs, tuple(violations))

    @property
    def drop_limit(self) -> float:
        """``max_drop`` with the tolerance that decides feasibility; ``inf`` without a limit."""
        if self.max_drop is None:
            return np.inf
        return self.max_drop + FEASIBILITY_TOLERANCE * max(1.0, abs(self.max_drop))

    def _check_counts(self) -> None:
        """Refuse a problem that the counts alone make impossible, and say what would be possible."""
        for group in np.flatnonzero(self.fewest > self.most):
            name, most = self.costs.groups[group], int(self.most[group])
            raise InfeasibleError(
                f"group {name!r} must keep {self.fewest[group]} units but only {most} may stay",
                requirement="min_keep",
                nearest=most,
            )
        allowed = [self.allowed_counts(group) for group in range(len(self.costs.groups))]
        for index, counts in enumerate(allowed):
            if len(counts) == 0:
                raise InfeasibleError(
                    f"group {self.costs.groups[index]!r} may keep {self.fewest[index]} to {self.most[index]} units, "
                    f"none of which is a multiple of {self.multiples[index]}",
                    requirement="multiples",
                )
        fewest = np.array([counts[0] for counts in allowed], dtype=np.int64)
        for resource, limit in self.budgets.items():
            if not self.costs[resource].monotone:
                continue  # a smaller network may cost more: left to the solver
            cheapest = self.costs[resource](fewest)
            if cheapest > limit:
                raise InfeasibleError(
                    f"the budget of {resource!r} is {limit}, but the smallest network allowed costs {cheapest}: "
                    f"raise the budget or lower min_keep",
                    requirement=resource,
                    nearest=cheapest,
                )


def _as_mask(units: np.ndarray | None, n: int, name: str) -> np.ndarray:
    if units is None:
        return np.zeros(n, dtype=bool)
    array = np.asarray(units)
    if array.dtype == bool:
        return array
    mask = np.zeros(n, dtype=bool)
    if array.size and (array.min() < 0 or array.max() >= n):
        raise BudgetError(f"{name}: unit numbers must lie in [0, {n}), got {array.min()}..{array.max()}")
    mask[array.astype(int)] = True
    return mask
