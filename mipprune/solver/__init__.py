"""solver: problems as pure data, solvers behind one registry, solutions with their bounds.  No torch."""

from .api import solve
from .curve import SizeCurve, size_curve
from .linear import LinearMip, MipBuilder
from .linear_solver import LinearOutcome
from .pool import Pool, near_optimal
from .problem import Evaluation, Problem
from .recombine import Recombination, recombine
from .registry import solve_linear
from .solution import Solution

__all__ = [
    "Evaluation",
    "LinearMip",
    "LinearOutcome",
    "MipBuilder",
    "Pool",
    "Problem",
    "Recombination",
    "SizeCurve",
    "Solution",
    "near_optimal",
    "recombine",
    "size_curve",
    "solve",
    "solve_linear",
]
