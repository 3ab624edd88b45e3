"""The loop of ``train_and_prune``: epochs, steps, units that leave in between."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..curvature import sharpness
from ..errors import ModelStateError
from ..game.data import LabelledData
from ..graph import UnitGraph, trace
from ..records import frozen_array
from ..surgery import PrunePlan
from .flatness import FlatnessPenalty
from .report import TrainAndPruneReport, TrainAndPruneResult
from .schedule import choose_units
from .state import TrainingState

__all__ = ["TrainingRun"]


@dataclasses.dataclass
class TrainingRun:
    """What stays fixed during a run of :func:`~mipprune.train.train_and_prune`, and the steps that change its state.

    Attributes:
        graph: of the dense network.
        samples, selection: what is trained on; what units are chosen and sharpness is measured on.
        limits: resource -> absolute limit at the end.
        shares: epochs done -> share of the removal done then, see :meth:`CubicSchedule.shares`.
        penalty, epochs, lr, sharpness_aware, batch_size, pin, min_keep, solver, seed: as asked for.
    """

    graph: UnitGraph
    samples: LabelledData
    selection: LabelledData
    limits: dict[str, int]
    penalty: FlatnessPenalty
    shares: dict[int, float]
    epochs: int
    lr: float
    sharpness_aware: float
    batch_size: int
    pin: tuple[str, ...]
    min_keep: int
    solver: str
    seed: int

    def epoch(self, state: TrainingState) -> None:
        """Units leave if it is time, then one pass over the data."""
        if state.epoch in self.shares:
            self._remove(state, self.shares[state.epoch])
        self.penalty.vectors = state.vectors
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + state.epoch)
        batches = torch.randperm(len(self.samples), generator=generator).split(self.batch_size)
        total, radius = 0.0, 0.0
        state.model.train()
        with torch.random.fork_rng():  # dropout draws the same whether or not the run was resumed
            torch.manual_seed(self.seed * 1_000_003 + state.epoch)
            for i, index in enumerate(batches):
                if len(index) == 1:
                    continue  # batch-norm has no variance over a single sample
                self._set_lr(state.optimizer, state.epoch + i / len(batches))
                part = self.samples.take(index.to(self.samples.targets.device))
                draws = torch.rand(len(part), 1, generator=generator, dtype=torch.float64).to(part.targets.device)
                loss, rho = self._step(state, part, draws)
                total, radius = total + loss * len(part), radius + rho / len(batches)
        mean = total / len(self.samples)
        if not math.isfinite(mean) or not math.isfinite(radius):
            raise ModelStateError(f"training diverged in epoch {state.epoch + 1} (loss {mean}, spectral radius "
                                  f"{radius}); lower lr or flatness")
        state.vectors = self.penalty.vectors
        state.losses.append(mean)
        if self.penalty.mu > 0:
            state.radii.append(radius)
        state.epoch += 1

    def _step(self, state: TrainingState, part: LabelledData, draws: torch.Tensor) -> tuple[float, float]:
        model, optimizer = state.model, state.optimizer
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(*part.inputs), part.targets.long())
        if self.sharpness_aware > 0:
            grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            scale = self.sharpness_aware / torch.stack([g.norm() for g in grads]).norm().clamp_min(1e-12)
            before = [p.detach().clone() for p in parameters]
            with torch.no_grad():
                for p, g in zip(parameters, grads, strict=True):
                    p.add_(scale * g)
            F.cross_entropy(model(*part.inputs), part.targets.long()).backward()
            with torch.no_grad():
                for p, old in zip(parameters, before, strict=True):
                    p.copy_(old)
        else:
            loss.backward()
        rho = 0.0
        if self.penalty.mu > 0:
            radius = self.penalty.radius(model, part.inputs, draws)
            rho = radius.item()
            if rho > self.penalty.threshold:
                (self.penalty.mu * radius).backward()
        optimizer.step()
        return loss.item(), rho

    def _set_lr(self, optimizer: torch.optim.Optimizer, epochs_done: float) -> None:
        """A tenth of linear warm-up, then cosine to 0: a function of time alone, so that resuming needs no state."""
        t = epochs_done / self.epochs
        factor = max(t, 0.01 / self.epochs) / 0.1 if t < 0.1 else 0.5 * (1 + math.cos(math.pi * (t - 0.1) / 0.9))
        for group in optimizer.param_groups:
            group["lr"] = self.lr * factor

    def _remove(self, state: TrainingState, share: float) -> None:
        dense = self.graph.costs
        full = {resource: dense.cost(resource, dense.sizes) for resource in self.limits}
        limits = {r: math.floor(full[r] - (full[r] - limit) * share) for r, limit in self.limits.items()}
        state.model.eval()
        small = trace(state.model, tuple(x[:1] for x in self.samples.inputs))
        now = {r: dense.cost(r, dense.counts(state.kept)) for r in limits}
        if all(now[r] <= limit for r, limit in limits.items()):
            return
        # a last unit of a group isn't always a unit of the smaller network's graph: what it costs is a constant there
        fixed = {r: now[r] - small.costs.cost(r, small.costs.sizes) for r in limits}
        kept, event = choose_units(
            small, self.selection, {r: limits[r] - fixed[r] for r in limits}, small.units_of(self._present(small)),
            min_keep=self.min_keep, solver=self.solver, seed=self.seed, epoch=state.epoch,
        )
        state.remove(self.graph, small, kept)
        after, _ = quality(state.model, self.selection)
        counts = frozen_array(dense.counts(state.kept), np.int64)
        state.events.append(dataclasses.replace(event, limits=limits, counts=counts, loss_after=after))

    def _present(self, small: UnitGraph) -> list[str]:
        """The pinned layers that still have units in the smaller network's graph."""
        return [name for name in self.pin if any(name in group.producers for group in small.groups)]

    def finish(
        self, state: TrainingState, held: LabelledData, termination: str, weight_decay: float, began: float
    ) -> TrainAndPruneResult:
        model, costs = state.model.eval(), self.graph.costs
        counts = costs.counts(state.kept)
        loss, accuracy = quality(model, held)
        report = TrainAndPruneReport(
            flatness=self.penalty.mu, threshold=self.penalty.threshold, weight_decay=weight_decay,
            sharpness_aware=self.sharpness_aware, groups=costs.groups, events=tuple(state.events),
            losses=tuple(state.losses), radii=tuple(state.radii),
            costs_dense={r: costs.cost(r, costs.sizes) for r in costs.resources},
            costs_pruned={r: costs.cost(r, counts) for r in costs.resources},
            accuracy=accuracy, loss=loss, n_holdout=len(held), train_loss=quality(model, self.selection)[0],
            sharpness=sharpness(model, self.selection, seed=self.seed), termination=termination,
            seconds=time.monotonic() - began,
        )
        return TrainAndPruneResult(model, PrunePlan.from_mask(self.graph, state.kept), report)


@torch.no_grad()
def quality(model: nn.Module, data: LabelledData) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, in evaluation mode; the mode is put back."""
    was, loss, right = model.training, 0.0, 0
    model.eval()
    for part in data.batches():
        logits = model(*part.inputs)
        loss += float(F.cross_entropy(logits.double(), part.targets.long(), reduction="sum"))
        right += int((logits.argmax(1) == part.targets).sum())
    model.train(was)
    return loss / len(data), right / len(data)
