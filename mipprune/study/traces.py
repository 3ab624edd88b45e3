"""How incumbents and bounds of ``solve`` cells went over time, gathered for the report."""

from __future__ import annotations

import dataclasses

from ..records import Record
from .cell import StoredCell, canonical

__all__ = ["SolverTraces", "traces_of"]

#: Inputs that are no part of the question: how it was answered, and what only makes keys.
ANSWERING = ("network", "version", "solver", "seed", "time_limit")


@dataclasses.dataclass(frozen=True, eq=False)
class SolverTraces(Record):
    """All searches for the answer of one problem.

    Attributes:
        title: network, layer and what was asked for.
        objective: ``"surrogate drop (nats)"`` or ``"units kept"``.
        searches: (solver, events) of every cell; an event is (seconds, objective, bound), NaN where there is none yet,
            and the last one is the end of the search.
    """

    title: str
    objective: str
    searches: tuple[tuple[str, tuple[tuple[float, float, float], ...]], ...]


def traces_of(cells: list[StoredCell]) -> tuple[SolverTraces, ...]:
    """The finished ``solve`` cells, by problem."""
    groups: dict[tuple[str, str], list[StoredCell]] = {}
    for cell in cells:
        asked = {key: value for key, value in cell.inputs.items() if key not in ANSWERING}
        groups.setdefault((cell.model, canonical(asked)), []).append(cell)
    return tuple(_traces(model, group) for (model, _), group in groups.items())


def _traces(model: str, cells: list[StoredCell]) -> SolverTraces:
    asked = cells[0].inputs
    counted = asked["keep"] is None
    task = f"fewest units within {asked['max_drop']:g} nats" if counted else f"keeping {asked['keep']:.0%}"
    some = "" if asked["samples"] is None else f", {asked['samples']} samples"
    searches = []
    for cell in cells:
        assert cell.result is not None
        events = tuple(
            (float(seconds), _number(objective), _number(bound))
            for seconds, objective, bound in cell.result["progress"]
        )
        searches.append((cell.result["used"], events))
    return SolverTraces(
        f"{model}, layer {asked['layer']}: {asked['surrogate']} surrogate, {task}{some}",
        "units kept" if counted else "surrogate drop (nats)", tuple(searches),
    )


def _number(value: float | None) -> float:
    """Infinities are stored as None, and nothing is drawn there."""
    return float("nan") if value is None else float(value)
