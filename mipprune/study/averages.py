"""Tables of kinds that have no picture of their own: a row per setting, results averaged over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ..records import Record
from .cell import StoredCell, canonical

__all__ = ["Averages", "averages_of", "names_of_settings", "text_of"]

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
        brief: for narrow places; first the head: a name for each setting, "runs", the results that aren't the same
            everywhere, without lowest and highest.
    """

    kind: str
    head: tuple[str, ...]
    n_words: int
    rows: tuple[tuple[str, ...], ...]
    brief: tuple[tuple[str, ...], ...]


def averages_of(kind: str, cells: list[StoredCell]) -> Averages:
    """Group finished cells of one kind by what was asked for."""
    keys = [key for key in cells[0].inputs if key not in HIDDEN]
    differ = [key for key in keys if len({canonical(cell.inputs.get(key)) for cell in cells}) > 1]
    results = list(dict.fromkeys(key for cell in cells for key in cell.result or {} if key not in DRAWN))
    groups: dict[tuple[str, ...], list[StoredCell]] = {}
    for cell in cells:
        name = (cell.model, *(text_of(cell.inputs.get(key)) for key in differ))
        groups.setdefault(name, []).append(cell)
    rows, brief, name_of = [], [], names_of_settings(cells)
    for name, group in groups.items():
        means = [_mean([(cell.result or {}).get(key) for cell in group]) for key in results]
        rows.append((*name, str(len(group)), *(mean + spread for mean, spread in means)))
        brief.append((name_of(group[0]), str(len(group)), *(mean for mean, _ in means)))
    head = ("network", *differ, "runs", *results)
    varied = [i for i, column in enumerate(zip(*brief)) if i < 2 or len(set(column)) > 1 or len(brief) == 1]
    short = [tuple(row[i] for i in varied) for row in (("setting", "runs", *results), *brief)]
    return Averages(kind, head, 1 + len(differ), tuple(rows), tuple(short))


def names_of_settings(
    cells: list[StoredCell], over: str | None = None, with_network: bool = True
) -> Callable[[StoredCell], str]:
    """A function that names what was asked for, in the fewest words that tell these cells apart but for their seeds.

    Left out are the setting ``over``, those that follow from others, and what is off (none or zero).
    """
    keys = [key for key in cells[0].inputs if key not in (*HIDDEN, over)]
    keys.sort(key=lambda key: not isinstance(cells[0].inputs[key], str))  # words first: they say more
    telling: list[str] = []
    groups: set[tuple[str, ...]] = {(cell.model,) for cell in cells}
    several = with_network and len(groups) > 1
    for key in keys:
        finer = {(cell.model, *(canonical(cell.inputs.get(k)) for k in (*telling, key))) for cell in cells}
        if len(finer) > len(groups):
            telling, groups = [*telling, key], finer

    def name_of(cell: StoredCell) -> str:
        words = [cell.model] if several else []
        for key in telling:
            value = cell.inputs.get(key)
            if isinstance(value, str) and value.isidentifier():
                words.append(value)  # a word speaks for itself, a number doesn't
            elif value:
                words.append(f"{key}={text_of(value)}")
        return ", ".join(words) or ("none of these" if telling else cell.model)

    return name_of


def text_of(value: Any) -> str:
    """How tables and pictures write the value of a setting."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "+".join(value) or "none"
    return value if isinstance(value, str) else "default" if value is None else canonical(value)


def _mean(values: list[Any]) -> tuple[str, str]:
    """The mean, and the spread where there is one."""
    if all(isinstance(value, bool) for value in values):
        return f"{sum(values)}/{len(values)}", ""
    if all(isinstance(value, (int, float)) for value in values):
        low, high = min(values), max(values)
        spread = "" if low == high else f" ({low:.4g} to {high:.4g})"
        return f"{float(np.mean(values)):.4g}", spread
    return ", ".join(dict.fromkeys("-" if value is None else str(value) for value in values)), ""
