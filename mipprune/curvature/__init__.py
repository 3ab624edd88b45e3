"""curvature: how the loss bends, in the gates of the units and in the weights."""

from .gates import GateExpansion, expand_gates
from .head import HeadFit, fit_linear_head
from .hessian import CurvatureOperator, Sharpness, TopEigenvalues, hessian_top_eigenvalues, sharpness
from .kronecker import KroneckerBlock, KroneckerFactors, kfac_factors, spectral_radius
from .output_metric import output_metrics
from .refit_curves import RefitCurve, RefitModel, refit_curves
from .sensitivity import Sensitivity
from .sketch import sketch_gates

__all__ = ["CurvatureOperator", "GateExpansion", "HeadFit", "KroneckerBlock", "KroneckerFactors", "RefitCurve",
           "RefitModel", "Sensitivity", "Sharpness", "TopEigenvalues", "expand_gates", "fit_linear_head",
           "hessian_top_eigenvalues", "kfac_factors", "output_metrics", "refit_curves", "sharpness", "sketch_gates",
           "spectral_radius"]
