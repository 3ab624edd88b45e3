"""Kept counts and their products as linear rows, exactly: the costs of a network depend on two counts at a time.

Our derivation.  For a product ``k_g k_h`` the count of one side is written in unary: ``y_a = 1`` for exactly one
allowed count a, and ``w_a`` is ``k_h`` where ``y_a = 1`` and 0 elsewhere:

    sum_a y_a = 1,   sum_a a y_a = k_g,   fewest_h y_a <= w_a <= most_h y_a,   sum_a w_a = k_h,

so that ``k_g k_h = sum_a a w_a`` at whole ``y``.  A function of one count is ``sum_a f(a) y_a``, which also says which
counts are allowed at all.  Groups in unary are a vertex cover of the graph of the products, chosen to be small.  For a
table over two counts both are in unary, and ``p_ab``, at least 0, has the row sums ``y_a`` and the column sums ``y_b``:
at whole ``y`` it is 1 for the one pair.  A count that can't vary is a constant and needs nothing.
"""

from __future__ import annotations

import dataclasses
import math

import networkx as nx
import numpy as np
from networkx.algorithms.approximation import min_weighted_vertex_cover

from ..costs import BilinearCost, Cost, TabulatedCost
from .linear import MipBuilder
from .problem import Problem

__all__ = ["Counting", "LinearCost", "add_counting", "add_counts"]


@dataclasses.dataclass(frozen=True, eq=False)
class LinearCost:
    """A cost as ``values @ x[columns] + constant``, whole numbers."""

    columns: np.ndarray
    values: np.ndarray
    constant: int


@dataclasses.dataclass(frozen=True, eq=False)
class Counting:
    """Columns of counts and products.

    Attributes:
        allowed: per group, the counts that it may keep.
        count: group -> column of ``k_g``; groups that can't vary have none.
        unary: group -> columns of ``y_a``, one per allowed count.
        product: (unary group, other group) -> columns of ``w_a``.
        joint: (group, group) -> columns of ``p_ab``, int64 of shape (allowed, allowed).
    """

    allowed: tuple[np.ndarray, ...]
    count: dict[int, int]
    unary: dict[int, np.ndarray]
    product: dict[tuple[int, int], np.ndarray]
    joint: dict[tuple[int, int], np.ndarray]

    def fill(self, x: np.ndarray, counts: np.ndarray) -> None:
        """Write the columns of the point ``x`` for kept ``counts`` (shape (G,)); disallowed ones leave unary at 0."""
        for group, column in self.count.items():
            x[column] = counts[group]
        chosen = {group: self.allowed[group] == counts[group] for group in self.unary}
        for group, columns in self.unary.items():
            x[columns] = chosen[group]
        for (group, other), columns in self.product.items():
            x[columns] = np.where(chosen[group], counts[other], 0.0)
        for (group, other), columns in self.joint.items():
            x[columns] = np.outer(chosen[group], chosen[other])

    def linear(self, cost: Cost) -> LinearCost:
        """A cost in the columns."""
        form = _Form(self, int(cost.constant))
        if isinstance(cost, BilinearCost):
            form.add_bilinear(cost)
        else:
            form.add_tables(cost)
        return form.result()


def add_counting(builder: MipBuilder, problem: Problem, kept: np.ndarray) -> tuple[Counting, float]:
    """Add counts, budgets, ``min_keep``, ``multiples`` and, when a resource is minimised, the objective.

    Returns the columns and the unit of the objective: the greatest common divisor of its coefficients.
    """
    counting = add_counts(builder, problem, kept)
    unit = 1.0
    for resource, limit in problem.budgets.items():
        cost = counting.linear(problem.costs[resource])
        scale = max(1.0, float(np.abs(cost.values).max(initial=0.0)))
        builder.add_row(cost.columns, cost.values / scale, upper=(limit - cost.constant) / scale)
    if problem.objective != "drop":
        cost = counting.linear(problem.costs[problem.objective])
        unit = float(math.gcd(*cost.values.astype(np.int64).tolist())) or 1.0
        builder.add_costs(cost.columns, cost.values / unit)
        builder.constant = cost.constant / unit
    return counting, unit


def add_counts(builder: MipBuilder, problem: Problem, kept: np.ndarray) -> Counting:
    """Add the columns that the costs and the requirements on counts ask for, and the rows that define them."""
    names = dict.fromkeys([*problem.budgets, *([] if problem.objective == "drop" else [problem.objective])])
    costs = [problem.costs[name] for name in names]
    allowed = tuple(problem.allowed_counts(group) for group in range(len(problem.costs.groups)))
    counting = Counting(allowed, {}, {}, {}, {})
    span = problem.most - problem.fewest + 1
    gaps = {group for group, counts in enumerate(allowed) if len(counts) < span[group]}
    asked = set().union(gaps, *(cost.groups for cost in costs))
    asked |= set(np.flatnonzero(problem.min_keep > problem.costs.counts(problem.keep)).tolist())
    for group in sorted(asked):
        counts = allowed[group]
        if problem.fewest[group] == problem.most[group]:
            continue
        units = kept[problem.costs.group_of_unit == group]
        column = builder.add_columns(1, lower=counts[0], upper=counts[-1], integer=True)
        builder.add_row(np.append(units, column), np.append(np.ones(len(units)), -1.0), lower=0.0, upper=0.0)
        counting.count[group] = int(column[0])
    pairs, functions, tables = _asked(costs, counting, allowed)
    _add_unary(builder, counting, pairs, (functions | gaps) & set(counting.count), tables)
    _add_products(builder, counting, pairs)
    for g, h in sorted(tables):
        _add_joint(builder, counting, g, h)
    return counting


