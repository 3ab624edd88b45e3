"""What a solver found, and, apart from that, what is proved about it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

import numpy as np

from ..records import Record, frozen_array
from .certificate import Certificate

__all__ = ["TERMINATIONS", "Solution"]

#: Why a solver stopped: it proved its answer, ran out of time, was interrupted, ended by its own limits with a gap
#: left, or broke down.
TERMINATIONS = ("optimal", "time_limit", "interrupted", "iteration_limit", "solver_error")


@dataclasses.dataclass(frozen=True, eq=False)
class Solution(Record):
    """The incumbent of a :class:`~mipprune.solver.problem.Problem` and the bound on every other answer.

    Attributes:
        kept: bool, shape (n,); the incumbent, feasible under :meth:`Problem.evaluate` (float64, no solver involved).
        objective: the incumbent's objective, from that evaluation.
        bound: proved lower bound on the objective of every feasible mask (``-inf`` if nothing is proved), as far as
            the solver's linear programming is exact.
        drop: surrogate drop of the incumbent.
        costs: resource -> cost of the incumbent.
        objective_kind: ``"drop"`` or the resource that was minimised.
        termination: why the search stopped, one of :data:`TERMINATIONS`.
        solver, version: who searched.
        seconds: wall-clock time of the search.
        n_cuts: tangent cuts that were added.
        true_drop: loss increase of the *true* network with this mask on the calibration data, where it was measured.
        certificate: a proof of a lower bound that needs no solver, from :func:`~mipprune.solver.certify`; its bound may
            lie below ``bound``, which rests on the solver.
        progress: (seconds, objective, bound) of the search whenever one of the two improved, the last as above: the
            objective (``inf`` before the first incumbent) never rises, the bound never falls.  Of events within 2 % of
            the time the last is kept, so at most about 1,200.  Empty where no single search led here.
    """

    kept: np.ndarray
    objective: float
    bound: float
    drop: float
    costs: dict[str, int]
    objective_kind: str
    termination: str
    solver: str
    version: str
    seconds: float
    n_cuts: int = 0
    true_drop: float | None = None
    certificate: Certificate | None = None
    progress: tuple[tuple[float, float, float], ...] = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """As :meth:`Record.from_dict`; solutions stored before there was ``progress`` are read too."""
        return super().from_dict({"progress": [], **data} if isinstance(data, dict) else data)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", frozen_array(self.kept, bool))
        if self.termination not in TERMINATIONS:
            raise ValueError(f"termination must be one of {TERMINATIONS}, got {self.termination!r}")

    @property
    def absolute_gap(self) -> float:
        """``objective - bound``, never below 0."""
        return max(0.0, self.objective - self.bound)

    @property
    def gap(self) -> float:
        """Relative gap ``(objective - bound) / |objective|``; 0 when proved, ``inf`` when nothing is."""
        if self.proved:
            return 0.0
        return self.absolute_gap / abs(self.objective) if self.objective and math.isfinite(self.bound) else math.inf

    @property
    def proved(self) -> bool:
        """No feasible mask is better: by less than one unit of a counted cost, or by 1e-6 relative for a drop."""
        if self.objective_kind == "drop":
            return self.absolute_gap <= 1e-6 * max(1e-3, abs(self.objective))
        return self.absolute_gap < 1.0 - 1e-6

    @property
    def n_kept(self) -> int:
        """Units that stay."""
        return int(self.kept.sum())

    def __str__(self) -> str:
        proof = "proved optimal" if self.proved else f"bound {self.bound:.6g}, gap {self.gap:.2%}"
        if self.certificate is not None:
            proof += f"; certified bound {self.certificate.bound:.6g}"
        return (
            f"{self.n_kept} of {len(self.kept)} units kept, {self.objective_kind} {self.objective:.6g} ({proof}); "
            f"stopped: {self.termination}; {self.solver} {self.version}, {self.seconds:.2f} s"
        )
