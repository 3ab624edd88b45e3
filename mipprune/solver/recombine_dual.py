"""Lagrangian bounds for the recombination, by dynamic programming over a forest of groups.

With the limits priced into the objective, what is left is a sum over groups and over pairs of groups whose counts are
multiplied.  When those pairs form a forest (chains and stars do: plain, residual and transformer networks) its minimum
is found exactly by passing tables from the leaves to the roots, O(sizes^2) per pair (our form).
"""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import numpy as np
from scipy.optimize import linprog

from .recombine_mip import Choices, Requirements, pair_tables, separable_part

__all__ = ["ForestOracle", "Lagrangian"]


class ForestOracle:
    """Minimises ``price_drop * drops + sum_r prices[r] * cost_r`` over one size per group.

    Raises:
        nx.HasACycle: the products of two groups don't form a forest.
    """

    def __init__(self, choices: Choices, requirements: Requirements) -> None:
        self.choices = choices
        resources = requirements.used
        self.names = list(resources)
        self.constants = np.array([float(cost.constant) for cost in resources.values()])
        self.own = [separable_part(cost, choices) for cost in resources.values()]
        self.tables = [pair_tables(cost, choices) for cost in resources.values()]
        graph = nx.Graph()
        graph.add_nodes_from(range(len(choices.counts)))
        graph.add_edges_from(pair for found in self.tables for pair in found)
        if not nx.is_forest(graph):
            raise nx.HasACycle("the products of two groups form a circle")
        self.order: list[tuple[int, int]] = []  # (group, parent), children before parents; a root is its own parent
        for tree in nx.connected_components(graph):
            root = min(tree)
            parents = {child: parent for parent, child in nx.bfs_edges(graph, root)}
            self.order += [(child, parents.get(child, child)) for child in reversed([root, *parents])]

    def minimise(self, price_drop: float, prices: np.ndarray) -> tuple[float, np.ndarray]:
        """Least value, and the chosen size's index per group: int64 of shape (G,)."""
        tables, _, choice_of = self._pass_up(price_drop, prices)
        value = float(prices @ self.constants)
        chosen = np.zeros(len(tables), dtype=np.int64)
        for group, parent in reversed(self.order):
            if group == parent:
                chosen[group] = int(tables[group].argmin())
                value += float(tables[group].min())
            else:
                chosen[group] = choice_of[group][chosen[parent]]
        return value, chosen

    def min_marginals(self, price_drop: float, prices: np.ndarray) -> list[np.ndarray]:
        """Per group, the least value with each of its sizes fixed: tables passed up and down again."""
        tables, message, _ = self._pass_up(price_drop, prices)
        roots = sum(float(tables[group].min()) for group, parent in self.order if group == parent)
        base = float(prices @ self.constants) + roots
        for group, parent in reversed(self.order):
            if group == parent:
                tables[group] = tables[group] - tables[group].min()  # relative to the least value from here on
                continue
            rest = tables[parent] - message[group]  # the parent's table without what this child had told it
            joint = rest[:, None] + self._together(group, parent, prices)
            tables[group] = tables[group] + joint.min(0)
        return [base + table for table in tables]

    def _pass_up(
        self, price_drop: float, prices: np.ndarray
    ) -> tuple[list[np.ndarray], dict[int, np.ndarray], dict[int, np.ndarray]]:
        tables = [price_drop * drop for drop in self.choices.drops]
        for price, own in zip(prices, self.own):
            tables = [table + price * part for table, part in zip(tables, own)]
        message, choice_of = {}, {}
        for group, parent in self.order:
            if group != parent:
                joint = tables[group][None, :] + self._together(group, parent, prices)
                choice_of[group], message[group] = joint.argmin(1), joint.min(1)
                tables[parent] = tables[parent] + message[group]
        return tables, message, choice_of

    def _together(self, group: int, parent: int, prices: np.ndarray) -> np.ndarray:
        """What two groups cost together: float64, shape (sizes of the parent, sizes of the group)."""
        counts = self.choices.counts
        total = np.zeros((len(counts[parent]), len(counts[group])))
        for price, found in zip(prices, self.tables):
            if (parent, group) in found:
                total += price * found[parent, group]
            elif (group, parent) in found:
                total += price * found[group, parent].T
        return total


