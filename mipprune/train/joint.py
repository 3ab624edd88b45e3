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
from torch import nn
from tqdm.auto import tqdm

from ..costs import CostModel
from ..errors import BudgetError, ConfigError, InfeasibleError, ModelStateError
from ..game.data import LabelledData, as_data, check_samples, read_data
from ..graph import UnitGraph, trace
from .flatness import FlatnessPenalty
from .loop import TrainingRun
from .report import TrainAndPruneResult
from .schedule import CubicSchedule
from .state import TrainingState, identity

__all__ = ["train_and_prune"]


class BudgetLike(Protocol):
    """``Macs(0.5)`` and its kin."""

    @property
    def resource(self) -> str: ...

    def limit(self, costs: CostModel) -> int: ...


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
        ModelStateError: the loss stopped being finite, or all parameters are frozen.
        DataError, TraceError: as their texts say; also a checkpoint of another run.
    """
    began, pin = time.monotonic(), tuple(pin)
    _check_options(
        {"epochs": (epochs, 1), "batch_size": (batch_size, 2), "min_keep": (min_keep, 1), "seed": (seed, 0),
         "selection_samples": (selection_samples, 1)},
        {"lr": lr, "weight_decay": weight_decay, "sharpness_aware": sharpness_aware},
    )
    if schedule is not None and not isinstance(schedule, CubicSchedule):
        raise ConfigError(f"schedule: expected a CubicSchedule, got {schedule!r}")
    penalty = FlatnessPenalty(flatness, threshold, aggregate=aggregate)
    schedule = schedule or CubicSchedule()
    dense = copy.deepcopy(model).eval()
    samples = read_data(data, dense, "training data")
    check_samples(samples, "training data")
    if not any(p.requires_grad for p in dense.parameters()):
        raise ModelStateError(f"{type(model).__name__} has no parameter that requires a gradient, nothing can be "
                              f"trained; unfreeze with requires_grad_(), or use mipprune.prune")
    graph = trace(dense, tuple(x[:1] for x in samples.inputs))
    samples = as_data(samples, graph, "training data")
    samples, held = _split(samples, holdout, graph, seed)
    limits = _limits(budget, graph, pin, min_keep)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    run = TrainingRun(
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


def _check_options(whole: dict[str, tuple[Any, int]], real: dict[str, Any]) -> None:
    for name, (value, least) in whole.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"train_and_prune: {name} must be a whole number of at least {least}, got {value!r}")
    for name, value in real.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ConfigError(f"train_and_prune: {name} must be a number of at least 0, got {value!r}")
    if not real["lr"] > 0:
        raise ConfigError(f"train_and_prune: lr must be above 0, got {real['lr']}")


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
