"""What a report shows: finished cells grouped and averaged, as plain records that figures and tables are made from."""

from __future__ import annotations

import dataclasses
import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..records import Record
from .averages import Averages, averages_of, text_of
from .cell import NEEDS, StoredCell, canonical
from .drawn import DRAWN
from .panels import Panels, panels_of
from .storage import StudyStorage
from .traces import SolverTraces, traces_of

__all__ = ["Convergence", "ConvergencePoint", "Overview", "PrunePoint", "overview", "wilson"]

#: What a loss of each value function is measured in.
UNITS = {"cross_entropy": "nats", "accuracy": "share of the samples", "margin": "logits", "logit_distance": "logits"}


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a share of ``n`` samples (Wilson 1927); z = 1.96 gives 95 %."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


@dataclasses.dataclass(frozen=True, eq=False)
class ConvergencePoint(Record):
    """All seeds of one method at one budget: quantiles (10, 50, 90 %) and means."""

    method: str
    n_evals: int
    n_seeds: int
    error: tuple[float, float, float]
    true_loss: tuple[float, float, float]
    spearman: float
    coverage: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Convergence(Record):
    """Sampled against exact values of one layer and index.

    Attributes:
        title: network, layer, index, share kept.
        points: by method and budget.
        exact_loss, best_loss: loss increase of the mask by exact importances, and of the best mask of that size.
        unit: of both losses, ``"nats"`` for instance.
    """

    title: str
    points: tuple[ConvergencePoint, ...]
    exact_loss: float
    best_loss: float
    unit: str


@dataclasses.dataclass(frozen=True, eq=False)
class PrunePoint(Record):
    """All seeds of one way to prune one network to one requirement.

    Attributes:
        model, task: which network, what was asked for.
        options: what else differs within the study, ``"surrogate=head"`` for instance.
        n_seeds: how many runs.
        macs: mean share of the multiply-adds that stayed.
        accuracy: mean accuracy on held-out samples.
        interval: Wilson's 95 % interval of that accuracy on that many samples: what another sample of test data could
            have shown.  It says nothing about seeds, whose extremes are in ``extremes``.
        extremes: lowest and highest accuracy.
        magnitude, dense: mean accuracy of the same budget by weight magnitude, and of the dense network.
        gap: largest relative gap of the surrogate problems; None if a bound is missing.
        proved: how many were proved optimal.
        seconds: mean wall-clock time of a run.
        kept: group -> (mean units kept, units).
    """

    model: str
    task: str
    options: str
    n_seeds: int
    macs: float
    accuracy: float
    interval: tuple[float, float]
    extremes: tuple[float, float]
    magnitude: float
    dense: float
    gap: float | None
    proved: int
    seconds: float
    kept: dict[str, tuple[float, int]]


@dataclasses.dataclass(frozen=True, eq=False)
class Overview(Record):
    """A whole study.

    Attributes:
        study: its name.
        counts: kind -> state -> cells.
        convergence, pruning: of the kinds "estimate" and "prune".
        graphs: title, number of units and pairs (i < j, row by row) of the first "interactions" cell of every setting.
        traces: how the searches of the kind "solve" went.
        others: of every other kind that a study asks for.
        panels: pictures of those kinds that say what to draw.
        errors: kind, network and last line of the error of every cell that failed by itself.
        seconds: computing time of all finished cells together.
    """

    study: str
    counts: dict[str, dict[str, int]]
    convergence: tuple[Convergence, ...]
    pruning: tuple[PrunePoint, ...]
    graphs: tuple[tuple[str, int, tuple[float, ...]], ...]
    traces: tuple[SolverTraces, ...]
    others: tuple[Averages, ...]
    panels: tuple[Panels, ...]
    errors: tuple[tuple[str, str, str], ...]
    seconds: float


def overview(storage: StudyStorage, study: str) -> Overview:
    """Read a study once and sum it up.  O(cells) time; about 3 kB a cell while it's read."""
    counts: Counter[tuple[str, str]] = Counter()
    errors: list[tuple[str, str, str]] = []
    found: dict[str, list[StoredCell]] = {"estimate": [], "prune": []}
    seconds = 0.0
    for cell in storage.cells(study):
        counts[cell.kind, cell.state] += 1
        if cell.state == "failed":
            text = (cell.error or "?").strip()
            if not text.startswith(NEEDS):
                errors.append((cell.kind, cell.model, text.splitlines()[-1]))
        if cell.state == "done":
            seconds += cell.seconds or 0.0
            if cell.kind not in ("network", "exact"):
                found.setdefault(cell.kind, []).append(cell)
    table: dict[str, dict[str, int]] = {}
    for (kind, state), number in counts.items():
        table.setdefault(kind, {})[state] = number
    convergences, prunings = _convergences(found.pop("estimate")), _prunings(found.pop("prune"))
    pairs = found.pop("interactions", [])
    traces = traces_of(found.get("solve", []))
    others = tuple(averages_of(kind, cells) for kind, cells in found.items())
    pictures = [panels_of(kind, cells, DRAWN[kind]) for kind, cells in found.items() if kind in DRAWN]
    graphs: dict[str, tuple[str, int, tuple[float, ...]]] = {}
    for cell in pairs:
        assert cell.result is not None
        title = f"{cell.model}, layer {cell.inputs['layer']}: pairs at p={cell.inputs['p']:g}"
        graphs.setdefault(title, (title, cell.result["players"], tuple(cell.result["pairs"])))
    panels = tuple(one for one in pictures if one is not None)
    return Overview(study, table, convergences, prunings, tuple(graphs.values()), traces, others, panels,
                    tuple(errors), seconds)


