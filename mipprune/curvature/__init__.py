"""curvature: how the loss bends when units are turned down."""

from .gates import GateExpansion, expand_gates
from .head import HeadFit, fit_linear_head

__all__ = ["GateExpansion", "HeadFit", "expand_gates", "fit_linear_head"]
