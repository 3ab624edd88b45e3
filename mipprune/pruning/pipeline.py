"""``prune``: the short road through the whole house."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ..errors import BudgetError, ConfigError, DataError, ModelStateError
from ..game import LabelledData, as_data
from ..game.data import read_data
from ..graph import UnitGraph, trace
from ..latency import with_latency
from ..surgery import allow_empty as find_emptiable
from ..surgery import coarsen
from .baseline import magnitude_mask
from .delivery import deliver
from .interrupts import interrupts_held
from .joint_search import JointSearch
from .ladder import climb_down
from .options import AccuracyDrop, Budget, LossIncrease
from .refit_search import as_candidate, search_widths
from .repairing import Repairer
from .request import check_options, check_units, chosen_surrogate, requirement
from .result import PruneResult
from .search import (
    Candidate,
    OutOfTime,
    Searcher,
    tighten,
    under_budget,
    within_tolerance,
)
from .shrink import RiseOracle, shrink
from .surrogates import SURROGATES
from .threads import threads_for
from .timing import LatencyCheck

__all__ = ["prune"]

DEFAULT_STAGES = 4
#: Of the joint quadratic; 16 add nothing (measured).
JOINT_STAGES = 8
#: Groups may be emptied by default at budgets up to this: on a small residual network it gains 1.5 points there, and at
#: half the multiply-adds nothing.
EMPTY_BELOW = 0.2


def prune(
    model: nn.Module,
    data: Any,
    *,
    budget: Budget | Sequence[Budget] | None = None,
    tolerance: LossIncrease | AccuracyDrop | None = None,
    minimize: str = "units",
    layers: Iterable[str] | None = None,
    pin: Iterable[str] = (),
    ignore: Sequence[str] = (),
    min_keep: int = 1,
    allow_empty: bool | None = None,
    units: str = "fine",
    multiple: int = 1,
    surrogate: str | None = None,
    stages: int | None = None,
    repair: Sequence[str] = ("bn", "refit", "head"),
    holdout: Any = 0.25,
    validation: Any = None,
    example_input: torch.Tensor | tuple[torch.Tensor, ...] | None = None,
    solver: str = "highs",
    effort: float = 1.0,
    time_limit: float | None = None,
    n_jobs: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> PruneResult:
    """Prune a trained classifier: the best network under a budget, or the cheapest one within a tolerance.

    Every layer's loss is modelled apart, as a convex function of the units removed there; each layer yields the best
    loss for every size, with a bound; a mixed-integer program picks the sizes under the exact global cost; the
    result is cut out, checked against the masked network, repaired and measured.

    Args:
        model: the trained network, in evaluation mode; neither changed nor kept.
        data: calibration data the network classifies: ``(inputs, targets)``, a ``Dataset`` or an iterable of batches.
        budget: ``Macs(0.5)``, ``Params(0.3)``, ``Units(0.4)``, ``Latency(0.6)`` or several of them, all to be met.
            Latency is measured again on the pruned network; where the table was wrong, the problem is solved again
            under another limit, at most three times, and the report says what was reached.
        tolerance: ``LossIncrease(nats)``: the pruned, repaired network's mean cross-entropy on the calibration data
            exceeds the dense one's by at most that (with refits, what was refitted on two thirds of it also keeps to it
            on the rest); or ``AccuracyDrop(drop, confidence)``: the smallest network on a
            ladder of budgets whose accuracy provably falls by at most that
            (:func:`~mipprune.pruning.ladder.climb_down`); exactly one of ``budget`` and ``tolerance`` is given.
        minimize: with a tolerance, what is made small: ``"units"``, ``"params"`` or ``"macs"``.
        layers: module paths of the layers to prune; all prunable ones by default.
        pin: module paths of layers to leave alone.
        ignore: module paths in which an operation without a rule pins what reaches it, instead of being an error.
        min_keep: fewest units to keep in every group, at least 1.
        allow_empty: groups may lose every unit where the input has a way around them (residual branches, all heads of
            an attention), see :func:`mipprune.allow_empty`; ``min_keep`` doesn't hold for these.  By default they may
            under a budget of at most a fifth with ``surrogate="refit"`` and ``min_keep`` at 1.
        units: ``"fine"``: neurons, channels and heads; ``"branches"`` or ``"blocks"``: whole residual branches leave,
            see :func:`mipprune.coarsen`.  The result can be pruned again by fine units.
        multiple: kept widths are multiples of this (8 suits most hardware); a group keeps all its units where it has
            fewer, and may always keep all.
        surrogate: ``"refit"``: what removals cost after the layers that read the units are refitted
            (:func:`~mipprune.curvature.refit_curves`), and under a budget a search over widths that repairs and
            measures every network it tries, then one over units; ``"joint"``: one quadratic in all gates, expanded
            anew in every stage, for budgets (:class:`~mipprune.pruning.joint.JointProblem`), and without refits a
            search over units that cuts and measures every network it tries
            (:class:`~mipprune.pruning.gate_search.GateSearch`); or layer by layer
            ``"quadratic"``, ``"additive"``, ``"head"``, see
            :func:`mipprune.pruning.surrogates.layer_surrogates`.  By default ``"refit"`` if that is among the repairs
            and ``stages`` isn't asked for, else ``"joint"`` (budget) or ``"quadratic"`` (tolerance).
        stages: how often the surrogate is measured anew while units leave.  By default both 1 and 4 stages are tried
            and the network with the lower calibration loss (or cost, with a tolerance) wins; ``"head"`` and
            ``"refit"`` use 1.
        repair: any of ``"bn"`` (fresh batch-norm statistics), ``"refit"`` (:func:`mipprune.repair.refit`), ``"head"``
            (:func:`~mipprune.repair.refit_head`) and ``"lm"`` (:func:`~mipprune.repair.polish`, for at most 100,000
            kept weights; takes about as long as the rest); none takes a gradient-descent step.  Each is kept only where
            the loss falls, and reported apart.  ``()`` leaves the network as cut.
        holdout: data for the report alone, never for the selection; a number is the share of ``data`` to set apart.
        validation: more data that no repair is fitted to: it judges repairs and the networks of the width search.
            Without it the calibration data judge the repairs.
        example_input: what to trace with; the first calibration sample by default.
        solver: backend of the recombination: ``"highs"``, ``"scip"`` or ``"cbc"``.
        effort: how many networks the searches build and measure, as a multiple of the default, which takes a small
            network about as long as its training took; no search by ``"quadratic"``, ``"additive"`` or ``"head"``.
        time_limit: seconds; when they have passed the best network so far is returned.
        n_jobs: layers solved at a time, through joblib (``joblib.parallel_config`` is obeyed).
        seed: of the held-out split and of sampled estimates.
        progress: show a progress bar on stderr.

    Returns:
        A :class:`PruneResult`; ``print(result)`` shows it.  Ctrl-C and the time limit return the best network so far,
        ``result.solution.termination`` says which it was.

    Raises:
        BudgetError, InfeasibleError: the requirement can't be read, or can't be met; the text names the nearest value.
        TraceError, ModelStateError, UnknownLayerError, DataError, ConfigError: as their texts say.
        VerificationError: the smaller network doesn't compute what the masked one does; nothing is returned then.
    """
    given = dict(locals())
    if isinstance(tolerance, AccuracyDrop) and budget is None:
        check_options(minimize, min_keep, multiple, surrogate, stages, repair, time_limit, effort, seed)
        return climb_down(lambda rung: prune(**(given | {"budget": rung, "tolerance": None})), tolerance, minimize)
    begin, begin_cpu = time.monotonic(), time.process_time()
    budgets = requirement(budget, tolerance)
    check_options(minimize, min_keep, multiple, surrogate, stages, repair, time_limit, effort, seed)
    check_units(units, budgets, surrogate, allow_empty, multiple)
    surrogate = chosen_surrogate(surrogate, tolerance, stages, multiple, repair, units)
    if allow_empty is None:
        scarce = any(b.ratio <= EMPTY_BELOW for b in budgets)
        allow_empty = scarce and surrogate == "refit" and min_keep == 1
    graph, calibration, held_out = prepare(model, data, holdout, example_input, seed, ignore, allow_empty, units)
    unseen = None if validation is None else as_data(validation, graph, "validation data")
    repairer = Repairer(graph, calibration, calibration if unseen is None else unseen, tuple(repair), seed)
    allowed = graph.units_of(layers) if layers is not None else np.ones(graph.n_units, dtype=bool)
    pinned = ~allowed | graph.units_of(pin)
    if not graph.groups:
        reasons = "\n".join(f"  {p.module}: {p.reason}" for p in graph.pinned)
        raise BudgetError(f"the network has no prunable unit:\n{reasons}")
    timed = LatencyCheck.of(budgets, graph, calibration, multiple, time_limit, seed, progress)
    if timed is not None:
        graph = with_latency(graph, timed.table)
    limits = {b.resource: b.limit(graph.costs) for b in budgets}
    if timed is not None:
        limits["latency"] = timed.limit
    assert not isinstance(tolerance, AccuracyDrop)  # refused above, with a budget
    first = magnitude_mask(graph, limits, pinned, min_keep, multiple)
    # times are those of the threads that the network will have
    work = graph.macs() * len(calibration) if timed is None else np.inf
    with _bar(progress) as bar, threads_for(work):
        search = Searcher(
            graph=graph, data=calibration, surrogate=surrogate, pinned=pinned, min_keep=min_keep, repairer=repairer,
            solver=solver, n_jobs=n_jobs, seed=seed, deadline=None if time_limit is None else begin + time_limit,
            tick=lambda what: _tick(bar, what), multiple=multiple, unseen=unseen, effort=effort,
        )
        best, termination = _search(search, limits, tolerance, minimize, stages, first)
        reached = None
        if timed is not None:
            best, termination, reached = timed.enforce(
                search, best, termination, limits, lambda now: _search(search, now, None, minimize, stages, best.kept)
            )
    task = _describe(budgets, tolerance, minimize)
    with interrupts_held() as held, threads_for(work):
        search.stopped = held.is_set
        return deliver(
            search, best, termination, task, "drop" if budgets else minimize, limits, held_out, begin, begin_cpu,
            reached,
        )


def prepare(
    model: nn.Module, data: Any, holdout: Any, example_input: Any, seed: int, ignore: Sequence[str] = (),
    may_empty: bool = False, units: str = "fine",
) -> tuple[UnitGraph, LabelledData, LabelledData]:
    """Trace, read the data, and set the held-out part aside before anything looks at it."""
    if not isinstance(model, nn.Module):
        raise ModelStateError(f"expected a torch.nn.Module to prune, got {type(model).__name__}")
    if next(iter(model.parameters()), None) is None:
        raise ModelStateError(f"{type(model).__name__} has no parameters")
    samples = read_data(data, model)
    if len(samples) == 0:
        raise DataError("calibration data is empty")
    example = example_input if example_input is not None else tuple(x[:1] for x in samples.inputs)
    graph = trace(model, example, ignore=ignore)
    if units != "fine":
        graph = coarsen(graph, example, units)
    elif may_empty:
        graph = find_emptiable(graph, example)
    calibration = as_data(samples, graph)
    if isinstance(holdout, (int, float)) and not isinstance(holdout, bool):
        if not 0 < holdout < 1:
            raise ConfigError(f"holdout: a share must lie between 0 and 1, got {holdout}")
        return graph, *calibration.split(holdout, seed)
    return graph, calibration, as_data(holdout, graph, "held-out data")


def _search(
    search: Searcher, limits: dict[str, int], tolerance: LossIncrease | None, minimize: str, stages: int | None,
    first: np.ndarray,
) -> tuple[Candidate, str]:
    """Run the strategies; Ctrl-C and the time limit end them early, and the best candidate so far is what counts."""
    refits = search.surrogate == "refit"
    if search.surrogate == "joint":
        return _search_jointly(search, limits, JOINT_STAGES if stages is None else stages, first)
    if refits and tolerance is None:
        return _search_refitted(search, limits, first)
    follows = not refits and SURROGATES[search.surrogate][1] and search.surrogate != "additive"
    plans = [1] if refits else [stages] if stages is not None else [1, DEFAULT_STAGES] if follows else [1]
    found: list[Candidate] = []
    termination = "optimal"
    try:
        for count in plans:
            if tolerance is None:
                under_budget(search, limits, count, found)
            elif refits:
                oracle = RiseOracle(search)
                within_tolerance(search, tolerance.nats, minimize, count, found, rise=oracle)
                if found[-1].stages:
                    found.append(shrink(search, oracle, found[-1], tolerance.nats, minimize))
            else:
                within_tolerance(search, tolerance.nats, minimize, count, found)
        best = _best(search, found, tolerance, minimize)
        if best.stages and not refits:
            found.append(_tightened(search, best, limits, tolerance, minimize))
    except OutOfTime:
        termination = "time_limit"
    except KeyboardInterrupt:
        termination = "interrupted"
    if not found:
        found.append(Candidate(first, search.truth(first), ()))
    best = _best(search, found, tolerance, minimize)
    if termination == "optimal" and best.stages:
        termination = best.stages[-1].termination
    return best, termination


def _search_refitted(search: Searcher, limits: dict[str, int], first: np.ndarray) -> tuple[Candidate, str]:
    """The curves' mask, with its bound, then the search over repaired networks around it."""
    dense, found, kept, termination = None, None, first, "optimal"
    try:
        everything = np.ones(search.graph.n_units, dtype=bool)
        dense = search.truth(everything)  # and refuses data that it can't be measured on
        found = search.combine(search.curves(everything), objective="drop", budgets=limits)
        kept, termination = found.kept, found.termination
        if termination != "interrupted":
            with interrupts_held() as held:  # the search ends with its best network
                search.stopped = held.is_set
                kept = search_widths(search, limits, found.kept, first)
            if held.is_set():
                termination = "interrupted"
            else:
                search.remaining()
    except OutOfTime:
        termination = "time_limit"
    except KeyboardInterrupt:
        termination = "interrupted"
    with interrupts_held() as held:
        if dense is None or found is None:
            best = Candidate(first, search.truth(first), ())
        else:
            best = as_candidate(search, found, kept, dense)
    return best, "interrupted" if held.is_set() else termination


