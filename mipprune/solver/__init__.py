"""solver: problems as pure data, solvers behind one registry, solutions with their bounds.  No torch."""

from .api import solve
from .backend import Backend
from .certificate import Certificate, load_certificate, save_certificate
from .certificate_check import CertificateReport, check_certificate
from .certificate_search import certify
from .certified import CertifiedChoice, certified_predictions
from .components import solve_by_components
from .curve import SizeCurve, size_curve, size_curves
from .export import export_problem
from .linear import LinearMip, MipBuilder
from .linear_solver import LinearOutcome
from .pool import Pool, near_optimal
from .problem import Evaluation, Problem
from .recombine import Recombination, recombine
from .registry import register_backend, solve_linear
from .solution import Solution
from .storage import load_problem, save_problem

__all__ = [
    "Backend",
    "Certificate",
    "CertifiedChoice",
    "CertificateReport",
    "Evaluation",
    "LinearMip",
    "LinearOutcome",
    "MipBuilder",
    "Pool",
    "Problem",
    "Recombination",
    "SizeCurve",
    "Solution",
    "certified_predictions",
    "certify",
    "check_certificate",
    "export_problem",
    "load_certificate",
    "load_problem",
    "near_optimal",
    "recombine",
    "register_backend",
    "save_certificate",
    "save_problem",
    "size_curve",
    "size_curves",
    "solve",
    "solve_by_components",
    "solve_linear",
]
