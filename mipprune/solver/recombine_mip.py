"""The multiple-choice knapsack over bilinear costs, as a linear mixed-integer program."""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np

from ..costs import BilinearCost, Cost, CostModel
from .linear import LinearMip, MipBuilder

__all__ = ["Choices", "Knapsack", "Requirements", "build_knapsack", "pair_tables", "separable_part"]

#: Size of the objective's largest terms in the program, so that a solver's absolute tolerance of 1e-6 is 1e-9 of them.
OBJECTIVE_RANGE = 1000.0


@dataclasses.dataclass(frozen=True)
class Requirements:
    """What is minimised over the kept counts, and under which limits.

    Attributes:
        objective: ``"drop"`` or the name of a resource.
        drop_limit: largest sum of drops, ``inf`` for none.
        budgets: resource -> largest cost.
    """

    costs: CostModel
    objective: str
    drop_limit: float
    budgets: dict[str, int]

    @property
    def used(self) -> dict[str, Cost]:
        """The resources that matter: budgets and, where it is one, the objective."""
        names = [*self.budgets, *([] if self.objective == "drop" else [self.objective])]
        return {name: self.costs[name] for name in names}

    @property
    def monotone(self) -> bool:
        """Whether keeping less never costs more, so that a size with a larger drop than a smaller one is useless."""
        return all(cost.monotone for cost in self.used.values())


@dataclasses.dataclass(frozen=True)
class Choices:
    """Per group, the kept counts to choose from (ascending) and the drop of each."""

    counts: tuple[np.ndarray, ...]
    drops: tuple[np.ndarray, ...]

    def where(self, use: list[np.ndarray]) -> Self:
        """Only the sizes that ``use`` names, by boolean masks or indices, one array per group."""
        return type(self)(
            tuple(count[u] for count, u in zip(self.counts, use)), tuple(drop[u] for drop, u in zip(self.drops, use))
        )

    def undominated(self) -> Self:
        """Without the sizes that a smaller size of the group equals or beats in drop."""
        return self.where([d < np.minimum.accumulate(np.concatenate([[np.inf], d[:-1]])) for d in self.drops])

    def coarse(self, most: int) -> Self:
        """At most ``most`` sizes per group, optimistic: a run of sizes becomes its smallest count and least drop.

        Only for bounds, and only where costs are monotone.
        """
        counts, drops = [], []
        for count, drop in zip(self.counts, self.drops):
            pieces = min(most, len(count))
            starts = (np.arange(pieces) * len(count)) // pieces
            counts.append(count[starts])
            drops.append(np.minimum.reduceat(drop, starts))
        return type(self)(tuple(counts), tuple(drops))

    def counts_at(self, chosen: np.ndarray) -> np.ndarray:
        """Kept counts at the chosen sizes' indices: int64, shape (G,)."""
        return np.array([count[i] for count, i in zip(self.counts, chosen)], dtype=np.int64)

    def drop_at(self, chosen: np.ndarray) -> float:
        """Sum of the chosen sizes' drops."""
        return float(sum(drop[i] for drop, i in zip(self.drops, chosen)))


@dataclasses.dataclass(frozen=True)
class Knapsack:
    """The program, the columns of the binaries per group, of products and of tables, and the objective's divisor."""

    mip: LinearMip
    one_hot: tuple[np.ndarray, ...]
    shares: dict[tuple[int, int], np.ndarray]
    joint: dict[tuple[int, int], np.ndarray]
    unit: float

    def point(self, choices: Choices, chosen: np.ndarray) -> np.ndarray:
        """The program's solution that stands for the chosen sizes."""
        x = np.zeros(self.mip.n_columns)
        for columns, i in zip(self.one_hot, chosen):
            x[columns[i]] = 1.0
        for (g, h), columns in self.shares.items():
            x[columns[chosen[g]]] = choices.counts[h][chosen[h]] / _most(choices, h)
        for (g, h), columns in self.joint.items():
            x[columns[chosen[g], chosen[h]]] = 1.0
        return x


