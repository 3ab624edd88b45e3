"""What a run of ``train_and_prune`` hands back: the network, its plan and the account."""

from __future__ import annotations

import dataclasses
import os

from torch import nn

from ..curvature import Sharpness
from ..records import Record
from ..surgery import PrunePlan, save
from .schedule import PruningEvent

__all__ = ["TrainAndPruneReport", "TrainAndPruneResult"]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainAndPruneReport(Record):
    """The account of one run, as plain data.

    Attributes:
        flatness, threshold, weight_decay, sharpness_aware: what the training was told.
        groups: names of the prunable groups; ``events[-1].counts`` has their sizes at the end.
        events: when units left, chosen on which problem.
        losses: mean training cross-entropy of every epoch (without the penalty), nats.
        radii: mean K-FAC spectral radius over the batches of every epoch; empty without a penalty.
        costs_dense, costs_pruned: resource -> cost.
        accuracy, loss, n_holdout: of the final network on held-out data; loss in nats.
        train_loss: on the samples that the sharpness was measured on.
        sharpness: of the final network on training samples (at most ``selection_samples``).
        termination: ``"finished"``, or ``"interrupted"``: then the budget may not be met.
        seconds: wall-clock time, of this process alone if the run was resumed.
    """

    flatness: float
    threshold: float
    weight_decay: float
    sharpness_aware: float
    groups: tuple[str, ...]
    events: tuple[PruningEvent, ...]
    losses: tuple[float, ...]
    radii: tuple[float, ...]
    costs_dense: dict[str, int]
    costs_pruned: dict[str, int]
    accuracy: float
    loss: float
    n_holdout: int
    train_loss: float
    sharpness: Sharpness
    termination: str
    seconds: float

    def ratio(self, resource: str) -> float:
        """Final cost over dense cost."""
        return self.costs_pruned[resource] / self.costs_dense[resource]

    def __str__(self) -> str:
        s = self.sharpness
        costs = ", ".join(f"{self.ratio(r):.1%} {r}" for r in self.costs_dense)
        lines = [f"{self.termination} after {len(self.losses)} epochs, {self.seconds:.1f} s: {costs}"]
        lines += [
            f"  epoch {e.epoch}: kept {' + '.join(map(str, e.counts))}, predicted +{e.objective:.4g} nats (bound "
            f"{e.bound:.4g}, {e.termination}), measured {e.loss_after - e.loss_before:+.4g}" for e in self.events
        ]
        lines.append(f"held-out ({self.n_holdout} samples): accuracy {self.accuracy:.2%}, loss {self.loss:.4f}")
        lines.append(f"top Hessian eigenvalue {s.top_eigenvalue:.4g} (K-FAC sum {s.kfac_sum:.4g}), relative to the "
                     f"weights {s.relative:.4g}, times |w|^2 {s.norm_scaled:.4g}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class TrainAndPruneResult:
    """What :func:`train_and_prune` returns.

    Attributes:
        model: the trained, smaller network in evaluation mode.
        plan: cuts the dense network to its shape.
        report: the account; printing the result prints it.
    """

    model: nn.Module
    plan: PrunePlan
    report: TrainAndPruneReport

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write network and plan to one safetensors file; ``mipprune.load(path, dense)`` reads it."""
        save(path, self.model, self.plan)

    def __str__(self) -> str:
        return str(self.report)