def _asked(
    costs: list[Cost], counting: Counting, allowed: tuple[np.ndarray, ...]
) -> tuple[set[tuple[int, int]], set[int], set[tuple[int, int]]]:
    """Pairs whose product is asked for, groups with a function of their own count, pairs with a table."""
    pairs: set[tuple[int, int]] = set()
    functions: set[int] = set()
    tables: set[tuple[int, int]] = set()
    varies = set(counting.count)
    for cost in costs:
        both = {pair for pair in cost.pairs if set(pair) <= varies}
        if isinstance(cost, TabulatedCost):
            tables |= both
            functions |= cost.groups & varies
        elif isinstance(cost, BilinearCost):
            pairs |= both
            square = (cost.left == cost.right) & (cost.coefficient != 0)
            functions |= set(cost.left[square].tolist()) & varies
    return pairs, functions, tables


def _add_unary(
    builder: MipBuilder, counting: Counting, pairs: set[tuple[int, int]], functions: set[int],
    tables: set[tuple[int, int]],
) -> None:
    """Unary columns for the groups that need them anyway and for a vertex cover of the other products."""
    needed = functions | {group for pair in tables for group in pair}
    graph = nx.Graph(sorted(pairs))
    graph.remove_nodes_from(needed)
    nx.set_node_attributes(graph, {g: float(len(counting.allowed[g])) for g in graph}, "values")
    for group in sorted(needed | set(min_weighted_vertex_cover(graph, weight="values"))):
        amounts = counting.allowed[group].astype(float)
        columns = builder.add_columns(len(amounts), integer=True)
        builder.add_row(columns, 1.0, lower=1.0, upper=1.0)
        builder.add_row(np.append(columns, counting.count[group]), np.append(amounts, -1.0), lower=0.0, upper=0.0)
        counting.unary[group] = columns


def _add_products(builder: MipBuilder, counting: Counting, pairs: set[tuple[int, int]]) -> None:
    for g, h in sorted(pairs):
        sides = ((a, b) for a, b in ((g, h), (h, g)) if a in counting.unary)
        group, other = min(sides, key=lambda ab: len(counting.allowed[ab[0]]))
        fewest, most = float(counting.allowed[other][0]), float(counting.allowed[other][-1])
        columns = builder.add_columns(len(counting.allowed[group]), upper=most)
        for y, w in zip(counting.unary[group], columns, strict=True):
            builder.add_row(np.array([w, y]), np.array([1.0, -most]), upper=0.0)
            builder.add_row(np.array([w, y]), np.array([1.0, -fewest]), lower=0.0)
        builder.add_row(
            np.append(columns, counting.count[other]), np.append(np.ones(len(columns)), -1.0), lower=0.0, upper=0.0
        )
        counting.product[group, other] = columns


def _add_joint(builder: MipBuilder, counting: Counting, g: int, h: int) -> None:
    shape = len(counting.allowed[g]), len(counting.allowed[h])
    columns = builder.add_columns(shape[0] * shape[1]).reshape(shape)
    for parts, y in ((columns, counting.unary[g]), (columns.T, counting.unary[h])):
        for row, column in zip(parts, y, strict=True):
            builder.add_row(np.append(row, column), np.append(np.ones(len(row)), -1.0), lower=0.0, upper=0.0)
    counting.joint[g, h] = columns


class _Form:
    """Collects a cost's coefficients; counts that can't vary are folded into the rest."""

    def __init__(self, counting: Counting, constant: int) -> None:
        self.counting, self.constant = counting, constant
        self.values: dict[int, int] = {}

    def result(self) -> LinearCost:
        columns = np.fromiter(self.values, dtype=np.int64)
        return LinearCost(columns, np.fromiter(self.values.values(), dtype=np.float64), self.constant)

    def _add(self, columns: np.ndarray, values: np.ndarray) -> None:
        for column, value in zip(np.ravel(columns).tolist(), np.ravel(values).tolist(), strict=True):
            self.values[column] = self.values.get(column, 0) + int(value)

    def _fixed(self, group: int) -> int | None:
        return None if group in self.counting.count else int(self.counting.allowed[group][0])

    def add_bilinear(self, cost: BilinearCost) -> None:
        for group in np.flatnonzero(cost.linear).tolist():
            self._add_count(group, int(cost.linear[group]))
        for g, h, value in zip(cost.left.tolist(), cost.right.tolist(), cost.coefficient.tolist(), strict=True):
            if value:
                self._add_product(g, h, value)

    def _add_count(self, group: int, value: int) -> None:
        fixed = self._fixed(group)
        if fixed is not None:
            self.constant += value * fixed
        else:
            self._add(np.array([self.counting.count[group]]), np.array([value]))

    def _add_product(self, g: int, h: int, value: int) -> None:
        for one, other in ((g, h), (h, g)):
            fixed = self._fixed(one)
            if fixed is not None:
                self._add_count(other, value * fixed)
                return
        if g == h:
            self._add(self.counting.unary[g], value * self.counting.allowed[g] ** 2)
            return
        group, other = (g, h) if (g, h) in self.counting.product else (h, g)
        self._add(self.counting.product[group, other], value * self.counting.allowed[group])

    def add_tables(self, cost: Cost) -> None:
        for scope, table in cost.tables(self.counting.allowed):
            free = [axis for axis, group in enumerate(scope) if self._fixed(group) is None]
            groups = [scope[axis] for axis in free]
            table = table[tuple(slice(None) if axis in free else 0 for axis in range(len(scope)))]
            if not groups:
                self.constant += int(table)
            elif len(groups) == 1:
                self._add(self.counting.unary[groups[0]], table)
            else:
                self._add(self.counting.joint[groups[0], groups[1]], table)
