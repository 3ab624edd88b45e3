"""Finds the tangent points and multipliers of a certificate, for a problem whose incumbent is known."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import math
import time

import numpy as np

from ..errors import CertificateError
from .arithmetic import Ball
from .certificate import Certificate, Leaf
from .certificate_bound import LeafBounds
from .certificate_check import rounded_down
from .certificate_program import LeafProgram, LeafSolution
from .certificate_start import smooth_points
from .problem import Problem
from .solution import Solution

__all__ = ["certify"]

#: Tangents are added where they are broken by more than this, in thousandths of the drops that matter.
VIOLATION = 1e-4
#: Rounds of tangents in the root and in every other leaf.
ROOT_ROUNDS, LEAF_ROUNDS = 300, 8
#: With more units than this the first tangents are taken at minimisers of the smooth Lagrangian, the last so many,
#: which may take this fraction of the time.
FEW_UNITS, SMOOTH_POINTS, SMOOTH_FRACTION = 24, 6, 0.5
#: A bound on a drop is claimed so much lower (times ``max(1, |bound|)``): far above the rounding of float64 sums.
CLAIM_SLACK = 1e-12


def certify(
    problem: Problem,
    solution: Solution,
    *,
    time_limit: float | None = 30.0,
    max_leaves: int = 512,
    points: np.ndarray | None = None,
) -> Solution:
    """Attach a certificate to a solution: a proof of a lower bound that can be checked without a solver.

    The multipliers come from linear programs (HiGHS), first over all masks, then, as long as the bound lies below the
    incumbent and the limits allow, over the leaves of a branch and bound of its own.  Small problems end with a
    complete proof; large ones with the root's bound or a little more, which may be *below* ``solution.bound``.

    Args:
        problem: the problem that was solved.
        solution: its solution; only the incumbent is used.
        time_limit: seconds for the search; what it has then is certified.
        max_leaves: most leaves of the tree.
        points: float64, shape (P, n): removal vectors to begin with, tangent points of a relaxation for example.

    Raises:
        CertificateError: the incumbent isn't feasible for this problem.
    """
    evaluation = problem.evaluate(solution.kept)
    if not evaluation.feasible:
        raise CertificateError(f"the incumbent isn't feasible: {'; '.join(evaluation.violations)}")
    deadline = math.inf if time_limit is None else time.perf_counter() + time_limit
    work = _Work(problem, solution.kept, evaluation.objective, evaluation.drop, deadline)
    with contextlib.suppress(KeyboardInterrupt):  # what was found so far is a proof too
        work.grow(max_leaves, np.zeros((0, problem.n_units)) if points is None else np.asarray(points, dtype=float))
    return dataclasses.replace(solution, certificate=work.certificate())


@dataclasses.dataclass(order=True)
class _Node:
    """A box of masks; leaves are ordered by their bounds, weakest first."""

    bound: float
    number: int
    keep: np.ndarray = dataclasses.field(compare=False)
    remove: np.ndarray = dataclasses.field(compare=False)
    leaf: Leaf = dataclasses.field(compare=False)
    branch: int = dataclasses.field(compare=False, default=-1)  # the unit to branch on
    children: tuple[_Node, _Node] | None = dataclasses.field(compare=False, default=None)


class _Work:
    def __init__(self, problem: Problem, kept: np.ndarray, objective: float, drop: float, deadline: float) -> None:
        self.problem, self.kept, self.objective, self.deadline = problem, kept, objective, deadline
        reference = abs(problem.max_drop) if problem.max_drop is not None else abs(drop)
        spread = abs(problem.surrogate.drop((~problem.keep).astype(float))) + np.abs(problem.surrogate.linear).sum()
        self.program = LeafProgram(problem, max(reference, 1e-3 * float(spread), 1e-12))
        self.target = objective - (1e-6 * max(1e-3, abs(objective)) if problem.objective == "drop" else 1.0 - 1e-6)
        self.bounds = LeafBounds(problem, np.zeros((0, problem.n_units)), Ball)
        self.count = 0
        self.root: _Node | None = None

    def grow(self, max_leaves: int, points: np.ndarray) -> None:
        program, problem = self.program, self.problem
        low, high = problem.remove.astype(float), 1.0 - problem.keep
        for z in (0.5 * (low + high), (~self.kept).astype(float), *points):
            program.add_tangents(np.clip(z, low, high))
        if problem.n_units > FEW_UNITS:
            begin = time.perf_counter()
            share = begin + SMOOTH_FRACTION * (self.deadline - begin)
            smooth = list(smooth_points(problem, self.kept, lambda: time.perf_counter() < share))
            for z in smooth[-SMOOTH_POINTS:]:
                program.add_tangents(z)
        self.root = self._node(problem.keep, problem.remove, ROOT_ROUNDS)
        open_, leaves = [self.root], 1
        while open_ and open_[0].bound <= self.target and leaves < max_leaves:
            if time.perf_counter() > self.deadline:
                return
            node = heapq.heappop(open_)
            if node.branch < 0:
                continue  # a single mask whose bound rounding keeps below the incumbent
            out, stay = node.remove.copy(), node.keep.copy()
            out[node.branch] = stay[node.branch] = True
            boxes = (stay, node.remove), (node.keep, out)
            first, second = (self._node(*box, LEAF_ROUNDS, node.leaf) for box in boxes)
            node.children = first, second
            for child in node.children:
                heapq.heappush(open_, child)
            leaves += 1

    def _node(self, keep: np.ndarray, remove: np.ndarray, rounds: int, parent: Leaf | None = None) -> _Node:
        """Solve a box, with tangents until they say nothing new, and derive its bound as the checker will.

        The multipliers are the best of the program's, with and without the objective, and those of the parent.
        """
        self.count += 1
        solved = self._solve(keep, remove, rounds)
        none = np.zeros(0)
        empty = Leaf(0.0, 0.0, {}, np.zeros(len(self.problem.forbidden)), none, none, none)
        choices = [empty] if solved is None else [solved.leaf, solved.refuting]  # no solution: no count is allowed
        best, leaf = -math.inf, empty
        for choice in (*choices, parent):
            if choice is not None and best <= self.target:
                bound = self._derive(choice, keep, remove)
                best, leaf = (bound, choice) if bound >= best else (best, leaf)
        free = ~(keep | remove)
        fractional = free if solved is None else np.where(free, np.minimum(solved.z, 1.0 - solved.z), -1.0)
        return _Node(best, self.count, keep, remove, leaf, int(fractional.argmax()) if free.any() else -1)

    def _solve(self, keep: np.ndarray, remove: np.ndarray, rounds: int) -> LeafSolution | None:
        """Kelley's method: tangents at the program's solution and half-way to the incumbent."""
        program, bounds = self.program, []
        inner = np.clip((~self.kept).astype(float), remove.astype(float), 1.0 - keep)
        solved = program.solve(keep, remove)
        for _ in range(rounds):
            if solved is None or solved.bound > self.target or time.perf_counter() > self.deadline:
                break
            bounds.append(solved.bound)
            if len(bounds) > 10 and bounds[-1] - bounds[-10] <= 1e-6 * abs(bounds[-1]):
                break
            if not program.add_tangents(solved.z, solved.theta + VIOLATION):
                break
            program.add_tangents(0.5 * (solved.z + inner))
            solved = program.solve(keep, remove)
        return solved

    def _derive(self, leaf: Leaf, keep: np.ndarray, remove: np.ndarray) -> float:
        self.bounds.points = np.array(self.program.points).reshape(-1, self.problem.n_units)
        return rounded_down(self.bounds.bound(leaf, keep, remove))

    def _claimed(self, bound: float) -> float:
        """What the certificate claims: a checker on another machine sums in another order and derives a bit less."""
        return bound - CLAIM_SLACK * max(1.0, abs(bound)) if self.problem.objective == "drop" else bound

    def certificate(self) -> Certificate:
        """The tree as far as it was grown, with the points that it uses."""
        if self.root is None:
            raise CertificateError("the search for a certificate was interrupted before its first bound")
        tree: list[int] = []
        leaves: list[Leaf] = []
        bounds: list[float] = []
        stack = [self.root]
        while stack:
            node = stack.pop()
            if node.children is None:
                tree.append(-1)
                leaves.append(node.leaf)
                bounds.append(self._derive(node.leaf, node.keep, node.remove))
            else:
                tree.append(node.branch)
                stack += node.children[::-1]
        used = np.unique(np.concatenate([leaf.point for leaf in leaves]))
        points = np.array(self.program.points).reshape(-1, self.problem.n_units)[used]
        leaves = [dataclasses.replace(leaf, point=np.searchsorted(used, leaf.point)) for leaf in leaves]
        return Certificate(
            problem_digest=self.problem.digest,
            kept=self.kept,
            objective=self.objective,
            bound=self._claimed(min(bounds)),
            tree=np.array(tree),
            leaves=tuple(leaves),
            points=points,
        )
