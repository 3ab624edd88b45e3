"""Study files: TOML in, checked networks and grids out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from ..config import TomlFile, read_section, read_value, refuse_unknown
from ..errors import ConfigError
from .grid import Grid, read_grid
from .kinds import KINDS
from .networks import ConfiguredNetwork, NetworkSection

__all__ = ["StudyFile", "read_study_file", "storage_of"]


class StudyFile(NamedTuple):
    """A study file that was read and checked; nothing that it names was imported."""

    name: str
    storage: Path
    networks: dict[str, ConfiguredNetwork]
    grids: tuple[Grid, ...]
    quick: tuple[Grid, ...]


def read_study_file(path: Path) -> StudyFile:
    """Read and check a study file.

    Raises:
        ConfigError: a mistake; the text has the line, what was expected and the nearest valid key.
        OSError: the file can't be read.
    """
    file = TomlFile.read(path)
    kinds = [name for name, kind in KINDS.items() if kind.section is not None]
    refuse_unknown(file, "", file.content, ["study", "models", *kinds])
    name, storage = _study(file)
    networks = _networks(file)
    grids: list[Grid] = []
    quick: list[Grid] = []
    for kind in kinds:
        tables = file.content.get(kind, [])
        if not isinstance(tables, list):
            raise ConfigError(f"{file.at(kind)}: {kind!r}: expected [[{kind}]], with two brackets")
        for i, table in enumerate(tables):
            where = f"{kind}[{i}]"
            full = {key: value for key, value in table.items() if key != "quick"}
            fewer = table.get("quick", {})
            if not isinstance(fewer, dict):
                raise ConfigError(f"{file.at(f'{where}.quick')}: '{where}.quick': expected a table, got {fewer!r}")
            grids.append(read_grid(kind, full, list(networks), file, where))
            read_grid(kind, {**full, **fewer}, list(networks), file, f"{where}.quick")
            quick.append(read_grid(kind, full | fewer, list(networks), file, where))
    if not grids:
        raise ConfigError(f"{path}: a study without cells: add {' or '.join(f'[[{kind}]]' for kind in kinds)}")
    return StudyFile(name, storage, networks, tuple(grids), tuple(quick))


def storage_of(path: Path) -> tuple[str, Path]:
    """A study file's name and storage, without a look at the rest."""
    return _study(TomlFile.read(path))


def _study(file: TomlFile) -> tuple[str, Path]:
    table = file.content.get("study", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{file.at('study')}: 'study': expected a table, got {table!r}")
    refuse_unknown(file, "study.", table, ["name", "storage"])
    read = {key: read_value(value, str, file, f"study.{key}") for key, value in table.items()}
    folder = file.path.absolute().parent
    return read.get("name", file.path.stem), folder / read.get("storage", f"{file.path.stem}.db")


def _networks(file: TomlFile) -> dict[str, ConfiguredNetwork]:
    tables: Any = file.content.get("models", {})
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{file.at('models')}: a study needs at least one network: [models.NAME]")
    for name in tables:
        if not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(f"{file.path}: network {name!r}: a name of letters, digits, '_' and '-' is needed")
    return {
        name: ConfiguredNetwork(file.path.absolute(), read_section(NetworkSection, table, file, f"models.{name}"))
        for name, table in tables.items()
    }
