"""Tables of kinds that have no picture of their own: a row per setting, results averaged over seeds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..records import Record
from .cell import StoredCell, canonical

__all__ = ["Averages", "averages_of"]

#: Inputs that are no setting.
HIDDEN = ("network", "version", "seed")
#: Results that are drawn, not averaged.
DRAWN = ("progress",)


@dataclasses.dataclass(frozen=True, eq=False)
class Averages(Record):
    """Texts of one kind's table.

    Attributes:
        kind: of the cells.
        head: "network", the settings that differ within the study, "runs", the results.
        n_words: how many of the columns are settings.
        rows: as the head; a result is its mean over the runs (and lowest to highest where they differ), for what is
            true or false the number of runs where it holds.
    """

    kind: str
    head: tuple[str, ...]
    n_words: int
    rows: tuple[tuple[str, ...], ...]


def averages_of(kind: str, cells: list[StoredCell]) -> Averages:
    """Group finished cells of one kind by what was asked for."""
    keys = [key for key in cells[0].inputs if key not in HIDDEN]
    differ = [key for key in keys if len({canonical(cell.inputs.get(key)) for cell in cells}) > 1]
    results = list(dict.fromkeys(key for cell in cells for key in cell.result or {} if key not in DRAWN))
    groups: dict[tuple[str, ...], list[StoredCell]] = {}
    for cell in cells:
        name = (cell.model, *(_setting(cell.inputs.get(key)) for key in differ))
        groups.setdefault(name, []).append(cell)
    rows = tuple(
        (*name, str(len(group)), *(_mean([(cell.result or {}).get(key) for cell in group]) for key in results))
        for name, group in groups.items()
    )
    return Averages(kind, ("network", *differ, "runs", *results), 1 + len(differ), rows)


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else "default" if value is None else canonical(value)


def _mean(values: list[Any]) -> str:
    if all(isinstance(value, bool) for value in values):
        return f"{sum(values)}/{len(values)}"
    if all(isinstance(value, (int, float)) for value in values):
        low, high = min(values), max(values)
        spread = "" if low == high else f" ({low:.4g} to {high:.4g})"
        return f"{float(np.mean(values)):.4g}{spread}"
    return ", ".join(dict.fromkeys("-" if value is None else str(value) for value in values))