def _grouped(cells: Iterable[StoredCell], keys: Iterable[str]) -> dict[tuple[Any, ...], list[StoredCell]]:
    groups: dict[tuple[Any, ...], list[StoredCell]] = {}
    chosen = operator.itemgetter(*keys)  # of two keys or more, so that it makes tuples
    for cell in cells:
        groups.setdefault((cell.model, *chosen(cell.inputs)), []).append(cell)
    return groups


def _convergences(cells: list[StoredCell]) -> tuple[Convergence, ...]:
    found = []
    for (model, layer, value, index, p, keep, _), group in _grouped(
        cells, ("layer", "value", "index", "p", "keep", "samples")
    ).items():
        law = "" if p is None else f" p={p:g}"
        points = [_point(method, budget, some)
                  for (_, method, budget), some in _grouped(group, ("method", "n_evals")).items()]
        first = _results([group[0]])[0]
        found.append(Convergence(
            f"{model}, layer {layer}: {index}{law}, {value}, keeping {keep:.0%}",
            tuple(sorted(points, key=lambda point: (point.method, point.n_evals))),
            first["true_loss_of_exact"], first["true_loss_of_best"], UNITS.get(value, value),
        ))
    return tuple(found)


def _results(cells: list[StoredCell]) -> list[dict[str, Any]]:
    return [cell.result for cell in cells if cell.result is not None]


def _point(method: str, budget: int, cells: list[StoredCell]) -> ConvergencePoint:
    results = _results(cells)
    covered = [r["coverage"] for r in results if r["coverage"] is not None]
    ranks = [r["spearman"] for r in results if r["spearman"] is not None]
    return ConvergencePoint(
        method, budget, len(results), _quantiles(results, "relative_error"), _quantiles(results, "true_loss"),
        float(np.mean(ranks)) if ranks else float("nan"), float(np.mean(covered)) if covered else None,
    )


def _quantiles(results: list[dict[str, Any]], key: str) -> tuple[float, float, float]:
    values = [np.nan if r[key] is None else r[key] for r in results]
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return float(low), float(middle), float(high)


def _prunings(cells: list[StoredCell]) -> tuple[PrunePoint, ...]:
    keys = [key for key in (cells[0].inputs if cells else ()) if key not in ("network", "version", "seed")]
    texts = {key: {canonical(cell.inputs.get(key)) for cell in cells} for key in keys}
    differ = [key for key in keys if len(texts[key]) > 1 and key not in ("budget", "tolerance", "minimize")]
    groups: dict[tuple[str, str, str], list[StoredCell]] = {}
    for cell in cells:
        assert cell.result is not None
        options = ", ".join(f"{key}={text_of(value)}" for key in differ if (value := cell.inputs[key]) is not None)
        groups.setdefault((cell.model, options, cell.result["task"]), []).append(cell)
    return tuple(_prune_point(*name, group) for name, group in groups.items())


def _prune_point(model: str, options: str, task: str, cells: list[StoredCell]) -> PrunePoint:
    results = _results(cells)

    def mean(key: str) -> float:
        return float(np.mean([r[key] for r in results]))

    accuracies, gaps = [r["pruned_accuracy"] for r in results], [r["gap"] for r in results]
    return PrunePoint(
        model, task, options, len(results), mean("macs_ratio"), mean("pruned_accuracy"),
        wilson(mean("pruned_accuracy"), results[0]["held_out"]), (min(accuracies), max(accuracies)),
        mean("magnitude_accuracy"), mean("dense_accuracy"), None if None in gaps else max(gaps),
        sum(r["proved"] for r in results), float(np.mean([cell.seconds or 0.0 for cell in cells])),
        {group: (float(np.mean([r["kept_of"][group][0] for r in results])), size)
         for group, (_, size) in results[0]["kept_of"].items()},
    )
