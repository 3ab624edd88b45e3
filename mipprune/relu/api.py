"""``select``: choose units with the network itself inside the program."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from torch import nn

from ..bounds import piecewise_linear
from ..curvature import HeadFit, fit_linear_head
from ..errors import BudgetError, DataError
from ..game import LabelledData, as_data
from ..game.data import read_data
from ..graph import UnitGraph, trace
from ..solver.registry import LINEAR_SOLVERS
from .decoupled import layer_with_head
from .oamip import OamipOptions, OamipResult, solve_oamip
from .oracle import head_oracle, network_oracle
from .requirement import Margin, MeanLoss, Requirement, losses
from .solution import ReluSolution
from .sound import SoundResult, solve_sound
from .task import Task

__all__ = ["select"]


def select(
    model: nn.Module | UnitGraph,
    data: Any,
    formulation: str = "sound",
    *,
    margin: float = 0.1,
    max_violated: int | float | None = None,
    max_loss: float | None = None,
    layer: str | None = None,
    head: HeadFit | None = None,
    pin: Any = (),
    min_keep: int = 1,
    forbidden: np.ndarray | None = None,
    min_distance: int = 1,
    start: np.ndarray | None = None,
    oamip: OamipOptions | None = None,
    solver: str = "highs",
    time_limit: float | None = None,
    threads: int = 1,
    seed: int = 0,
) -> ReluSolution:
    """Choose the units to keep with one copy of the ReLU network per sample inside a mixed-integer program.

    ``formulation="sound"`` (our form) has binary gates and rows that are exact for every mask: it minimises the number
    of kept units such that the *real* masked network meets the requirement on these samples, and its bound is about
    real masks.  ``formulation="oamip"`` is the program of 2002.07259 with its scores and threshold; see
    :class:`~mipprune.relu.oamip.OamipProgram` for what it does and doesn't say.

    Meant for few samples (10 to 100) and small networks: the program has a binary per sample and unstable ReLU behind
    the first pruned layer.  Whatever the time limit, an incumbent is there as soon as the dense network (or ``start``)
    meets the requirement, and it has been evaluated on the real network in float64.

    Args:
        model: a network in evaluation mode, or its traced graph: linear layers, convolutions, batch-norm, ReLU, average
            and max pooling, residual sums (see :func:`mipprune.bounds.piecewise_linear`).
        data: calibration samples, ``(inputs, targets)`` or anything :func:`mipprune.prune` takes.
        margin: sound: the right class has to win by this much (in logits).
        max_violated: sound: samples that may miss the margin, a number or, as a float below 1, a share; by default as
            many as the dense network misses.
        max_loss: sound: ask for a mean cross-entropy of at most this (nats) instead of a margin.
        layer: decoupled: only the units of this layer, judged by a linear head on its outputs; the others stay.
        head: that head; by default one is fitted to ``data`` (:func:`mipprune.fit_linear_head`).
        pin: names of layers that stay whole.
        min_keep: fewest units that stay in every layer.
        forbidden: sound: bool (F, n_units), masks that aren't wanted; see :func:`mipprune.relu.pool`.
        min_distance: units in which the mask has to differ from each of these.
        start: sound: bool (n_units,), a mask to begin with.
        oamip: settings of the original form.
        solver: ``"highs"``, ``"scip"`` or ``"cbc"``.
        time_limit: seconds for everything, the first incumbents included; Ctrl-C stops like it.
        threads, seed: see :func:`mipprune.solver.solve_linear`.

    Raises:
        TraceError: the network holds an operation that is neither affine nor ReLU nor max pooling.
        InfeasibleError: proved that no mask meets the requirement.
        SolverError: stopped before any mask was found that does.
        DataError, BudgetError: data or settings that make no sense.
    """
    begin = time.perf_counter()
    if formulation not in ("sound", "oamip"):
        raise BudgetError(f"formulation must be 'sound' or 'oamip', got {formulation!r}")
    if time_limit is not None and not time_limit > 0:
        raise BudgetError(f"time_limit must be positive, got {time_limit}")
    graph = model if isinstance(model, UnitGraph) else _traced(model, data)
    samples = as_data(data, graph)
    task = _task(graph, samples, layer, head, pin, min_keep, forbidden, min_distance)
    dense = task.oracle(np.ones(task.n_units, dtype=bool))[0]
    if task.targets.min() < 0 or task.targets.max() >= dense.shape[1]:
        raise DataError(f"targets must be classes 0 to {dense.shape[1] - 1}")
    common: dict[str, Any] = {"solver": solver, "time_limit": time_limit, "threads": threads, "seed": seed}
    requirement: Requirement | None = None
    scores = None
    found: SoundResult | OamipResult
    if formulation == "sound":
        requirement = _requirement(task, dense, margin, max_violated, max_loss)
        found = solve_sound(task, requirement, start=_mask(start, task.n_units), **common)
    else:
        found = solve_oamip(task, oamip or OamipOptions(), **common)
        scores = found.scores
    mip, kept, objective = found.program.mip, found.kept, found.objective
    assert kept is not None  # both raise without a mask
    logits = task.oracle(kept)[0]
    return ReluSolution(
        kept=kept,
        formulation=formulation,
        objective=objective,
        bound=min(found.bound, objective),
        scores=scores,
        requirement=requirement,
        logits=logits,
        loss=float(losses(logits, task.targets).mean()),
        dense_loss=float(losses(dense, task.targets).mean()),
        accuracy=float((logits.argmax(1) == task.targets).mean()),
        dense_accuracy=float((dense.argmax(1) == task.targets).mean()),
        termination=found.termination,
        solver=solver,
        version=LINEAR_SOLVERS[solver].version,
        seconds=time.perf_counter() - begin,
        n_columns=mip.n_columns,
        n_integer=int(mip.integer.sum()),
        n_rows=mip.n_rows,
        n_rounds=found.n_rounds,
        n_cuts=found.n_cuts,
    )


def _traced(model: nn.Module, data: Any) -> UnitGraph:
    samples = read_data(data, model)
    if len(samples) == 0:
        raise DataError("calibration data is empty")
    return trace(model, tuple(x[:1] for x in samples.inputs))


def _task(
    graph: UnitGraph, samples: LabelledData, layer: str | None, head: HeadFit | None, pin: Any, min_keep: int,
    forbidden: np.ndarray | None, min_distance: int,
) -> Task:
    network = piecewise_linear(graph)
    x = samples.inputs[0].double().reshape(len(samples), -1).cpu().numpy()
    keep = graph.units_of([pin] if isinstance(pin, str) else pin)
    if layer is None:
        oracle = network_oracle(graph, samples)
    else:
        group = graph.group(layer)
        head = head or fit_linear_head(graph, layer, samples)
        network = layer_with_head(network, group.units, head)
        keep[: group.units.start], keep[group.units.stop :] = True, True
        oracle = head_oracle(network, x)
    masks = np.zeros((0, graph.n_units), dtype=bool) if forbidden is None else np.asarray(forbidden, dtype=bool)
    if masks.ndim != 2 or masks.shape[1] != graph.n_units:
        raise BudgetError(f"forbidden: expected masks of {graph.n_units} units, got shape {masks.shape}")
    return Task(
        network=network,
        x=x,
        targets=samples.targets.cpu().numpy().astype(np.int64),
        oracle=oracle,
        groups=tuple(np.arange(g.units.start, g.units.stop) for g in graph.groups),
        min_keep=np.array([min(min_keep, g.size) for g in graph.groups]),
        keep=keep,
        forbidden=masks,
        min_distance=min_distance,
    )


def _requirement(
    task: Task, dense: np.ndarray, margin: float, max_violated: int | float | None, max_loss: float | None
) -> Requirement:
    if max_loss is not None:
        if max_violated is not None:
            raise BudgetError("max_violated counts samples that miss a margin; leave it out with max_loss")
        return MeanLoss(float(max_loss))
    n = len(task.targets)
    if max_violated is None:
        number = int(Margin(margin, 0).violated(dense, task.targets))
    elif isinstance(max_violated, float) and 0 <= max_violated < 1:
        number = int(np.floor(max_violated * n + 1e-9))
    elif max_violated == int(max_violated) and 0 <= max_violated <= n:
        number = int(max_violated)
    else:
        raise BudgetError(f"max_violated: expected a number up to {n} or a share below 1, got {max_violated}")
    return Margin(float(margin), number)


def _mask(start: np.ndarray | None, n: int) -> np.ndarray | None:
    if start is None:
        return None
    start = np.asarray(start, dtype=bool)
    if start.shape != (n,):
        raise BudgetError(f"start: expected a mask of {n} units, got shape {start.shape}")
    return start