class Lagrangian:
    """The dual of the recombination: its bound, and the sizes that it rules out.

    Attributes:
        bound: best lower bound on the objective so far.
    """

    def __init__(self, oracle: ForestOracle, requirements: Requirements) -> None:
        self.oracle, self.requirements = oracle, requirements
        choices = oracle.choices
        self.names = [*requirements.budgets, *(["drop"] if np.isfinite(requirements.drop_limit) else [])]
        self.limits = np.array([*requirements.budgets.values(), requirements.drop_limit][: len(self.names)], float)
        drop = max((float(np.abs(d).max()) for d in choices.drops), default=0.0) or 1.0
        full = np.array([count.max() for count in choices.counts])
        scales = {"drop": drop, **{name: max(float(cost(full)), 1.0) for name, cost in requirements.used.items()}}
        self.scale = scales[requirements.objective]
        self.price_unit = np.array([self.scale / scales[name] for name in self.names])
        self.bound = -np.inf
        self.prices = np.zeros(len(self.names))

    def _weights(self, prices: np.ndarray) -> tuple[float, np.ndarray]:
        price_of = dict(zip(self.names, prices))
        price_drop = float(self.requirements.objective == "drop") + price_of.get("drop", 0.0)
        names = self.oracle.names
        return price_drop, np.array([price_of.get(n, 0.0) + float(n == self.requirements.objective) for n in names])

    def _evaluate(self, prices: np.ndarray, offer: Callable[[np.ndarray], None]) -> tuple[float, np.ndarray]:
        """Dual value and a supergradient."""
        value, chosen = self.oracle.minimise(*self._weights(prices))
        offer(chosen)
        choices, needs = self.oracle.choices, self.requirements
        counts, drop = choices.counts_at(chosen), choices.drop_at(chosen)
        use = np.array([drop if name == "drop" else float(needs.costs[name](counts)) for name in self.names])
        value -= float(prices @ self.limits)
        if value > self.bound:
            self.bound, self.prices = value, prices
        return value, use - self.limits

    def maximise(
        self, offer: Callable[[np.ndarray], None], max_rounds: int = 80, goes_on: Callable[[], bool] = lambda: True
    ) -> None:
        """Raise :attr:`bound` by cutting planes in the prices; every choice on the way is offered.

        The dual function is concave: each evaluation gives a plane above it, and the next prices maximise the least of
        the planes inside a box that grows while its wall holds them back.
        """
        n, box = len(self.names), 1.0
        values, slopes, points = [], [], []
        u = np.zeros(n)
        for _ in range(max_rounds):
            if not goes_on():
                return
            value, slope = self._evaluate(u * self.price_unit, offer)
            values.append(value / self.scale)
            slopes.append(slope * self.price_unit / self.scale)
            points.append(u)
            if n == 0:
                return
            cuts = np.column_stack([-np.array(slopes), np.ones(len(slopes))])
            sides = np.array([v - s @ p for v, s, p in zip(values, slopes, points)])
            plan = linprog(np.append(np.zeros(n), -1.0), A_ub=cuts, b_ub=sides, bounds=[(0, box)] * n + [(None, None)])
            if plan.status != 0 or plan.x is None:
                return
            u = plan.x[:n]
            at_wall = (u >= box * (1 - 1e-9)).any()
            if at_wall and box < 1e9:
                box *= 4.0
            elif plan.x[n] - self.bound / self.scale <= 1e-9:
                return

    def possible(self, incumbent: float) -> list[np.ndarray]:
        """Per group, bool per size: whether some selection with that size may reach ``incumbent``."""
        marginals = self.oracle.min_marginals(*self._weights(self.prices))
        shift = float(self.prices @ self.limits) + 1e-9 * self.scale  # the slack covers rounding
        return [table - shift <= incumbent for table in marginals]
