"""Surrogates: the network's accuracy as a solver sees it, in numpy alone."""

from .additive import Additive
from .base import Surrogate
from .head import LinearHead
from .quadratic import Quadratic

__all__ = ["Additive", "LinearHead", "Quadratic", "Surrogate"]
