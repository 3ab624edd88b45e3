"""Kept counts and their products as linear rows, exactly: the costs of a network are quadratic in the counts.

Our derivation.  For a product ``k_g k_h`` the count of one side is written in unary: ``y_a = 1`` for exactly one
``a in fewest_g..most_g``, and ``w_a`` is ``k_h`` where ``y_a = 1`` and 0 elsewhere:

    sum_a y_a = 1,   sum_a a y_a = k_g,   fewest_h y_a <= w_a <= most_h y_a,   sum_a w_a = k_h,

so that ``k_g k_h = sum_a a w_a`` at whole ``y``.  A square is ``sum_a a^2 y_a``.  Groups in unary are a vertex cover
of the graph of the products, chosen to be small.  A count that can't vary is a constant and needs nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import networkx as nx
import numpy as np
from networkx.algorithms.approximation import min_weighted_vertex_cover

from ..costs import BilinearCost
from .linear import MipBuilder
from .problem import Problem

__all__ = ["Counting", "add_counting"]


@dataclasses.dataclass(frozen=True, eq=False)
class Counting:
    """Columns of counts and products.

    Attributes:
        fewest: int64, shape (G,).
        count: group -> column of ``k_g``.
        unary: group -> columns of ``y_a``, ``a = fewest_g, fewest_g + 1, ...``.
        product: (unary group, other group) -> columns of ``w_a``.
    """

    fewest: np.ndarray
    count: dict[int, int]
    unary: dict[int, np.ndarray]
    product: dict[tuple[int, int], np.ndarray]

    def fill(self, x: np.ndarray, counts: np.ndarray) -> None:
        """Write the columns of the point ``x`` for kept ``counts`` (shape (G,))."""
        for group, column in self.count.items():
            x[column] = counts[group]
        for group, columns in self.unary.items():
            x[columns] = 0.0
            x[columns[counts[group] - self.fewest[group]]] = 1.0
        for (group, other), columns in self.product.items():
            x[columns] = 0.0
            x[columns[counts[group] - self.fewest[group]]] = counts[other]


def add_counting(builder: MipBuilder, problem: Problem, kept: np.ndarray) -> tuple[Counting, float]:
    """Add counts, budgets, ``min_keep`` and, when a resource is minimised, the objective.

    Returns the columns and the unit of the objective: the greatest common divisor of its coefficients.
    """
    group_of_unit, fewest, most = problem.costs.group_of_unit, problem.fewest, problem.most
    used = dict.fromkeys([*problem.budgets, *([] if problem.objective == "drop" else [problem.objective])])
    costs = {resource: problem.costs[resource] for resource in used}

    counting = Counting(fewest, {}, {}, {})
    for group in _groups_to_count(problem, list(costs.values())):
        units = kept[group_of_unit == group]
        column = builder.add_columns(1, lower=fewest[group], upper=most[group], integer=True)
        builder.add_row(np.append(units, column), np.append(np.ones(len(units)), -1.0), lower=0.0, upper=0.0)
        counting.count[group] = int(column[0])
    _add_products(builder, problem, counting, list(costs.values()))

    unit = 1.0
    for resource in problem.budgets:
        columns, values, constant = _linear_form(costs[resource], counting, fewest, most)
        scale = max(1.0, float(np.abs(values).max(initial=0.0)))
        builder.add_row(columns, values / scale, upper=(problem.budgets[resource] - constant) / scale)
    if problem.objective != "drop":
        columns, values, constant = _linear_form(costs[problem.objective], counting, fewest, most)
        unit = float(math.gcd(*values.astype(np.int64).tolist())) or 1.0
        builder.add_costs(columns, values / unit)
        builder.constant = constant / unit
    return counting, unit


def _groups_to_count(problem: Problem, costs: list[BilinearCost]) -> Iterator[int]:
    """Groups whose count varies and is asked for by a cost or by ``min_keep``."""
    asked = problem.min_keep > problem.costs.counts(problem.keep)
    for cost in costs:
        asked |= cost.linear != 0
        asked[cost.left] = asked[cost.right] = True
    return (int(group) for group in np.flatnonzero(asked & (problem.fewest < problem.most)))


def _add_products(builder: MipBuilder, problem: Problem, counting: Counting, costs: list[BilinearCost]) -> None:
    """Unary columns for a vertex cover of the product graph, and the products themselves."""
    pairs = {
        (int(g), int(h))
        for cost in costs
        for g, h, c in zip(cost.left, cost.right, cost.coefficient, strict=True)
        if c and g in counting.count and h in counting.count
    }
    values = problem.most - problem.fewest + 1
    graph = nx.Graph(pair for pair in sorted(pairs) if pair[0] != pair[1])
    squares = {g for g, h in pairs if g == h}
    graph.remove_nodes_from([g for g in graph if g in squares])  # in unary anyway
    nx.set_node_attributes(graph, {g: float(values[g]) for g in graph}, "values")
    for group in sorted(squares | set(min_weighted_vertex_cover(graph, weight="values"))):
        amounts = np.arange(problem.fewest[group], problem.most[group] + 1)
        columns = builder.add_columns(len(amounts), integer=True)
        builder.add_row(columns, 1.0, lower=1.0, upper=1.0)
        builder.add_row(
            np.append(columns, counting.count[group]), np.append(amounts.astype(float), -1.0), lower=0.0, upper=0.0
        )
        counting.unary[group] = columns
    for g, h in sorted(pair for pair in pairs if pair[0] != pair[1]):
        group, other = min(((a, b) for a, b in ((g, h), (h, g)) if a in counting.unary), key=lambda ab: values[ab[0]])
        columns = builder.add_columns(int(values[group]), upper=float(problem.most[other]))
        for y, w in zip(counting.unary[group], columns, strict=True):
            builder.add_row(np.array([w, y]), np.array([1.0, -problem.most[other]]), upper=0.0)
            builder.add_row(np.array([w, y]), np.array([1.0, -problem.fewest[other]]), lower=0.0)
        builder.add_row(
            np.append(columns, counting.count[other]), np.append(np.ones(len(columns)), -1.0), lower=0.0, upper=0.0
        )
        counting.product[group, other] = columns


def _linear_form(
    cost: BilinearCost, counting: Counting, fewest: np.ndarray, most: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """The cost as ``values @ x[columns] + constant`` (whole numbers); fixed counts are folded into the rest."""
    constant = int(cost.constant)
    form: dict[int, int] = {}

    def add(column: int, value: int) -> None:
        form[column] = form.get(column, 0) + value

    def add_count(group: int, value: int) -> None:
        nonlocal constant
        if group in counting.count:
            add(counting.count[group], value)
        else:
            constant += value * int(fewest[group])

    for group, value in enumerate(cost.linear.tolist()):
        if value:
            add_count(group, value)
    for g, h, value in zip(cost.left.tolist(), cost.right.tolist(), cost.coefficient.tolist(), strict=True):
        if not value:
            continue
        fixed = [group for group in (g, h) if group not in counting.count]
        if fixed:
            add_count(h if fixed[0] == g else g, value * int(fewest[fixed[0]]))
            continue
        group = g if g == h or (g, h) in counting.product else h
        columns = counting.unary[g] if g == h else counting.product[(g, h) if group == g else (h, g)]
        amounts = np.arange(fewest[group], most[group] + 1)
        for column, amount in zip(columns.tolist(), (amounts**2 if g == h else amounts).tolist(), strict=True):
            add(column, value * amount)
    columns = np.fromiter(form, dtype=np.int64)
    return columns, np.fromiter(form.values(), dtype=np.float64), constant
