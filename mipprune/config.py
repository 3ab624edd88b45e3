"""The configuration file of the command line: TOML in, checked and typed sections out."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from .datasets import BUILT_IN
from .errors import ConfigError

__all__ = [
    "BudgetSection", "DataSection", "ModelSection", "OutputSection", "PruneSection", "RunConfig", "TomlFile",
    "load_config", "read_section", "read_value", "refuse_unknown",
]


class Rule(NamedTuple):
    """What a value of the right type must also be, in words and as a test."""

    text: str
    holds: Callable[[Any], bool]


def _is_function(name: str) -> bool:
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name) is not None


FUNCTION = Rule("'package.module:function'", _is_function)
_SOURCE = Rule(
    f"'package.module:function' or one of {', '.join(BUILT_IN)}", lambda name: name in BUILT_IN or _is_function(name)
)
_WEIGHTS = Rule("a .safetensors, .pt or .pth file", lambda name: name.endswith((".safetensors", ".pt", ".pth")))
_FILE_NAME = Rule("a file name without folder", lambda name: name not in ("", ".", "..") and not {*name} & {*"/\\\0"})
_RATIO = Rule("above 0 and at most 1 (0.5 keeps half)", lambda value: 0 < value <= 1)
SHARE = Rule("above 0 and below 1", lambda value: 0 < value < 1)
_NATS = Rule("a finite number of nats, at least 0", lambda value: 0 <= value < math.inf)
_EFFORT = Rule("above 0 (2 searches twice as long)", lambda value: 0 < value < math.inf)
_SECONDS = Rule("above 0 seconds", lambda value: 0 < value < math.inf)
POSITIVE = Rule("at least 1", lambda value: value >= 1)
SEED = Rule("at least 0", lambda value: value >= 0)
_JOBS = Rule("a number of processes, or -1 for all cores", lambda value: value >= 1 or value == -1)

Ratio = Annotated[float, _RATIO]


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """``[model]``: the dense network.

    Attributes:
        factory: ``"package.module:function"``; called without arguments, returns the ``nn.Module``.
        weights: its state dict, relative to the configuration file; without it the factory's own weights are used.
    """

    factory: Annotated[str, FUNCTION]
    weights: Annotated[str, _WEIGHTS] | None = None


@dataclasses.dataclass(frozen=True)
class DataSection:
    """``[data]``: what the network classifies.

    Attributes:
        source: a name of :data:`mipprune.datasets.BUILT_IN` or ``"package.module:function"``.
        holdout: share of the data to set apart for the report, where the source has no held-out part of its own.
    """

    source: Annotated[str, _SOURCE]
    holdout: Annotated[float, SHARE] | None = None


@dataclasses.dataclass(frozen=True)
class BudgetSection:
    """``[prune] budget``: the share of each dense cost that may stay."""

    macs: Ratio | None = None
    params: Ratio | None = None
    units: Ratio | None = None
    latency: Ratio | None = None


@dataclasses.dataclass(frozen=True)
class PruneSection:
    """``[prune]``: the keywords of :func:`mipprune.prune`, with its defaults; exactly one of the first two is given."""

    budget: BudgetSection | None = None
    tolerance: Annotated[float, _NATS] | None = None
    minimize: Literal["units", "params", "macs"] = "units"
    layers: tuple[str, ...] | None = None
    pin: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    min_keep: Annotated[int, POSITIVE] = 1
    allow_empty: bool | None = None
    units: Literal["fine", "branches", "blocks"] = "fine"
    multiple: Annotated[int, POSITIVE] = 1
    surrogate: Literal["quadratic", "additive", "head", "joint", "refit"] | None = None
    stages: Annotated[int, POSITIVE] | None = None
    repair: tuple[Literal["bn", "refit", "head", "lm"], ...] = ("bn", "refit", "head")
    solver: Literal["highs", "scip", "cbc"] = "highs"
    effort: Annotated[float, _EFFORT] = 1.0
    time_limit: Annotated[float, _SECONDS] | None = None
    n_jobs: Annotated[int, _JOBS] = 1
    seed: Annotated[int, SEED] = 0


@dataclasses.dataclass(frozen=True)
class OutputSection:
    """``[output]``: where results go.

    Attributes:
        dir: folder, relative to the configuration file; made when needed.
        name: what the result files' names begin with; the configuration file's own name by default.
    """

    dir: str = "pruned"
    name: Annotated[str, _FILE_NAME] | None = None


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A configuration file that was read and checked.

    Attributes:
        path: of the file; what it names is looked up from its folder.
    """

    path: Path
    model: ModelSection
    data: DataSection
    prune: PruneSection
    output: OutputSection

    @property
    def folder(self) -> Path:
        return self.path.absolute().parent

    @property
    def output_dir(self) -> Path:
        return self.folder / self.output.dir

    @property
    def output_name(self) -> str:
        return self.output.name or self.path.stem


