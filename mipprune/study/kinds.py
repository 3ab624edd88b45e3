"""The kinds of cells: what each takes, which cells it needs before, and the function that computes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from ..config import POSITIVE, SEED, SHARE, PruneSection, Rule
from ..errors import ConfigError
from ..estimate.methods import INDEX_METHODS
from .cell import Cell, plain
from .drawn import DRAWN, Drawn

__all__ = ["AT_LEAST_0", "KINDS", "EstimateSection", "GridCell", "Kind", "PruneSection", "SolveSection",
           "cell_of", "of_network", "register_kind", "stages_of"]

_CHANCE = Rule("from 0 to 1", lambda value: 0 <= value <= 1)
AT_LEAST_0 = Rule("a finite number, at least 0", lambda value: 0 <= value < math.inf)


@dataclasses.dataclass(frozen=True)
class EstimateSection:
    """``[[estimate]]``: one layer's importances sampled, beside the exact ones, and the mask that they lead to.

    Attributes:
        layer: module path; at most 20 units, for all coalitions are valued once.
        value: value function of the layer game.
        index: ``"shapley"``, ``"banzhaf"`` or ``"semivalue"``.
        p: inclusion probability of a semivalue; the other indices have none.
        method: how it's sampled, see :func:`mipprune.shapley`.
        n_evals: budget in coalition evaluations.
        keep: share of the layer's units that the mask keeps, at least one unit.
        samples: how many calibration samples the game looks at, from the first; all by default.
        seed: of the sampling.
    """

    layer: str
    value: Literal["cross_entropy", "accuracy", "margin", "logit_distance"] = "cross_entropy"
    index: Literal["shapley", "banzhaf", "semivalue"] = "shapley"
    p: Annotated[float, _CHANCE] | None = None
    method: Literal["permutation", "one_toggle", "regression", "adjusted", "reuse", "sample_permutation",
                    "sample_one_toggle"] = "permutation"
    n_evals: Annotated[int, POSITIVE] = 1000
    keep: Annotated[float, SHARE] = 0.5
    samples: Annotated[int, POSITIVE] | None = None
    seed: Annotated[int, SEED] = 0

    def settled(self) -> EstimateSection | None:
        """Without a p that the index doesn't have; None where index and method don't go together.

        Raises:
            ConfigError: a semivalue without p.
        """
        if self.index == "semivalue" and self.p is None:
            raise ConfigError("index 'semivalue' needs p, for example p = 0.75")
        if self.method not in INDEX_METHODS["shapley" if self.index == "shapley" else "semivalue"]:
            return None
        return self if self.index == "semivalue" else dataclasses.replace(self, p=None)


@dataclasses.dataclass(frozen=True)
class SolveSection:
    """``[[solve]]``: one layer's convex surrogate, solved; the report draws incumbent and bound over time.

    Attributes:
        layer: module path.
        surrogate: ``"head"``, the cross-entropy of an auxiliary linear head (:func:`mipprune.fit_linear_head`), or
            ``"quadratic"``, gradient and Gauss-Newton curvature of the layer's gates (:func:`mipprune.expand_gates`).
        keep: share of the layer's units that stay, with the least drop; or
        max_drop: the most that the surrogate may rise, in nats, with the fewest units.
        solver: see :func:`mipprune.solve`.
        samples: how many calibration samples the surrogate looks at, from the first; all by default.
        time_limit: seconds; a cell that it ends depends on the machine's speed.
        seed: of the solver.
    """

    layer: str
    surrogate: Literal["head", "quadratic"] = "head"
    keep: Annotated[float, SHARE] | None = None
    max_drop: Annotated[float, AT_LEAST_0] | None = None
    solver: Literal["auto", "nlp", "scip", "highs", "cbc", "brute"] = "auto"
    samples: Annotated[int, POSITIVE] | None = None
    time_limit: Annotated[float, POSITIVE] | None = None
    seed: Annotated[int, SEED] = 0


def _settled_prune(section: PruneSection) -> PruneSection:
    if section.n_jobs != 1:
        raise ConfigError("a study runs its cells side by side: give n_jobs to the run, not to the cells")
    if section.budget is not None and section.budget.latency is not None:
        raise ConfigError("a latency budget depends on the moment, not on the cell's inputs: study macs or params")
    return section


#: A cell's function: (inputs, network, payloads of the cells it needs) -> (result, payload).
Compute = Callable[[dict[str, Any], Any, tuple[bytes, ...]], tuple[dict[str, Any], bytes | None]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of cells.

    Attributes:
        name: how studies call it; also the table's name in a study file.
        section: frozen dataclass of what a study may choose; ``None`` for cells that only others ask for.
        compute: ``"package.module:function"`` of a :data:`Compute`, imported where it's run.
        settled: a combination of the grid in its one form, or None to leave it out; may raise ConfigError.
        alternatives: keys of which every cell has exactly one; in a grid they stand side by side.
        needs: from the inputs to the cells whose payloads ``compute`` reads, in this order.
        drawn: what the report draws; without it, a table is all.
        version: part of every key; raised when the same inputs come to mean another result.
    """

    name: str
    section: type | None
    compute: str
    needs: Callable[[dict[str, Any]], tuple[tuple[str, dict[str, Any]], ...]]
    settled: Callable[[Any], Any] = lambda section: section
    alternatives: tuple[str, ...] = ()
    version: int = 1
    drawn: Drawn | None = None


