"""What the report draws of kinds without a picture of their own: their results beside each other, a panel for each."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..records import Record
from .averages import names_of_settings
from .cell import StoredCell
from .drawn import Drawn

__all__ = ["Panel", "Panels", "Series", "panels_of"]


@dataclasses.dataclass(frozen=True, eq=False)
class Series(Record):
    """One row of dots, or one line.

    Attributes:
        label: what it shows.
        points: (position, values of all runs there), by position; a row of dots has the one position 0.
    """

    label: str
    points: tuple[tuple[float, tuple[float, ...]], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Panel(Record):
    """What is compared on one axis."""

    title: str
    series: tuple[Series, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Panels(Record):
    """A picture of one kind.

    Attributes:
        kind: of the cells.
        panels: side by side.
        over: the setting along the axis of lines; None for rows of dots.
        values: what is drawn, where all panels show the same; else each panel's title says it.
        log: whether the axis of the values is logarithmic.
    """

    kind: str
    panels: tuple[Panel, ...]
    over: str | None
    values: str
    log: bool


def panels_of(kind: str, cells: list[StoredCell], drawn: Drawn) -> Panels | None:
    """Gather the finished cells of one kind; None where some lack a result or the setting to draw.  O(cells) time."""
    first = cells[0].result or {}
    names = [name for name in first for wanted in drawn.results
             if name == wanted or (wanted.endswith("*") and name.startswith(wanted[:-1]))]
    names = [name for name in names if all(_is_number((cell.result or {}).get(name)) for cell in cells)]
    over = drawn.over
    if not names or not all(over is None or _is_number(cell.inputs.get(over)) for cell in cells):
        return None
    # lines of several networks would hide each other
    apart = over is not None and not drawn.together and len({cell.model for cell in cells}) > 1
    name_of = names_of_settings(cells, over, with_network=not apart)
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for cell in cells:
        setting = name_of(cell)
        position = 0.0 if over is None else float(cell.inputs[over])
        for name in names:
            title = f"{cell.model}: {name}" if apart else name
            place = (setting, _short(name, drawn)) if drawn.together else (title, setting)
            found.setdefault(place, {}).setdefault(position, []).append(float((cell.result or {})[name]))
    titles = list(dict.fromkeys(title for title, _ in found))
    return Panels(kind, tuple(
        Panel(title, tuple(
            Series(label, tuple((x, tuple(values)) for x, values in sorted(points.items())))
            for (own, label), points in found.items() if own == title
        )) for title in titles
    ), over, drawn.text if drawn.together else "", drawn.log)


def _short(name: str, drawn: Drawn) -> str:
    """A result's name without what the names have in common."""
    for wanted in drawn.results:
        if wanted.endswith("*") and name.startswith(wanted[:-1]):
            return name[len(wanted) - 1:]
    return name


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
