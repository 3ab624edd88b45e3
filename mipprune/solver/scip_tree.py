"""SCIP in a single tree: one branch and bound that is given tangent cuts where it needs them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyscipopt
from pyscipopt.scip import PY_SCIP_HEURTIMING as SCIP_HEURTIMING
from pyscipopt.scip import PY_SCIP_PARAMSETTING as SCIP_PARAMSETTING
from pyscipopt.scip import PY_SCIP_RESULT as SCIP_RESULT

from ..errors import SolverError
from .branching import TreeBackend
from .cuts import Cuts, append_cuts, tangents
from .formulate import Formulation
from .relax import Relaxation
from .scip_model import add_start, build_model, dual_bound, optimize, scip_termination
from .search import Search

__all__ = ["ScipTree"]

#: Fractional points get cuts when the terms together are too low by more than this (in units of the formulation, see
#: ``drop_unit``: about 1/200 of the drops that matter).  Measured on 128-unit heads: 1 and 20 are both slower.
SEPARATION = 5.0
#: Whole points get cuts that are broken by more than this; SCIP's own feasibility tolerance is 1e-6.
ENFORCEMENT = 1e-5
#: The objective of an accepted point may lie this much below the truth when the drop is minimised.
SHORTFALL = 1e-4
#: So often a point gets its tangents; after that the program's tolerance, not a missing cut, is the reason.
VISITS = 5

Result = dict[str, Any]


class ScipTree(TreeBackend):
    """Branch and bound with tangents as lazy constraints (the LP/NLP-based scheme of Quesada and Grossmann)."""

    def branch(self, search: Search, formulation: Formulation, root: Relaxation) -> str:
        mip = append_cuts(formulation, root.cuts)
        model, variables = build_model(mip, time_limit=search.remaining, seed=search.seed)
        # measured: cutting planes on the dense tangent rows cost far more than they give, 15 times on some problems
        model.setSeparating(SCIP_PARAMSETTING.OFF)
        for rounds in ("separating/maxrounds", "separating/maxroundsroot"):
            model.setParam(rounds, -1)  # the tangents are separated without end
        model.setHeuristics(SCIP_PARAMSETTING.FAST)
        if search.problem.objective != "drop":
            model.setObjIntegral()  # in the unit of the formulation all costs are whole numbers, up to the constant
        lazy = _Tangents(search, formulation, variables)
        model.includeConshdlr(
            lazy,
            "tangents",
            "convex terms by their tangents, masks by exact evaluation",
            sepapriority=-1,
            enfopriority=-5_000_000,  # after integrality and the linear rows
            chckpriority=-5_000_000,
            sepafreq=1,
            eagerfreq=-1,
            needscons=False,
        )
        model.includeHeur(
            _Completion(lazy),
            "completion",
            "masks with their terms at the exact values",
            "*",
            timingmask=SCIP_HEURTIMING.DURINGLPLOOP | SCIP_HEURTIMING.AFTERLPNODE,
        )
        if search.kept is not None:
            add_start(model, variables, formulation.point(search.kept))
        try:
            interrupted = optimize(model)
        except Exception as error:  # PySCIPOpt's own failures have no common class
            if search.kept is None:
                raise SolverError(f"SCIP broke down: {error}") from error
            return "solver_error"
        if lazy.error is not None:
            raise lazy.error
        termination = scip_termination(model, interrupted)
        if termination == "infeasible":
            search.raise_bound(math.inf if search.kept is None else search.objective)
            return termination if search.kept is None else "optimal"
        search.raise_bound((dual_bound(model) + mip.constant) * formulation.unit)
        return termination


def _guarded(harmless: Any) -> Callable[..., Any]:
    """Keep what a callback raises (SCIP would lose it), stop the search, and answer something harmless."""

    def decorate(callback: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(callback)
        def guarded(self: Any, *args: Any) -> Result:
            owner = self.lazy if isinstance(self, _Completion) else self
            if owner.error is None:
                try:
                    return callback(self, *args)
                except BaseException as error:  # re-raised by ScipTree.branch
                    owner.error = error
                    self.model.interruptSolve()
            return {"result": harmless}

        return guarded

    return decorate


class _Tangents(pyscipopt.Conshdlr):
    """The constraint "the mask is feasible and every ``theta`` is at least its convex term"."""

    def __init__(self, search: Search, formulation: Formulation, variables: list[Any]) -> None:
        self.search, self.formulation = search, formulation
        self.variables = variables
        self.units = [variables[j] for j in formulation.kept]
        self.theta = [variables[j] for j in formulation.theta]
        self.minimised = search.problem.objective == "drop"
        self.visits: dict[bytes, int] = {}
        self.found: list[np.ndarray] = []
        self.error: BaseException | None = None

    # -- SCIP's callbacks ------------------------------------------------------------------------------------------

    @_guarded(SCIP_RESULT.DIDNOTRUN)
    def conssepalp(self, constraints: Any, nusefulconss: int) -> Result:
        z = 1.0 - np.clip(self._values(None, self.units), 0.0, 1.0)
        if len(self.theta) == 0 or (np.minimum(z, 1.0 - z) < 1e-6).all():
            return {"result": SCIP_RESULT.DIDNOTRUN}  # enforcement looks at whole points
        cuts, broken_by = self._tangents(z)
        total = np.maximum(broken_by, 0.0).sum()
        if total < SEPARATION:
            return {"result": SCIP_RESULT.DIDNOTFIND}
        return self._add(cuts[broken_by > 0.25 * total / len(cuts)])

    @_guarded(SCIP_RESULT.INFEASIBLE)
    def consenfolp(self, constraints: Any, nusefulconss: int, solinfeasible: bool) -> Result:
        self.search.raise_bound((dual_bound(self.model) + self.formulation.mip.constant) * self.formulation.unit)
        mask = self._values(None, self.units) > 0.5
        if self._accepts(mask, None):
            return {"result": SCIP_RESULT.FEASIBLE}
        key = mask.tobytes()
        self.visits[key] = self.visits.get(key, 0) + 1
        if len(self.theta) and self.visits[key] <= VISITS:
            cuts, broken_by = self._tangents((~mask).astype(float))
            if (broken_by > ENFORCEMENT).any():
                return self._add(cuts[broken_by > ENFORCEMENT])
        if self.search.problem.evaluate(mask).feasible:
            return {"result": SCIP_RESULT.FEASIBLE}  # its objective is off by the solver's tolerance only
        return self._forbid(mask)

    @_guarded(SCIP_RESULT.INFEASIBLE)
    def consenfops(self, constraints: Any, nusefulconss: int, solinfeasible: bool, objinfeasible: bool) -> Result:
        if objinfeasible:
            return {"result": SCIP_RESULT.DIDNOTRUN}
        mask = self._values(None, self.units) > 0.5
        return {"result": SCIP_RESULT.FEASIBLE if self._accepts(mask, None) else SCIP_RESULT.SOLVELP}

    @_guarded(SCIP_RESULT.INFEASIBLE)
    def conscheck(
        self, constraints: Any, solution: Any, checkintegrality: bool, checklprows: bool, printreason: bool,
        completely: bool,
    ) -> Result:
        values = self._values(solution, self.units)
        whole = (np.abs(values - np.round(values)) < 1e-5).all()
        good = bool(whole) and self._accepts(values > 0.5, solution)
        return {"result": SCIP_RESULT.FEASIBLE if good else SCIP_RESULT.INFEASIBLE}

    def conslock(self, constraint: Any, locktype: Any, nlockspos: int, nlocksneg: int) -> None:
        both = nlockspos + nlocksneg
        for variable in self.units:  # a slope may have either sign, and a mask may be forbidden
            self.model.addVarLocksType(variable, locktype, both, both)
        for variable in self.theta:  # only a smaller theta can break a tangent
            self.model.addVarLocksType(variable, locktype, nlockspos, nlocksneg)

    # -- what they share -------------------------------------------------------------------------------------------

    def _values(self, solution: Any, variables: list[Any]) -> np.ndarray:
        return np.array([self.model.getSolVal(solution, variable) for variable in variables])

    def _accepts(self, mask: np.ndarray, solution: Any) -> bool:
        """Whether the mask is feasible and, if the drop is minimised, the point doesn't claim less than the truth."""
        before = self.search.objective
        evaluation = self.search.offer(mask)
        if self.search.objective < before:
            self.found.append(mask)
        if not evaluation.feasible or not self.minimised:
            return evaluation.feasible
        claimed = self._values(solution, self.theta).sum()
        terms = self.search.problem.surrogate.terms((~mask).astype(float))[0].sum() / self.formulation.drop_unit
        return bool(claimed >= terms - SHORTFALL)

    def _tangents(self, z: np.ndarray) -> tuple[Cuts, np.ndarray]:
        """The tangents at ``z``, and by how much the current LP solution breaks each: shape (B,)."""
        units, theta = self._values(None, self.units), self._values(None, self.theta)
        cuts = tangents(self.formulation, z)
        return cuts, cuts.lower - theta - cuts.coefficients @ units

    def _add(self, cuts: Cuts) -> Result:
        """Add cuts, at least one."""
        for term, coefficients, lower in zip(cuts.term, cuts.coefficients, cuts.lower, strict=True):
            where = np.flatnonzero(coefficients)
            variables = [self.theta[term], *(self.units[i] for i in where)]
            if self._row(variables, np.append(1.0, coefficients[where]), lower):
                return {"result": SCIP_RESULT.CUTOFF}
        self.search.n_cuts += len(cuts)
        return {"result": SCIP_RESULT.SEPARATED}

    def _forbid(self, mask: np.ndarray) -> Result:
        """A no-good cut: the next mask differs in one unit at least."""
        cutoff = self._row(self.units, np.where(mask, -1.0, 1.0), 1.0 - mask.sum())
        return {"result": SCIP_RESULT.CUTOFF if cutoff else SCIP_RESULT.SEPARATED}

    def _row(self, variables: list[Any], values: np.ndarray, lower: float) -> bool:
        """Add ``values @ variables >= lower``, valid everywhere; whether it can't be met here."""
        row = self.model.createEmptyRowUnspec("", lhs=float(lower), rhs=None, local=False, removable=True)
        self.model.cacheRowExtensions(row)
        for variable, value in zip(variables, values.tolist(), strict=True):
            self.model.addVarToRow(row, variable, value)
        self.model.flushRowExtensions(row)
        infeasible = self.model.addCut(row, forcecut=True)
        self.model.releaseRow(row)
        return bool(infeasible)


class _Completion(pyscipopt.Heur):
    """Hands SCIP the new incumbents with their terms at the exact values."""

    def __init__(self, lazy: _Tangents) -> None:
        self.lazy = lazy

    @_guarded(SCIP_RESULT.DIDNOTRUN)
    def heurexec(self, heurtiming: Any, nodeinfeasible: bool) -> Result:
        stored = False
        while self.lazy.found:
            point = self.lazy.formulation.point(self.lazy.found.pop())
            solution = self.model.createOrigSol(self)  # presolve may have replaced variables
            for variable, value in zip(self.lazy.variables, point.tolist(), strict=True):
                self.model.setSolVal(solution, variable, value)
            stored |= bool(self.model.trySol(solution, printreason=False))
        return {"result": SCIP_RESULT.FOUNDSOL if stored else SCIP_RESULT.DIDNOTFIND}
