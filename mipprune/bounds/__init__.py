"""bounds: networks as piecewise-linear maps of their unit gates, and ranges of their activations over every mask."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes
from .linear import output_range, value_ranges
from .network import Affine, Gate, MaxPool, PiecewiseLinear, Relu
from .ranges import Ranges, interval_ranges

if TYPE_CHECKING:
    from .extract import piecewise_linear

__all__ = ["Affine", "Gate", "MaxPool", "PiecewiseLinear", "Ranges", "Relu", "interval_ranges", "output_range",
           "piecewise_linear", "value_ranges"]

__getattr__ = lazy_attributes(__name__, {"piecewise_linear": "extract"})
