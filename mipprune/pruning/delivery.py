"""The last step of ``prune``: the chosen mask becomes a checked, repaired, measured network and a report."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from ..game import LabelledData
from ..latency import LatencyComparison
from ..solver import Solution
from ..surgery import PrunePlan, verify
from .baseline import magnitude_mask
from .certificate import certify_accuracy
from .diagnosis import diagnose
from .measure import measure
from .result import LayerReport, PruneReport, PruneResult
from .search import Candidate, Searcher, Stage

__all__ = ["deliver"]


def deliver(
    search: Searcher, best: Candidate, termination: str, task: str, objective: str, limits: dict[str, int],
    held_out: LabelledData, begin: float, begin_cpu: float, latency: LatencyComparison | None,
) -> PruneResult:
    """Cut, check, repair, measure; everything in the report is recomputed here from the final mask."""
    graph, data = search.graph, search.data
    plan = PrunePlan.from_mask(graph, best.kept)
    small = plan.apply(graph.model)
    checked = verify(graph, best.kept, small, data)
    small, repairs = search.deployed(best.kept)
    ready = time.process_time()
    counts = graph.costs.counts(best.kept)
    spent = {r: graph.costs.cost(r, counts) for r in graph.costs.resources}
    dense, pruned = measure(graph.model, data), measure(small, data)
    same = limits or {objective: spent[objective]}
    same_cost = magnitude_mask(graph, same, search.pinned, search.min_keep, search.multiple)
    baseline, _ = search.deployed(same_cost)
    last = best.stages[-1] if best.stages else None
    solution = Solution(
        kept=best.kept,
        objective=_objective(last, objective, spent, pruned.loss - dense.loss),
        bound=last.bound if last else -np.inf,
        drop=last.surrogate_drop if last else 0.0,
        costs=spent,
        objective_kind=objective,
        termination=termination,
        solver=last.solver if last else "magnitude",
        version=last.version if last else "",
        seconds=sum(stage.seconds for stage in best.stages),
        true_drop=pruned.loss - dense.loss,
    )
    if termination == "optimal" and not solution.proved:  # every program was solved, the layers' own gaps are left
        solution = dataclasses.replace(solution, termination="iteration_limit")
    report = PruneReport(
        task=task,
        surrogate=search.surrogate,
        solution=solution,
        stages=best.stages,
        layers=tuple(
            LayerReport(g.name, g.size, int(k), int(least[0]))
            for g, k, least in zip(graph.groups, counts, search.allowed, strict=True)
        ),
        pinned=tuple(f"{p.module} ({p.n_units} outputs): {p.reason}" for p in graph.pinned),
        costs_dense={r: graph.costs.cost(r, graph.costs.sizes) for r in graph.costs.resources},
        costs_pruned=spent,
        dense=measure(graph.model, held_out, "held-out data"),
        pruned=measure(small, held_out, "held-out data"),
        baseline=measure(baseline, held_out, "held-out data"),
        dense_calibration=dense,
        pruned_calibration=pruned,
        verification=checked,
        repairs=repairs,
        divergence=[step.divergence for step in repairs if step.taken and step.name in ("cut", "bn", "refit")][-1],
        certificate=certify_accuracy(graph.model, small, held_out),
        diagnosis=diagnose(graph, best.kept, data),
        seconds=time.monotonic() - begin,
        cpu_seconds=ready - begin_cpu,
        latency=latency,
    )
    return PruneResult(small, plan, report)


def _objective(last: Stage | None, objective: str, spent: dict[str, int], true_drop: float) -> float:
    if objective != "drop":
        return float(spent[objective])
    return last.objective if last else true_drop
