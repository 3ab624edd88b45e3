"""Checks certificates: derives the bound again from the problem and the multipliers, without any solver."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np

from ..errors import CertificateError
from ..records import Record
from .arithmetic import Ball, Dyadic
from .certificate import Certificate
from .certificate_bound import LeafBounds
from .problem import Problem

__all__ = ["CertificateReport", "check_certificate", "leaf_bounds", "rounded_down"]

#: The incumbent's objective is float64, summed in another order on another machine.
OBJECTIVE_RTOL = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class CertificateReport(Record):
    """What a check derived.

    Attributes:
        bound: lower bound on the objective of every feasible mask, derived here, rounded down to a float.
        claimed: the bound that the certificate claims, not above ``bound``.
        objective: the incumbent's objective, evaluated here in float64.
        exact: whether the bound was derived in exact arithmetic; otherwise in float64 with a running error bound.
        proves: whether the tangents themselves were derived; ``False`` for a surrogate class without a rule, whose own
            gradients had to be taken for right.
        n_leaves, n_points: size of the proof.
    """

    bound: float
    claimed: float
    objective: float
    exact: bool
    proves: bool
    n_leaves: int
    n_points: int


def check_certificate(problem: Problem, certificate: Certificate, *, exact: bool = False) -> CertificateReport:
    """Derive the bound of ``certificate`` again, and evaluate its incumbent.

    Args:
        problem: the problem that the certificate is about.
        exact: in exact rational arithmetic instead of float64 with error bounds.  Costs about 100 times as much.

    Raises:
        CertificateError: another problem, a changed file, an incumbent that isn't feasible or has another objective, a
            tree that isn't one, wrong multipliers, or a bound that they don't prove.
        SolverError: ``exact`` for a surrogate class without a rule.
    """
    if certificate.problem_digest != problem.digest:
        raise CertificateError("the certificate is about another problem (the digests differ)")
    if certificate.seal != certificate.contents_digest:
        raise CertificateError("the certificate was changed after it was written (its seal doesn't fit)")
    n = problem.n_units
    if certificate.kept.shape != (n,) or certificate.points.shape[1:] != (n,):
        raise CertificateError(f"the certificate isn't for {n} units")
    if not ((certificate.points >= 0) & (certificate.points <= 1)).all():
        raise CertificateError("a tangent point lies outside the box")
    evaluation = problem.evaluate(certificate.kept)
    if not evaluation.feasible:
        raise CertificateError(f"the incumbent isn't feasible: {'; '.join(evaluation.violations)}")
    tolerance = OBJECTIVE_RTOL * max(1.0, abs(evaluation.objective))
    if not abs(certificate.objective - evaluation.objective) <= tolerance:
        raise CertificateError(
            f"the incumbent's objective is {evaluation.objective!r}, the certificate says {certificate.objective!r}"
        )
    bounds = LeafBounds(problem, certificate.points, Dyadic if exact else Ball)
    derived = min(leaf_bounds(bounds, certificate), default=math.inf)
    if math.isnan(certificate.bound) or certificate.bound > derived:
        raise CertificateError(f"the certificate claims the bound {certificate.bound!r}, but proves {float(derived)!r}")
    return CertificateReport(
        bound=rounded_down(derived),
        claimed=certificate.bound,
        objective=evaluation.objective,
        exact=exact,
        proves=bounds.rule.proves,
        n_leaves=len(certificate.leaves),
        n_points=len(certificate.points),
    )


def leaf_bounds(bounds: LeafBounds, certificate: Certificate) -> list[Fraction | float]:
    """The bound of every leaf, once it is sure that the leaves hold all masks.

    Raises:
        CertificateError: the tree is cut short, has nodes or leaves left over, or names a unit twice on a path.
    """
    problem, tree = bounds.problem, certificate.tree.tolist()
    stack = [(problem.keep.copy(), problem.remove.copy())]
    found: list[Fraction | float] = []
    for unit in tree:
        if not stack:
            raise CertificateError("the tree has nodes left over")
        keep, remove = stack.pop()
        if unit == -1:
            if len(found) == len(certificate.leaves):
                raise CertificateError("the tree has more leaves than there are multipliers")
            found.append(bounds.bound(certificate.leaves[len(found)], keep, remove))
            continue
        if not 0 <= unit < problem.n_units or keep[unit] or remove[unit]:
            raise CertificateError(f"the tree branches on unit {unit}, which isn't free there")
        out, stay = remove.copy(), keep.copy()
        out[unit] = stay[unit] = True
        stack += [(keep, out), (stay, remove)]
    if stack or len(found) != len(certificate.leaves):
        raise CertificateError("the tree is cut short")
    return found


def rounded_down(value: Fraction | float) -> float:
    """The largest float not above ``value``."""
    rounded = float(value)
    return float(np.nextafter(rounded, -np.inf)) if rounded > value else rounded
