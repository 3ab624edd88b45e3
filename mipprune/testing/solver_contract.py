"""What every backend of ``solve`` promises, as tests to inherit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np
import pytest

from ..errors import InfeasibleError, SolverError
from ..solver import Problem, Solution, solve
from ..surrogates import Additive, LinearHead, Quadratic
from .problems import random_problem

__all__ = ["SolverContract"]


class SolverContract:
    """Conformance tests of a :class:`~mipprune.solver.backend.Backend`, for pytest; enumeration is the judge.

    Usage::

        class TestMySolver(SolverContract):
            solver = "mine"

    Attributes:
        solver: the name that ``solve`` knows it by; or override :meth:`solve`.
        seeds: instances of :func:`~mipprune.testing.problems.random_problem` that are solved; one in ten is infeasible.
        gives_bound: whether a search that is stopped early has to bring a bound of its own.
        one_group: whether it takes only problems in which all units are of one group.
    """

    solver: ClassVar[str]
    seeds: ClassVar[range] = range(40)
    gives_bound: ClassVar[bool] = True
    one_group: ClassVar[bool] = False

    def solve(self, problem: Problem, **options: Any) -> Solution:
        """The backend's answer to ``problem``; ``options`` are those of ``mipprune.solve``."""
        return solve(problem, self.solver, **options)

    def _best(self, problem: Problem) -> float:
        """Enumerated optimum, ``inf`` if there is none."""
        try:
            return solve(problem, "brute").objective
        except InfeasibleError:
            return math.inf

    def test_it_finds_and_proves_the_enumerated_optimum(self) -> None:
        for seed in self.seeds:
            try:
                problem = random_problem(seed, wide=True)
            except InfeasibleError:
                continue
            if self.one_group and len(problem.costs.groups) > 1:
                continue
            best = self._best(problem)
            if math.isinf(best):
                with pytest.raises(InfeasibleError):
                    self.solve(problem)
                continue
            found = self.solve(problem)
            assert problem.evaluate(found.kept).feasible, seed
            assert found.objective == pytest.approx(best, abs=1e-6), seed
            assert found.objective == problem.evaluate(found.kept).objective, "an objective that isn't the mask's"
            assert found.bound <= best + 1e-9 * max(1.0, abs(best)), f"a bound above the optimum (seed {seed})"
            assert found.proved, seed
            assert found.termination == "optimal", seed
            assert Solution.from_dict(found.to_dict()) == found
            _check_progress(found)

    def test_a_search_that_is_cut_short_claims_nothing_false(self) -> None:
        for seed in (4, 10, 16):
            problem = self._harder(seed)
            best = self._best(problem)
            for time_limit in (1e-4, 0.02, 0.2):
                try:
                    found = self.solve(problem, time_limit=time_limit)
                except SolverError:
                    continue  # nothing found in time
                assert problem.evaluate(found.kept).feasible
                assert found.bound <= best + 1e-9 <= found.objective + 2e-9
                assert found.termination == "optimal" or not found.proved or found.gap == 0.0
                _check_progress(found)

    def _harder(self, seed: int) -> Problem:
        rng = np.random.default_rng(seed)
        activations, weight = rng.random((120, 11)), 2 * rng.normal(size=(4, 11))
        head = LinearHead(activations, weight, np.zeros(4), (activations @ weight.T).argmax(1), 8)
        return Problem.minimize_units(head, max_drop=0.05)

    def test_a_start_is_used(self) -> None:
        problem = self._harder(4)
        best = solve(problem, "brute")
        assert self.solve(problem, start=best.kept).objective == best.objective
        assert self.solve(problem, start=best.kept, time_limit=1e-4).objective <= best.objective
        assert self.solve(problem, start=np.zeros(11, dtype=bool)).objective == best.objective  # an infeasible one

    def test_forbidden_masks_list_all_optima(self) -> None:
        problem = Problem.minimize_drop(Additive(np.array([1.0, 1.0, 1.0, 2.0, 3.0])), budgets={"units": 3})
        seen: set[bytes] = set()
        while True:
            found = self.solve(problem)
            if found.objective > 2.0 + 1e-9:
                break
            assert found.kept.tobytes() not in seen
            seen.add(found.kept.tobytes())
            problem = dataclasses.replace(problem, forbidden=np.concatenate([problem.forbidden, found.kept[None]]))
        assert len(seen) == 3

    def test_nothing_left_to_decide(self) -> None:
        surrogate = Quadratic(np.ones(4), np.eye(4))
        problem = Problem.minimize_units(surrogate, max_drop=3.5, keep=[0, 1], remove=[2, 3])
        assert self.solve(problem).kept.tolist() == [True, True, False, False]
        with pytest.raises(InfeasibleError) as error:
            self.solve(dataclasses.replace(problem, max_drop=2.5))
        assert error.value.nearest == pytest.approx(3.0)

    def test_the_same_seed_gives_the_same_answer(self) -> None:
        problem = self._harder(10)
        one, two = self.solve(problem, seed=3), self.solve(problem, seed=3)
        assert (one.kept == two.kept).all()
        assert one.bound == two.bound

    def test_an_early_stop_has_a_bound(self) -> None:
        if self.gives_bound:
            found = self.solve(self._harder(4), time_limit=5.0)
            assert math.isfinite(found.bound)


def _check_progress(found: Solution) -> None:
    """Time goes on, the objective never rises, the bound never falls, and the last event is the answer."""
    if not found.progress:
        return  # of a backend that isn't run by ``mipprune.solve``
    seconds, objectives, bounds = zip(*found.progress, strict=True)
    assert list(seconds) == sorted(seconds)
    assert list(objectives) == sorted(objectives, reverse=True)
    assert list(bounds) == sorted(bounds)
    assert (objectives[-1], bounds[-1]) == (found.objective, found.bound)
    assert seconds[-1] <= found.seconds