KINDS: dict[str, Kind] = {}


def register_kind(kind: Kind) -> Kind:
    """Make a kind known to studies of this process; workers on other backends must import what registers it too."""
    KINDS[kind.name] = kind
    if kind.drawn is not None:
        DRAWN[kind.name] = kind.drawn
    return kind


@dataclasses.dataclass(frozen=True)
class GridCell:
    """A cell with the cells it needs; ``stage`` is 0 for one that needs none, else one more than those."""

    cell: Cell
    needs: tuple[GridCell, ...]

    @property
    def stage(self) -> int:
        return 1 + max((need.stage for need in self.needs), default=-1)


def cell_of(kind: str, model: str, inputs: dict[str, Any]) -> GridCell:
    """The cell of these inputs (with the network's fingerprint as ``"network"``) and, recursively, what it needs."""
    if kind not in KINDS:
        raise ConfigError(f"no kind of cell {kind!r}; known: {', '.join(KINDS)}")
    needs = tuple(cell_of(name, model, given) for name, given in KINDS[kind].needs(inputs))
    own = plain({**inputs, "version": KINDS[kind].version})
    return GridCell(Cell(kind, model, own, tuple(need.cell.key for need in needs)), needs)


def stages_of(cells: list[GridCell]) -> list[list[GridCell]]:
    """All cells and what they need, each once (by key and name), in stages that can each run in any order."""
    found: dict[tuple[str, str], GridCell] = {}

    def visit(cell: GridCell) -> None:
        for need in cell.needs:
            visit(need)
        found.setdefault((cell.cell.key, cell.cell.model), cell)

    for cell in cells:
        visit(cell)
    depth = max((cell.stage for cell in found.values()), default=-1)
    return [[cell for cell in found.values() if cell.stage == stage] for stage in range(depth + 1)]


def of_network(inputs: dict[str, Any]) -> tuple[tuple[str, dict[str, Any]], ...]:
    """What a cell needs that works on a trained network and nothing else: that network."""
    return (("network", {"network": inputs["network"]}),)


def _of_estimate(inputs: dict[str, Any]) -> tuple[tuple[str, dict[str, Any]], ...]:
    game = {key: inputs[key] for key in ("network", "layer", "value", "samples")}
    return (*of_network(inputs), ("exact", game))


register_kind(Kind("network", None, "mipprune.study.compute:network", lambda inputs: ()))
register_kind(Kind("exact", None, "mipprune.study.compute:exact", of_network))
register_kind(Kind("estimate", EstimateSection, "mipprune.study.compute:estimate", _of_estimate,
                   EstimateSection.settled))
register_kind(Kind("prune", PruneSection, "mipprune.study.compute:prune_network", of_network, _settled_prune,
                   ("budget", "tolerance")))
register_kind(Kind("solve", SolveSection, "mipprune.study.compute:solve_layer", of_network,
                   alternatives=("keep", "max_drop")))
