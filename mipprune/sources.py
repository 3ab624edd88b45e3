"""The network and the data that a configuration names: imported, loaded, checked; weights are never unpickled."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn

from .config import RunConfig
from .datasets import BUILT_IN, load_split
from .errors import ConfigError

__all__ = ["RunData", "load_run_data", "load_run_model"]

DEFAULT_HOLDOUT = 0.25


class RunData(NamedTuple):
    """Data for the selection, and data for the report (or the share of the former to set apart for it)."""

    calibration: Any
    holdout: Any


def load_run_model(config: RunConfig) -> nn.Module:
    """The dense network in evaluation mode, with its weights.

    Raises:
        ConfigError: the factory can't be imported or doesn't return a module; the weights file isn't one, holds
            anything but tensors, or belongs to another architecture.
        OSError: the weights file can't be read.
    """
    model = _call(config, "model.factory", config.model.factory)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{config.path}: 'model.factory': {config.model.factory!r} returned {_kind(model)}, expected "
                          f"a torch.nn.Module")
    if config.model.weights is not None:
        _fill(model, _read_weights(config.folder / config.model.weights), config.folder / config.model.weights)
    return model.eval()


def load_run_data(config: RunConfig) -> RunData:
    """The data, in whatever form ``prune`` takes it.

    Of the built-in data the selection sees the part ``train`` and the report ``holdout``; ``calibration`` is left out.

    Raises:
        ConfigError: the function can't be imported, or returns a dict with other keys than "calibration" and "holdout".
        DataError, MissingDependencyError: see :func:`mipprune.datasets.load_split`.
    """
    source = config.data.source
    if source in BUILT_IN:
        split = load_split(source)
        return RunData(split.train, split.holdout)
    share = config.data.holdout
    data = _call(config, "data.source", source)
    if not isinstance(data, dict):
        return RunData(data, DEFAULT_HOLDOUT if share is None else share)
    if "calibration" not in data or set(data) - {"calibration", "holdout"}:
        raise ConfigError(f"{config.path}: 'data.source': {source!r} returned a dict with the keys "
                          f"{sorted(map(str, data))}, expected 'calibration' and, if there is one, 'holdout'")
    if "holdout" in data and share is not None:
        raise ConfigError(f"{config.path}: 'data.holdout': {source!r} returns its own held-out part; remove the key")
    return RunData(data["calibration"], data.get("holdout", DEFAULT_HOLDOUT if share is None else share))


def _call(config: RunConfig, key: str, name: str) -> Any:
    """Import ``package.module:function`` with the configuration's folder on the path, and call it."""
    with _on_path(config.folder):
        function = _import(config, key, name)
        try:
            inspect.signature(function).bind()
        except TypeError as error:
            raise ConfigError(f"{config.path}: {key!r}: {name!r} is called without arguments, but {error}") from error
        except ValueError:
            pass  # no signature to be had: a function written in C
        return function()


def _import(config: RunConfig, key: str, name: str) -> Callable[[], Any]:
    where, _, what = name.partition(":")
    try:
        module = importlib.import_module(where)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{config.path}: {key!r}: can't import {where!r} ({error}); looked in {config.folder} and "
                          f"the installed packages") from error
    if not hasattr(module, what):
        close = difflib.get_close_matches(what, [n for n in vars(module) if not n.startswith("_")], n=1)
        hint = f"; did you mean '{where}:{close[0]}'?" if close else ""
        raise ConfigError(f"{config.path}: {key!r}: {where!r} ({module.__file__}) has no {what!r}{hint}")
    function = getattr(module, what)
    if not callable(function):
        raise ConfigError(f"{config.path}: {key!r}: {name!r} is {_kind(function)}, expected a function")
    return function


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            tensors = safetensors.torch.load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text advises to read it without the check
        raise ConfigError(f"{path}: refused: it isn't a plain state dict, and reading anything else could run code; "
                          f"write it with torch.save(model.state_dict(), path) or as .safetensors") from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise ConfigError(f"{path}: not a weights file, or a damaged one ({type(error).__name__})") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        keys = f" with the keys {sorted(map(str, tensors))[:5]}" if isinstance(tensors, dict) else ""
        raise ConfigError(f"{path}: expected a state dict (names and tensors), found a value {_kind(tensors)}{keys}")
    return tensors


def _fill(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Copy ``tensors`` into ``model``; every parameter and buffer must be there, tied ones once."""
    own = model.state_dict(keep_vars=True)
    stored = {id(own[name]) for name in tensors if name in own}
    missing = [name for name, tensor in own.items() if name not in tensors and id(tensor) not in stored]
    unknown = sorted(set(tensors) - set(own))
    wrong = [f"{n} {tuple(tensors[n].shape)} for {tuple(own[n].shape)}" for n in own
             if n in tensors and own[n].shape != tensors[n].shape]
    if missing or unknown or wrong:
        raise ConfigError(f"{path}: weights of another architecture than this {type(model).__name__}: missing "
                          f"{missing[:3]}, unknown {unknown[:3]}, of another shape {wrong[:3]}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"of type {type(value).__name__}"
