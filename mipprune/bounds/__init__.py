"""bounds: networks as piecewise-linear maps of their unit gates, and ranges of their activations over every mask."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes
from .linear import output_range, value_ranges
from .network import Affine, Gate, MaxPool, PiecewiseLinear, Relu
from .ranges import Ranges, interval_ranges
from .tails import sum_bound

if TYPE_CHECKING:
    from .extract import piecewise_linear
    from .gap import GapBound, NeuronGap, neuron_gap, neuron_gap_on_ball
    from .validate import Validation, validate_neurons

__all__ = ["Affine", "GapBound", "Gate", "MaxPool", "NeuronGap", "PiecewiseLinear", "Ranges", "Relu", "Validation",
           "interval_ranges", "neuron_gap", "neuron_gap_on_ball", "output_range", "piecewise_linear", "sum_bound",
           "validate_neurons", "value_ranges"]

__getattr__ = lazy_attributes(__name__, {
    "piecewise_linear": "extract",
    "GapBound": "gap", "NeuronGap": "gap", "neuron_gap": "gap", "neuron_gap_on_ball": "gap",
    "Validation": "validate", "validate_neurons": "validate",
})
