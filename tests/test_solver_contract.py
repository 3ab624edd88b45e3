"""Every backend keeps the contract, the enumerator too."""

from __future__ import annotations

from mipprune.testing import SolverContract


class TestScip(SolverContract):
    solver = "scip"


class TestHighs(SolverContract):
    solver = "highs"


class TestCbc(SolverContract):
    solver = "cbc"
    gives_bound = False
    seeds = range(12)  # every program is a process of its own


class TestBrute(SolverContract):
    solver = "brute"
    gives_bound = False


class TestAuto(SolverContract):
    solver = "auto"


class TestNlp(SolverContract):
    solver = "nlp"
    one_group = True
    seeds = range(120)
