"""Problems as MPS, LP or CIP files, for any other solver."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SolverError
from ..records import write_bytes_atomic
from .cuts import Cuts, append_cuts, tangents
from .formulate import Formulation, formulate
from .linear import LinearMip
from .problem import Problem

__all__ = ["export_problem", "linearised"]

#: File types, by suffix.
FORMATS = (".mps", ".lp", ".cip")


def export_problem(path: str | os.PathLike[str], problem: Problem, points: np.ndarray | None = None) -> None:
    """Write ``problem`` as a linear MIP in the format of the file's suffix: .mps, .lp or .cip (SCIP writes it).

    Costs, counts, pins, multiples and no-good cuts are exact.  Convex terms of the surrogate are approximated from
    below by tangents: the file is then a *relaxation*, whose optimum is a lower bound, and whose solution has to be
    evaluated with :meth:`Problem.evaluate`.  With a surrogate that is linear the file is the problem.  Columns
    ``kept_i`` are the units, ``term_b`` the convex terms, ``x_j`` the rest (counts and their products).  The objective
    is the problem's own, its constant included.

    Args:
        path: the file; its suffix names the format.
        problem: what to write.
        points: float64, shape (P, n): removal vectors where tangents are taken; by default nothing, half and all
            removed, and every unit alone.

    Raises:
        SolverError: another suffix.
    """
    kind = Path(path).suffix
    if kind not in FORMATS:
        raise SolverError(f"{path}: a problem is written as one of {FORMATS}, the suffix says which")
    formulation, mip = linearised(problem, points)
    with tempfile.TemporaryDirectory(prefix="mipprune-") as folder:
        draft = Path(folder) / f"problem{kind}"
        _scip_model(formulation, mip).writeProblem(str(draft), trans=False, verbose=False)
        write_bytes_atomic(path, draft.read_bytes())


def linearised(problem: Problem, points: np.ndarray | None = None) -> tuple[Formulation, LinearMip]:
    """The formulation and its linear MIP with tangents at ``points`` (see :func:`export_problem`)."""
    formulation = formulate(problem)
    if len(formulation.theta) == 0:
        return formulation, formulation.mip
    low, high = problem.remove.astype(float), 1.0 - problem.keep
    if points is None:
        alone = low + np.eye(problem.n_units)[np.flatnonzero(high > low)]
        points = np.concatenate([[low, 0.5 * (low + high), high], alone])
    cuts = [tangents(formulation, np.clip(z, low, high)) for z in np.asarray(points, dtype=np.float64)]
    return formulation, append_cuts(formulation, Cuts.join(cuts)) if cuts else formulation.mip


def _scip_model(formulation: Formulation, mip: LinearMip) -> Any:
    import pyscipopt

    names = [f"x_{j}" for j in range(mip.n_columns)]
    for label, columns in (("kept", formulation.kept), ("term", formulation.theta)):
        for i, column in enumerate(columns):
            names[column] = f"{label}_{i}"
    model = pyscipopt.Model("mipprune")
    model.hideOutput()
    variables = [
        model.addVar(
            name, "I" if whole else "C", lb=_finite(low), ub=_finite(high), obj=cost * formulation.unit
        )
        for name, whole, low, high, cost in zip(names, mip.integer, mip.lower, mip.upper, mip.c, strict=True)
    ]
    model.addObjoffset(mip.constant * formulation.unit)
    for row, (low, high) in enumerate(zip(mip.row_lower, mip.row_upper, strict=True)):
        span = slice(mip.indptr[row], mip.indptr[row + 1])
        terms = zip(mip.indices[span].tolist(), mip.values[span].tolist(), strict=True)
        activity = pyscipopt.quicksum(value * variables[j] for j, value in terms)
        model.addCons(pyscipopt.ExprCons(activity, lhs=_finite(low), rhs=_finite(high)), name=f"row_{row}")
    return model


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
