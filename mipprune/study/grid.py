"""Grids: every key a value or a list of values, and the cells of all their combinations."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from typing import Any

from ..config import TomlFile, read_value, refuse_unknown
from ..errors import ConfigError
from . import gap_kind, paper_kinds  # noqa: F401  register their kinds
from .cell import plain
from .kinds import KINDS, GridCell, cell_of

__all__ = ["Grid", "read_grid"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Cells of one kind over some networks.

    Attributes:
        kind: name of the kind.
        models: names of the networks; the outermost loop.
        sections: one per combination of the other keys, the last key varying fastest.
    """

    kind: str
    models: tuple[str, ...]
    sections: tuple[Any, ...]

    def cells(self, fingerprints: dict[str, str]) -> list[GridCell]:
        """The cells, given each network's fingerprint."""
        return [
            cell_of(self.kind, model, {"network": fingerprints[model], **_inputs(section)})
            for model in self.models for section in self.sections
        ]


def _inputs(section: Any) -> dict[str, Any]:
    """The section as a cell's inputs: what is unset inside a table is left out."""
    given = plain(dataclasses.asdict(section))
    given = {key: {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
             for key, value in given.items()}
    return {key: value for key, value in given.items() if key != "n_jobs"}


def read_grid(kind: str, table: dict[str, Any], models: list[str], file: TomlFile, where: str) -> Grid:
    """Check one grid.

    Args:
        table: key of the kind's section -> value, or list of values; for a key whose value is a list itself, a list
            of lists.  ``model`` names networks, all by default.
        models: the networks there are.
        file, where: what errors name.

    Raises:
        ConfigError: an unknown key or network, a missing key, a wrong value, or combinations none of which makes sense.
    """
    section = KINDS[kind].section
    if section is None:
        raise ConfigError(f"{file.at(where)}: cells of kind {kind!r} are made when others need them")
    hints = typing.get_type_hints(section, include_extras=True)
    refuse_unknown(file, f"{where}.", table, ["model", *hints])
    for field in dataclasses.fields(section):
        if field.default is dataclasses.MISSING and field.name not in table:
            raise ConfigError(f"{file.at(where)}: [[{kind}]] lacks the key {field.name!r}")
    chosen = _names(table.get("model", models), models, file, f"{where}.model")
    axes = {key: _axis(table[key], hints[key], file, f"{where}.{key}") for key in hints if key in table}
    given = [key for key in KINDS[kind].alternatives if key in axes]
    if KINDS[kind].alternatives and not given:
        raise ConfigError(f"{file.at(where)}: [[{kind}]] needs one of {', '.join(KINDS[kind].alternatives)}")
    found: dict[Any, None] = {}
    for alternative in given or [""]:
        names = [key for key in axes if key == alternative or key not in given]
        for values in itertools.product(*(axes[key] for key in names)):
            try:
                settled = KINDS[kind].settled(section(**dict(zip(names, values))))
            except ConfigError as error:
                raise ConfigError(f"{file.at(where)}: [[{kind}]]: {error}") from None
            if settled is not None:
                found[settled] = None
    if not found:
        raise ConfigError(f"{file.at(where)}: [[{kind}]]: none of these combinations goes together")
    return Grid(kind, chosen, tuple(found))


def _axis(value: Any, hint: Any, file: TomlFile, where: str) -> list[Any]:
    hint = next((arg for arg in typing.get_args(hint) if arg is not type(None)), hint) if _optional(hint) else hint
    is_list = typing.get_origin(hint) is tuple
    many = isinstance(value, list) and (not is_list or any(isinstance(item, list) for item in value))
    if not many:
        return [read_value(value, hint, file, where)]
    if not value:
        raise ConfigError(f"{file.at(where)}: {where!r}: an empty list leaves no cell; give a value or drop the key")
    return [read_value(item, hint, file, f"{where}[{i}]") for i, item in enumerate(value)]


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _names(value: Any, models: list[str], file: TomlFile, where: str) -> tuple[str, ...]:
    names = value if isinstance(value, list) else [value]
    for name in names:
        if name not in models:
            known = f"known: {', '.join(models)}" if models else "there is no network: add [models.NAME]"
            raise ConfigError(f"{file.at(where)}: {where!r}: no network {name!r}; {known}")
    if not names:
        raise ConfigError(f"{file.at(where)}: {where!r}: name at least one network")
    return tuple(dict.fromkeys(names))
