"""What ``prune`` gives back: the smaller network, the plan, and an account of both."""

from __future__ import annotations

import dataclasses
import io
import math
import os
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ..latency import LatencyComparison
from ..latency.fit import FEMTOSECONDS
from ..records import Record
from ..solver import Solution
from ..surgery import PrunePlan, Verification, save, transfer_optimizer
from .certificate import AccuracyCertificate
from .diagnosis import Diagnosis
from .measure import Quality
from .repairing import RepairStep
from .search import Stage

__all__ = ["LayerReport", "PruneReport", "PruneResult"]

#: A fall of the accuracy from which on the printed report says where it comes from.
NOTABLE_DROP = 0.005


@dataclasses.dataclass(frozen=True, eq=False)
class LayerReport(Record):
    """One group: units in all, kept, and the fewest that it was allowed to keep."""

    group: str
    size: int
    kept: int
    fewest: int


@dataclasses.dataclass(frozen=True, eq=False)
class PruneReport(Record):
    """The numbers of one pruning run, as plain data.

    Attributes:
        task: what was asked for, in words.
        surrogate: which surrogate the solver saw.
        solution: incumbent, bound and termination of the last stage's problem; ``true_drop`` is the loss increase of
            the pruned, repaired network on the calibration data.
        stages: every stage of the chain; more than one makes the chain as a whole a heuristic.
        layers: kept and total per group.
        pinned: what could not be pruned, and why.
        costs_dense, costs_pruned: resource -> cost.
        dense, pruned, baseline: quality on held-out data of the dense network, the pruned one, and a network of the
            same budget chosen by magnitude with the same repair.
        dense_calibration, pruned_calibration: quality on the calibration data, which the selection saw.
        verification: masked network against the smaller one, before repair.
        repairs: what each repair did after surgery, on the data that judges them.
        divergence: t^2 KL at temperature t = 4 of the dense network to the pruned one after the repairs "bn" and
            "refit", on the data that judge repairs, in nats: what the surrogate "refit" predicts.  On the data that the
            refit was fitted to it would be lower than on any other.
        certificate: exact bounds from the held-out data.
        diagnosis: what each group's mask costs alone, before repair.
        seconds: wall-clock time of everything.
        cpu_seconds: CPU time of this process until the network was ready: selection and repair, without the baseline.
        latency: with a latency budget, the dense and the pruned network timed in pairs after everything else.
    """

    task: str
    surrogate: str
    solution: Solution
    stages: tuple[Stage, ...]
    layers: tuple[LayerReport, ...]
    pinned: tuple[str, ...]
    costs_dense: dict[str, int]
    costs_pruned: dict[str, int]
    dense: Quality
    pruned: Quality
    baseline: Quality
    dense_calibration: Quality
    pruned_calibration: Quality
    verification: Verification
    repairs: tuple[RepairStep, ...]
    divergence: float
    certificate: AccuracyCertificate
    diagnosis: Diagnosis
    seconds: float
    cpu_seconds: float
    latency: LatencyComparison | None = None

    @property
    def predicted_drop(self) -> float:
        """Loss increase in nats that the surrogates of all stages add up to; ``solution.true_drop`` is measured."""
        return sum(stage.surrogate_drop for stage in self.stages)

    @property
    def repair(self) -> tuple[str, ...]:
        """Names of the repairs that were taken."""
        return tuple(step.name for step in self.repairs[1:] if step.taken)

    def ratio(self, resource: str) -> float:
        """Pruned cost over dense cost."""
        return self.costs_pruned[resource] / self.costs_dense[resource]

    def summary(self) -> dict[str, Any]:
        """One flat row for tables and JSON; a bound or gap that isn't finite is ``None``."""
        s = self.solution
        return {
            "dense_accuracy": self.dense.accuracy,
            "pruned_accuracy": self.pruned.accuracy,
            "units_total": self.costs_dense["units"],
            "units_kept": self.costs_pruned["units"],
            "macs_ratio": self.ratio("macs"),
            "params_ratio": self.ratio("params"),
            "objective": s.objective,
            "bound": s.bound if math.isfinite(s.bound) else None,
            "gap": s.gap if math.isfinite(s.gap) else None,
            "termination": s.termination,
            "proved": s.proved,
            "mask_vs_surgery_max_abs_diff": self.verification.max_abs_diff,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        layers = Table()
        for name in ("layer", "kept", "of", ""):
            layers.add_column(name, justify="left" if name == "layer" else "right")
        for row in self.layers:
            layers.add_row(row.group, str(row.kept), str(row.size), "at its minimum" if row.kept <= row.fewest else "")
        costs = Table()
        for name in ("", "dense", "pruned", "same budget by magnitude"):
            costs.add_column(name, justify="right" if name else "left")
        for resource in ("macs", "params"):
            dense, pruned = self.costs_dense[resource], self.costs_pruned[resource]
            costs.add_row(resource, f"{dense:,}", f"{pruned:,} ({pruned / dense:.1%})", "")
        if self.latency is not None:
            predicted = self.costs_pruned["latency"] / FEMTOSECONDS
            costs.add_row("latency, predicted", "", f"{predicted * 1e3:.4g} ms", "")
            timed = self.latency
            pruned_time = f"{timed.pruned * 1e3:.4g} ms ({timed.ratio:.1%})"
            costs.add_row("latency, measured", f"{timed.dense * 1e3:.4g} ms", pruned_time, "")
        n = f"held-out ({self.pruned.n_samples} samples)"
        costs.add_row(f"{n} accuracy", *(f"{q.accuracy:.2%}" for q in (self.dense, self.pruned, self.baseline)))
        costs.add_row(f"{n} loss", *(f"{q.loss:.4f}" for q in (self.dense, self.pruned, self.baseline)))
        costs.add_row("calibration loss", f"{self.dense_calibration.loss:.4f}", f"{self.pruned_calibration.loss:.4f}")
        out = io.StringIO()
        console = Console(file=out, width=110)
        console.print(f"{self.task}: {self.solution.n_kept} of {self.costs_dense['units']} units kept", highlight=False)
        console.print(layers)
        console.print(costs)
        console.print(self._proof(), soft_wrap=True, highlight=False)
        return out.getvalue().rstrip()

    def _proof(self) -> str:
        s = self.solution
        drop = "predicted divergence" if self.surrogate == "refit" else "predicted loss increase"
        what = drop if s.objective_kind == "drop" else f"{s.objective_kind} kept"
        proof = "proved optimal" if s.proved else f"bound {s.bound:.6g}, gap {s.gap:.1%}"
        lines = [
            f"{what} {s.objective:.6g} ({proof}) for the {self.surrogate} surrogate"
            + (f", last of {len(self.stages)} stages (the chain is a heuristic)" if len(self.stages) > 1 else "")
            + f"; stopped: {s.termination}",
            "loss increase on the calibration data: "
            + ("" if self.surrogate == "refit" else f"predicted {self.predicted_drop:.4g}, ") + "measured "
            f"{self.pruned_calibration.loss - self.dense_calibration.loss:.4g}"
            + (f" after repair ({', '.join(self.repair)})" if self.repair else ""),
            f"masked and pruned network agree to {self.verification.max_abs_diff:.2g}; {self.seconds:.1f} s in all",
        ]
        if self.surrogate == "refit":
            lines.append(f"divergence from the dense network after the refit (softened, data that judge): predicted "
                         f"{self.predicted_drop:.4g}, reached {self.divergence:.4g}")
        for step in self.repairs:
            lines.append(f"{step.name}: loss {step.loss:.4f}, accuracy {step.accuracy:.2%}"
                         + ("" if step.taken else " (not taken)") + f", {step.seconds:.2f} s")
        lines.append(str(self.certificate))
        if self.pruned.accuracy < self.dense.accuracy - NOTABLE_DROP:
            lines.append(str(self.diagnosis))
        lines += [f"not prunable: {line}" for line in self.pinned]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class PruneResult:
    """The pruned network and the account of it.  ``print(result)`` shows the account as a table.

    Attributes:
        model: an ordinary, really smaller copy of the network, in the original's training mode.
        plan: which original units were kept; applies to any copy of the dense network.
        report: all numbers, as a record.
    """

    model: nn.Module
    plan: PrunePlan
    report: PruneReport

    @property
    def solution(self) -> Solution:
        """Incumbent, bound, gap and termination of the last solved problem."""
        return self.report.solution

    @property
    def kept(self) -> np.ndarray:
        """Bool mask over the traced network's units."""
        return self.report.solution.kept

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the pruned network and its plan to one safetensors file; ``mipprune.load(path, dense)`` reads it."""
        save(path, self.model, self.plan)

    def transfer_optimizer(self, optimizer: torch.optim.Optimizer, dense: nn.Module) -> torch.optim.Optimizer:
        """An optimizer of :attr:`model` that goes on where the ``dense`` network's ``optimizer`` stopped.

        See :func:`mipprune.surgery.transfer_optimizer`.
        """
        return transfer_optimizer(self.plan, dense, self.model, optimizer)

    def __str__(self) -> str:
        return str(self.report)
