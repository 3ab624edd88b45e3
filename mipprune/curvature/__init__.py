"""curvature: how the loss bends when units are turned down."""

from .gates import GateExpansion, expand_gates
from .head import HeadFit, fit_linear_head
from .output_metric import output_metrics
from .refit_curves import RefitCurve, refit_curves

__all__ = [
    "GateExpansion", "HeadFit", "RefitCurve", "expand_gates", "fit_linear_head", "output_metrics", "refit_curves",
]
