"""Solvers of one's own, made known by name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mipprune.errors import MissingDependencyError, SolverError
from mipprune.solver import Backend, Problem, register_backend, registry, solve
from mipprune.surrogates import Additive


class KeepsAll(Backend):
    """Offers the dense mask and claims nothing."""

    def run(self, search: object, start: np.ndarray | None) -> str:
        search.offer(~search.problem.remove)  # type: ignore[attr-defined]
        return "iteration_limit"


@pytest.fixture(autouse=True)
def backends_as_before() -> Iterator[None]:
    before = dict(registry.BACKENDS)
    yield
    registry.BACKENDS.clear()
    registry.BACKENDS.update(before)


def problem() -> Problem:
    return Problem.minimize_units(Additive(np.array([0.1, 0.2, 0.3])), max_drop=0.15)


def test_a_registered_backend_solves_under_its_name() -> None:
    made: list[KeepsAll] = []

    def make() -> KeepsAll:
        made.append(KeepsAll())
        return made[-1]

    register_backend("keeps all", make)
    for count in (1, 2):  # a fresh one for every search
        solution = solve(problem(), solver="keeps all")
        assert len(made) == count
        assert (solution.solver, solution.version, solution.n_kept) == ("keeps all", "", 3)
        assert solution.termination == "iteration_limit"
        assert not solution.proved


def test_threads_warn_unless_it_says_that_it_uses_them(recwarn: pytest.WarningsRecorder) -> None:
    register_backend("one", KeepsAll)
    register_backend("many", KeepsAll, parallel=True)
    solve(problem(), solver="many", threads=2)
    assert not recwarn
    with pytest.warns(UserWarning, match="one searches on one thread"):
        solve(problem(), solver="one", threads=2)


def test_its_packages_must_be_there_and_the_last_gives_the_version() -> None:
    register_backend("versioned", KeepsAll, packages=("numpy",))
    assert solve(problem(), solver="versioned").version == np.__version__
    register_backend("versioned", KeepsAll, packages=("no_such_package",))  # the later one wins
    with pytest.raises(MissingDependencyError, match="no_such_package"):
        solve(problem(), solver="versioned")


@pytest.mark.parametrize("name", ["", "auto", *registry.BACKENDS])
def test_the_packages_own_names_are_taken(name: str) -> None:
    with pytest.raises(SolverError, match="choose a name other than"):
        register_backend(name, KeepsAll)


def test_an_unknown_solver_is_answered_with_the_known_ones() -> None:
    register_backend("keeps all", KeepsAll)
    with pytest.raises(SolverError, match="keeps all"):
        solve(problem(), solver="nothing")
