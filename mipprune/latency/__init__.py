"""latency: how long a network takes on this machine, as a table per operation and width, and dense against pruned."""

from .clock import LatencyComparison, compare_latency
from .fit import OpFit, fit_operations
from .table import LatencyTable, measure_latency, with_latency

__all__ = ["LatencyComparison", "LatencyTable", "OpFit", "compare_latency", "fit_operations", "measure_latency",
           "with_latency"]