def build_knapsack(choices: Choices, requirements: Requirements) -> Knapsack:
    """One binary per group and size, one size per group.

    The product of two counts is exact (our form): with ``y_a`` the binary of size a of group g and ``w_a`` the
    fraction ``y_a k_h / max k_h``, between ``y_a min k_h / max k_h`` and ``y_a``, summing to ``k_h / max k_h`` over a,
    the product is ``max k_h sum_a a w_a``: the one ``y_a`` that is 1 takes all of ``k_h``, the others have ``w_a = 0``.
    (At whole ``y`` the lower limits follow from the rest; they tighten the relaxation.)  Group g is the one with fewer
    sizes.  A table over two counts takes ``p_ab``, at least 0, with the binaries of both groups as row and column sums.
    Functions of one count are linear in the binaries.  Rows are divided by their limits and the objective by a unit, so
    that a solver's absolute tolerances mean the same for all.
    """
    builder = MipBuilder()
    drop_unit = max((float(np.abs(drop).max()) for drop in choices.drops), default=0.0) / OBJECTIVE_RANGE or 1.0
    resources, minimised = requirements.used, requirements.objective
    weights = {name: separable_part(cost, choices) for name, cost in resources.items()}
    products = {name: _small_side_first(_products_of(cost), choices) for name, cost in resources.items()}
    factors = {
        name: {(g, h): c * _most(choices, h) * choices.counts[g] for (g, h), c in found.items()}
        for name, found in products.items()
    }
    tables = {
        name: {} if isinstance(cost, BilinearCost) else pair_tables(cost, choices) for name, cost in resources.items()
    }
    unit = drop_unit
    if minimised != "drop":
        largest = [*weights[minimised], *factors[minimised].values(), *tables[minimised].values()]
        unit = max(float(np.abs(part).max()) for part in largest) / OBJECTIVE_RANGE or 1.0
        builder.constant = resources[minimised].constant / unit
    one_hot = []
    for g, count in enumerate(choices.counts):
        cost = choices.drops[g] if minimised == "drop" else weights[minimised][g]
        one_hot.append(builder.add_columns(len(count), cost=cost / unit, integer=True))
        builder.add_row(one_hot[g], 1.0, lower=1.0, upper=1.0)
    shares, joint = {}, {}
    for g, h in sorted({pair for found in products.values() for pair in found}):
        nothing = np.zeros(len(one_hot[g]))
        price = nothing if minimised == "drop" else factors[minimised].get((g, h), nothing)
        shares[g, h] = _add_product(builder, choices, one_hot, g, h, price / unit)
    for g, h in sorted({pair for found in tables.values() for pair in found}):
        joint[g, h] = _add_joint(builder, one_hot[g], one_hot[h])
        if minimised != "drop" and (g, h) in tables[minimised]:
            builder.add_costs(joint[g, h].ravel(), tables[minimised][g, h].ravel() / unit)
    for name, limit in requirements.budgets.items():
        room = limit - resources[name].constant
        scale = 1.0 / max(abs(room), 1)
        columns = [*one_hot, *(shares[pair] for pair in products[name]), *(joint[p].ravel() for p in tables[name])]
        parts = [*weights[name], *factors[name].values(), *(table.ravel() for table in tables[name].values())]
        builder.add_row(np.concatenate(columns), scale * np.concatenate(parts), upper=scale * room)
    if np.isfinite(requirements.drop_limit):
        drops = np.concatenate(choices.drops) / drop_unit
        builder.add_row(np.concatenate(one_hot), drops, upper=requirements.drop_limit / drop_unit)
    return Knapsack(builder.build(), tuple(one_hot), shares, joint, unit)


def separable_part(cost: Cost, choices: Choices) -> list[np.ndarray]:
    """Cost of every size of every group (float64), without the constant and what two groups cost together."""
    parts = [np.zeros(len(count)) for count in choices.counts]
    for scope, table in cost.tables(choices.counts):
        if len(scope) == 1:
            parts[scope[0]] += table
    return parts


def pair_tables(cost: Cost, choices: Choices) -> dict[tuple[int, int], np.ndarray]:
    """What two groups (ascending) cost together, at every pair of their sizes: float64, one axis per group."""
    found = {}
    for scope, table in cost.tables(choices.counts):
        if len(scope) == 2:
            found[scope[0], scope[1]] = table.astype(np.float64)
    return found


def _products_of(cost: Cost) -> dict[tuple[int, int], int]:
    """Coefficient of every product of two different groups, of a bilinear cost."""
    found: dict[tuple[int, int], int] = {}
    if isinstance(cost, BilinearCost):
        for g, h, coefficient in zip(cost.left.tolist(), cost.right.tolist(), cost.coefficient.tolist()):
            if g != h and coefficient:
                found[g, h] = found.get((g, h), 0) + coefficient
    return found


def _small_side_first(products: dict[tuple[int, int], int], choices: Choices) -> dict[tuple[int, int], int]:
    size = [len(count) for count in choices.counts]
    return {((h, g) if size[h] < size[g] else (g, h)): value for (g, h), value in products.items()}


def _most(choices: Choices, group: int) -> float:
    return max(float(choices.counts[group].max()), 1.0)


def _add_product(
    builder: MipBuilder, choices: Choices, one_hot: list[np.ndarray], g: int, h: int, price: np.ndarray
) -> np.ndarray:
    """Columns ``w_a = y_ga k_h / max k_h``, one per size of group g."""
    fractions = choices.counts[h] / _most(choices, h)
    share = builder.add_columns(len(one_hot[g]), cost=price)
    most, fewest = np.array([1.0, -1.0]), np.array([1.0, -float(fractions.min())])
    for pair in np.column_stack([share, one_hot[g]]):
        builder.add_row(pair, most, upper=0.0)
        builder.add_row(pair, fewest, lower=0.0)
    together = np.concatenate([share, one_hot[h]])
    builder.add_row(together, np.concatenate([np.ones(len(share)), -fractions]), lower=0.0, upper=0.0)
    return share


def _add_joint(builder: MipBuilder, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Columns ``p_ab`` with the binaries of two groups as row and column sums: int64 of shape (K_g, K_h)."""
    pairs = builder.add_columns(len(rows) * len(columns)).reshape(len(rows), len(columns))
    for parts, binaries in ((pairs, rows), (pairs.T, columns)):
        for part, binary in zip(parts, binaries):
            builder.add_row(np.append(part, binary), np.append(np.ones(len(part)), -1.0), lower=0.0, upper=0.0)
    return pairs
