"""``train_and_prune``: units leave while the network is trained towards a flat minimum."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from ..costs import CostModel
from ..curvature import Sharpness, sharpness
from ..errors import BudgetError, ConfigError, InfeasibleError, ModelStateError
from ..game.data import LabelledData, as_data, read_data
from ..graph import UnitGraph, trace
from ..records import Record, frozen_array
from ..surgery import PrunePlan, save
from .flatness import FlatnessPenalty
from .schedule import CubicSchedule, PruningEvent, choose_units
from .state import TrainingState, identity

__all__ = ["TrainAndPruneReport", "TrainAndPruneResult", "train_and_prune"]


class BudgetLike(Protocol):
    """``Macs(0.5)`` and its kin."""

    @property
    def resource(self) -> str: ...

    def limit(self, costs: CostModel) -> int: ...


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


def train_and_prune(
    model: nn.Module,
    data: Any,
    *,
    budget: BudgetLike | Sequence[BudgetLike],
    flatness: float = 0.0,
    threshold: float = 0.0,
    aggregate: str = "sum",
    schedule: CubicSchedule | None = None,
    epochs: int = 30,
    lr: float = 3e-3,
    weight_decay: float = 0.0,
    sharpness_aware: float = 0.0,
    batch_size: int = 64,
    pin: Iterable[str] = (),
    min_keep: int = 1,
    holdout: Any = 0.25,
    selection_samples: int = 1024,
    solver: str = "highs",
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> TrainAndPruneResult:
    """Train a classifier towards a flat minimum while units leave it, until it meets a budget (2111.08577, our form).

    Minimises the mean cross-entropy plus ``flatness * max(0, rho - threshold)`` by AdamW (linear warm-up, cosine
    decay), rho the K-FAC spectral radius (:class:`FlatnessPenalty`).  At the epochs of ``schedule``, the budget is
    tightened, and the units that go are those of the mixed-integer program over the present loss's second-order
    surrogate and exact costs, as in :func:`mipprune.prune`; the network is cut, the optimizer's moments with it,
    and training goes on.

    Args:
        model: the dense network, trained or not; neither changed nor kept.
        data: training data, in any form that :func:`mipprune.prune` takes.
        budget: ``Macs(0.5)``, ``Params(0.3)``, ``Units(0.4)`` or several.
        flatness: mu, the weight of the penalty in nats per unit of curvature; 0 trains without.
        threshold: K, the radius that is free.
        aggregate: ``"sum"`` or ``"max"`` over layers.
        schedule: when units leave; :class:`CubicSchedule` by default.
        epochs, batch_size: of the training.
        lr: highest learning rate.
        weight_decay: of AdamW.
        sharpness_aware: radius of the ascent step of SAM (2010.01412), the other way to flat minima; 0 is plain.
        pin, min_keep: layers to leave alone; fewest units of every group.
        holdout: data for the report alone; a number is the share of ``data`` to set apart.
        solver: of the programs, see :func:`mipprune.solve`.
        selection_samples: training samples, the first of a seeded order, that units are chosen and sharpness is
            measured on.
        checkpoint: a file that the run saves itself to after every epoch and goes on from if it is there.  A resumed
            run ends in the bits of an undisturbed one on the same machine.
        seed: of the held-out split, the order of the batches, dropout and the sketches.

    Returns:
        A :class:`TrainAndPruneResult`.  Ctrl-C returns the network as it is then, with ``termination="interrupted"``.

    Raises:
        BudgetError, InfeasibleError: the budget can't be read, or not be met.
        ConfigError: an option out of range.
        ModelStateError: the loss stopped being finite.
        DataError, TraceError: as their texts say; also a checkpoint of another run.
    """
    began, pin = time.monotonic(), tuple(pin)
    if epochs < 1 or not lr > 0 or batch_size < 2 or weight_decay < 0 or sharpness_aware < 0 or min_keep < 1:
        raise ConfigError("train_and_prune needs epochs >= 1, lr > 0, batch_size >= 2, min_keep >= 1, and weight_decay "
                          "and sharpness_aware not below 0")
    penalty = FlatnessPenalty(flatness, threshold, aggregate=aggregate)
    schedule = schedule or CubicSchedule()
    dense = copy.deepcopy(model).eval()
    samples = read_data(data, dense)
    graph = trace(dense, tuple(x[:1] for x in samples.inputs))
    samples = as_data(samples, graph, "training data")
    samples, held = _split(samples, holdout, graph, seed)
    limits = _limits(budget, graph, pin, min_keep)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    run = _Run(
        graph=graph, samples=samples, selection=samples.take(order[:selection_samples]), limits=limits,
        penalty=penalty, shares=schedule.shares(epochs), epochs=epochs, lr=lr, sharpness_aware=sharpness_aware,
        batch_size=batch_size, pin=pin, min_keep=min_keep, solver=solver, seed=seed,
    )
    student = copy.deepcopy(dense).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=weight_decay)
    state = TrainingState(student, optimizer, np.ones(graph.n_units, dtype=bool))
    settings = {
        "limits": limits, "flatness": flatness, "threshold": threshold, "aggregate": aggregate, "epochs": epochs,
        "lr": lr, "weight_decay": weight_decay, "sharpness_aware": sharpness_aware, "batch_size": batch_size,
        "schedule": dataclasses.asdict(schedule), "pin": sorted(pin), "min_keep": min_keep, "seed": seed,
        "selection_samples": selection_samples, "solver": solver,
        "identity": identity(dense, (*samples.inputs, samples.targets)),
    }
    if checkpoint is not None and Path(checkpoint).exists():
        state.load(checkpoint, settings, graph)
    termination = "finished"
    bar = tqdm(total=epochs, initial=state.epoch, desc="training", disable=not progress, leave=False)
    try:
        while state.epoch < epochs:
            run.epoch(state)
            if checkpoint is not None:
                state.save(checkpoint, settings)
            bar.set_postfix(loss=f"{state.losses[-1]:.3f}", units=int(state.kept.sum()))
            bar.update()
    except KeyboardInterrupt:
        termination = "interrupted"
    finally:
        bar.close()
    return run.finish(state, held, termination, weight_decay, began)


@dataclasses.dataclass
class _Run:
    """What stays fixed during a run."""

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
        after, _ = _quality(state.model, self.selection)
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
        loss, accuracy = _quality(model, held)
        report = TrainAndPruneReport(
            flatness=self.penalty.mu, threshold=self.penalty.threshold, weight_decay=weight_decay,
            sharpness_aware=self.sharpness_aware, groups=costs.groups, events=tuple(state.events),
            losses=tuple(state.losses), radii=tuple(state.radii),
            costs_dense={r: costs.cost(r, costs.sizes) for r in costs.resources},
            costs_pruned={r: costs.cost(r, counts) for r in costs.resources},
            accuracy=accuracy, loss=loss, n_holdout=len(held), train_loss=_quality(model, self.selection)[0],
            sharpness=sharpness(model, self.selection, seed=self.seed), termination=termination,
            seconds=time.monotonic() - began,
        )
        return TrainAndPruneResult(model, PrunePlan.from_mask(self.graph, state.kept), report)


def _split(samples: LabelledData, holdout: Any, graph: UnitGraph, seed: int) -> tuple[LabelledData, LabelledData]:
    if isinstance(holdout, (int, float)) and not isinstance(holdout, bool):
        if not 0 < holdout < 1:
            raise ConfigError(f"holdout: a share must lie between 0 and 1, got {holdout}")
        return samples.split(holdout, seed)
    return samples, as_data(holdout, graph, "held-out data")


def _limits(budget: Any, graph: UnitGraph, pin: Iterable[str], min_keep: int) -> dict[str, int]:
    budgets = budget if isinstance(budget, (tuple, list)) else (budget,)
    if not budgets or not all(hasattr(b, "limit") and hasattr(b, "resource") for b in budgets):
        raise BudgetError(f"budget: expected Macs(ratio), Params(ratio), Units(ratio) or several, got {budget!r}")
    if not graph.groups:
        reasons = "; ".join(f"{p.module}: {p.reason}" for p in graph.pinned)
        raise BudgetError(f"the network has no prunable unit: {reasons}")
    costs = graph.costs
    limits = {b.resource: b.limit(costs) for b in budgets}
    fewest = np.maximum(np.minimum(min_keep, costs.sizes), costs.counts(graph.units_of(pin)))
    for resource, limit in limits.items():  # told before any training
        least, full = costs.cost(resource, fewest), costs.cost(resource, costs.sizes)
        if least > limit:
            raise InfeasibleError(
                f"{resource} can't go below {least:,} ({least / full:.1%} of the dense network) with pin and min_keep; "
                f"the budget is {limit:,}. Raise the budget, lower min_keep, or pin fewer layers",
                requirement=resource, nearest=least / full,
            )
    return limits


@torch.no_grad()
def _quality(model: nn.Module, data: LabelledData) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, in evaluation mode; the mode is put back."""
    was, loss, right = model.training, 0.0, 0
    model.eval()
    for part in data.batches():
        logits = model(*part.inputs)
        loss += float(F.cross_entropy(logits.double(), part.targets.long(), reduction="sum"))
        right += int((logits.argmax(1) == part.targets).sum())
    model.train(was)
    return loss / len(data), right / len(data)