def _search_jointly(
    search: Searcher, limits: dict[str, int], stages: int, first: np.ndarray
) -> tuple[Candidate, str]:
    jointly = JointSearch(search, limits)
    termination = "iteration_limit"
    try:
        jointly.run(stages, first)
    except OutOfTime:
        termination = "time_limit"
    except KeyboardInterrupt:
        termination = "interrupted"
    return (jointly.found or [Candidate(first, search.truth(first), ())])[-1], termination


def _best(search: Searcher, found: list[Candidate], tolerance: LossIncrease | None, minimize: str) -> Candidate:
    """Lowest loss under a budget, lowest cost within a tolerance; of equals the later, whose bound is tighter."""
    costs = search.graph.costs
    if tolerance is None:
        return min(reversed(found), key=lambda c: c.quality.loss)
    return min(reversed(found), key=lambda c: (costs.cost(minimize, costs.counts(c.kept)), c.quality.loss))


def _tightened(
    search: Searcher, best: Candidate, limits: dict[str, int], tolerance: LossIncrease | None, minimize: str
) -> Candidate:
    """The best candidate with its last stage's problem solved more thoroughly."""
    if tolerance is None:
        return tighten(search, best, lambda q: q.loss <= best.quality.loss, objective="drop", budgets=limits)
    allowed = search.truth(np.ones(search.graph.n_units, dtype=bool)).loss + tolerance.nats
    limit = best.stages[-1].max_drop
    return tighten(search, best, lambda q: q.loss <= allowed, objective=minimize, max_drop=limit)


def _describe(budgets: tuple[Budget, ...], tolerance: LossIncrease | None, minimize: str) -> str:
    if tolerance is not None:
        return f"fewest {minimize} within +{tolerance.nats:g} nats"
    return "best at " + ", ".join(f"{b.ratio:.0%} {b.resource}" for b in budgets)


def _bar(progress: bool) -> Any:
    return tqdm(desc="pruning", disable=not progress, leave=False, bar_format="{desc}: {elapsed} {postfix}")


def _tick(bar: Any, what: str) -> None:
    bar.set_postfix_str(what)
    bar.update()
