"""bounds: networks as piecewise-linear maps of their unit gates, and ranges of their activations over every mask."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes
from .linear import output_range, value_ranges
from .network import Affine, Gate, MaxPool, PiecewiseLinear, Relu
from .ranges import Ranges, interval_ranges
from .tails import sum_bound

if TYPE_CHECKING:
    from .api import keep_for, random_pruning, width_for
    from .ball import neuron_gap_on_ball
    from .chance import ChanceChoice, chance_constrained
    from .extract import piecewise_linear
    from .gap import GapBound, NeuronGap, neuron_gap
    from .sampled import sampled_pruning
    from .validate import Validation, WeightValidation, measured_gaps, validate_neurons, validate_weights
    from .weights import WeightMasks, magnitude_masks, magnitude_pruning, removed_norm, weight_gap

__all__ = ["Affine", "ChanceChoice", "GapBound", "Gate", "MaxPool", "NeuronGap", "PiecewiseLinear", "Ranges", "Relu",
           "Validation", "WeightMasks", "WeightValidation", "chance_constrained", "interval_ranges", "keep_for",
           "magnitude_masks", "magnitude_pruning", "measured_gaps", "neuron_gap", "neuron_gap_on_ball", "output_range",
           "piecewise_linear", "random_pruning", "removed_norm", "sampled_pruning", "sum_bound", "validate_neurons",
           "validate_weights", "value_ranges", "weight_gap", "width_for"]

__getattr__ = lazy_attributes(__name__, {
    "piecewise_linear": "extract",
    "GapBound": "gap", "NeuronGap": "gap", "neuron_gap": "gap", "neuron_gap_on_ball": "ball",
    "ChanceChoice": "chance", "chance_constrained": "chance",
    "keep_for": "api", "random_pruning": "api", "width_for": "api",
    "WeightMasks": "weights", "magnitude_masks": "weights", "magnitude_pruning": "weights", "removed_norm": "weights",
    "weight_gap": "weights",
    "sampled_pruning": "sampled",
    "Validation": "validate", "measured_gaps": "validate", "validate_neurons": "validate",
    "WeightValidation": "validate", "validate_weights": "validate",
})