def load_config(path: str | os.PathLike[str]) -> RunConfig:
    """Read and check a configuration file; nothing it names is imported or opened.

    Raises:
        ConfigError: not TOML, an unknown key (the text names the nearest one), a missing key, a value of a wrong type
            or out of range, or not exactly one of a budget and a tolerance.
        OSError: the file can't be read.
    """
    path = Path(path)
    file = TomlFile.read(path)
    content = file.content
    sections = {"model": ModelSection, "data": DataSection, "prune": PruneSection, "output": OutputSection}
    refuse_unknown(file, "", content, list(sections))
    read = {name: read_section(kind, content.get(name, {}), file, name) for name, kind in sections.items()}
    config = RunConfig(path, **read)
    wanted = config.prune
    shares = dataclasses.asdict(wanted.budget) if wanted.budget else {}
    given = [resource for resource, share in shares.items() if share is not None]
    if bool(given) == (wanted.tolerance is not None):
        found = "both" if given else "neither"
        raise ConfigError(f"{path}: [prune] needs exactly one of 'budget' (for example budget = {{ macs = 0.5 }}) and "
                          f"'tolerance' (for example tolerance = 0.05, in nats); it has {found}")
    if config.data.source in BUILT_IN and config.data.holdout is not None:
        raise ConfigError(f"{path}: 'data.holdout': the built-in data {config.data.source!r} has its own held-out "
                          f"part; remove the key")
    return config


class TomlFile(NamedTuple):
    """A TOML file that was read, and knows on which line a key stands."""

    path: Path
    text: str
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> TomlFile:
        """Read and parse ``path``.  Raises ConfigError (not TOML) or OSError."""
        try:
            text = path.read_text(encoding="utf-8")
            return cls(path, text, tomllib.loads(text))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not a TOML file: {error}") from error

    def at(self, where: str) -> str:
        """``"path:line"`` of a key like ``"prune.budget.macs"`` or ``"estimate[1].seed[0]"``; no line if it isn't
        there.

        The parser tells no lines, so it is asked how much of the file it needs to know the key: O(lines) parses, and
        only when an error is about to be shown.
        """
        lines = self.text.splitlines(keepends=True)
        start = 0
        for end in range(1, len(lines) + 1):
            try:
                part = tomllib.loads("".join(lines[:end]))
            except tomllib.TOMLDecodeError:
                continue  # in the middle of a value that spans lines
            if _holds(part, where):
                return f"{self.path}:{start + 1}"
            start = end
        return str(self.path)


def _holds(content: Any, where: str) -> bool:
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", where):
        try:
            content = content[int(index) if index else key]
        except (LookupError, TypeError):
            return False
    return True


def refuse_unknown(file: TomlFile, where: str, table: dict[str, Any], known: list[str]) -> None:
    """Raise ConfigError for a key of ``table`` that isn't known; the text has its line and the nearest known key."""
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {where + close[0]!r}?" if close else f"known here: {', '.join(known)}"
            kind, key = "key" if where else "section", where + key
            raise ConfigError(f"{file.at(key)}: unknown {kind} {key!r}; {hint}")


def read_section(kind: type, table: Any, file: TomlFile, where: str) -> Any:
    """The dataclass ``kind`` from the TOML table at ``where``; ConfigError for unknown, missing or wrong keys."""
    if not isinstance(table, dict):
        raise ConfigError(f"{file.at(where)}: {where!r}: expected a table, got {table!r}")
    hints = typing.get_type_hints(kind, include_extras=True)
    refuse_unknown(file, f"{where}.", table, list(hints))
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.name not in table:
            expected = _expected(hints[field.name])
            raise ConfigError(f"{file.at(where)}: [{where}] lacks the key {field.name!r}: {expected}")
    return kind(**{key: read_value(value, hints[key], file, f"{where}.{key}") for key, value in table.items()})


def read_value(value: Any, hint: Any, file: TomlFile, where: str) -> Any:
    """``value`` as ``hint`` wants it, or a ConfigError that names ``where``.

    TOML has no null, so the ``None`` of an optional key can't be written.
    """
    hint = _without_none(hint)
    if dataclasses.is_dataclass(hint):
        return read_section(typing.cast(type, hint), value, file, where)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        item = typing.get_args(hint)[0]
        return tuple(read_value(v, item, file, f"{where}[{i}]") for i, v in enumerate(value))
    if _fits(value, hint):
        return float(value) if isinstance(value, int) and _plain(hint) is float else value
    close = difflib.get_close_matches(value, _names(hint), n=1) if isinstance(value, str) else []
    remedy = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"{file.at(where)}: {where!r}: expected {_expected(hint)}, got {value!r}{remedy}")


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _fits(value, args[0]) and args[1].holds(value)
    if origin is Literal:
        return isinstance(value, str) and value in args
    return type(value) in ((int, float) if hint is float else (hint,))  # a bool is no number here


def _plain(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _expected(hint: Any) -> str:
    """A type hint in words."""
    hint = _without_none(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{_expected(args[0])}, {args[1].text}"
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin is tuple:
        return f"a list, each {_expected(args[0])}"
    return {str: "a string", int: "a whole number", float: "a number"}[hint]


def _names(hint: Any) -> list[str]:
    """The names that a value may be one of."""
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    return list(BUILT_IN) if _SOURCE in typing.get_args(hint) else []
