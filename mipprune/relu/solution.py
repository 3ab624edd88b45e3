"""What a program that holds the network found, what is proved about it, and what the network itself does with it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ..records import Record, frozen_array
from .requirement import Requirement

__all__ = ["ReluSolution"]


@dataclasses.dataclass(frozen=True, eq=False)
class ReluSolution(Record):
    """A mask from a program with the ReLU network inside.

    Attributes:
        kept: bool (n_units,), the mask.
        formulation: ``"sound"`` or ``"oamip"``.
        objective: sound: the number of kept units.  oamip: sparsity + lambda * loss at the *scores*.
        bound: proved lower bound on the objective of every other answer to the same program, as far as the solver's
            floating-point arithmetic is right.  For ``"oamip"`` it says nothing about ``kept``: rounding the scores to
            a mask leaves the program.
        scores: float64 (n_units,) for ``"oamip"``, else ``None``.
        requirement: what the mask has to do on the calibration samples; ``None`` for ``"oamip"``, which has none.
        logits: float64 (N, C), the masked network's (or the layer's head's) logits, computed without the solver.
        loss, dense_loss: mean cross-entropy of these, and of the logits with all units kept, in nats.
        accuracy, dense_accuracy: the same for the share of right classes.
        termination: why the search stopped, one of ``mipprune.solver.TERMINATIONS``.
        solver, version: who searched.
        seconds: wall-clock time, with building the program and its bounds.
        n_columns, n_integer, n_rows: size of the program without tangents.
        n_rounds, n_cuts: linear programs solved, and tangents and forbidden masks added between them.
    """

    kept: np.ndarray
    formulation: str
    objective: float
    bound: float
    scores: np.ndarray | None
    requirement: Requirement | None
    logits: np.ndarray
    loss: float
    dense_loss: float
    accuracy: float
    dense_accuracy: float
    termination: str
    solver: str
    version: str
    seconds: float
    n_columns: int
    n_integer: int
    n_rows: int
    n_rounds: int
    n_cuts: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", frozen_array(self.kept, bool))
        object.__setattr__(self, "logits", frozen_array(self.logits))
        if self.scores is not None:
            object.__setattr__(self, "scores", frozen_array(self.scores))

    @property
    def n_kept(self) -> int:
        """Units that the mask keeps."""
        return int(self.kept.sum())

    @property
    def gap(self) -> float:
        """``objective - bound``, in units for ``"sound"``; ``inf`` when nothing is proved."""
        return max(0.0, self.objective - self.bound)

    @property
    def proved(self) -> bool:
        """No better answer to the same program: by less than one unit, or by 1e-4 relative for ``"oamip"``."""
        if self.formulation == "sound":
            return self.gap < 1.0 - 1e-6
        return math.isfinite(self.gap) and self.gap <= 1e-4 * max(1.0, abs(self.objective))

    def __str__(self) -> str:
        proof = "proved optimal" if self.proved else f"bound {self.bound:.6g}"
        what = "" if self.formulation == "sound" else f", objective {self.objective:.6g}"
        return (f"{self.formulation}: {self.n_kept} of {len(self.kept)} units kept{what} ({proof}); accuracy "
                f"{self.accuracy:.2%} (dense {self.dense_accuracy:.2%}), loss {self.loss:.4g}; stopped: "
                f"{self.termination}; {self.solver} {self.version}, {self.seconds:.2f} s")
