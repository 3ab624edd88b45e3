"""Surrogates: the network's accuracy as a solver sees it, in numpy alone."""

from .additive import Additive
from .base import Surrogate
from .fit import FitError, fit_error
from .gap import GapNorm, WorstRow
from .head import LinearHead
from .pairwise import Pairwise
from .quadratic import Quadratic
from .robust import BudgetedAdditive, RobustAdditive

__all__ = [
    "Additive",
    "BudgetedAdditive",
    "FitError",
    "GapNorm",
    "LinearHead",
    "Pairwise",
    "Quadratic",
    "RobustAdditive",
    "Surrogate",
    "WorstRow",
    "fit_error",
]
