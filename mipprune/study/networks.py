"""The networks of a study: how each is made again in any process, and a fingerprint of all that makes it what it is."""

from __future__ import annotations

import abc
import copy
import dataclasses
import hashlib
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..config import FUNCTION, POSITIVE, SEED, DataSection, ModelSection, OutputSection, PruneSection, RunConfig
from ..errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..game import LabelledData
    from ..sources import RunData

__all__ = ["ConfiguredNetwork", "LiveNetwork", "NetworkSection", "StudyNetwork", "TrainSection"]


@dataclasses.dataclass(frozen=True)
class TrainSection:
    """``train = { ... }`` of a network: it's trained once, and its weights are kept in the storage.

    Attributes:
        epochs: passed to the function.
        seed: of the initial weights; passed to the function too.
        function: ``"package.module:function"``, called as ``f(model, inputs, targets, epochs=..., seed=...)`` on the
            calibration data; returns the trained network.
    """

    epochs: Annotated[int, POSITIVE]
    seed: Annotated[int, SEED] = 0
    function: Annotated[str, FUNCTION] = "mipprune.demo:train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSection(ModelSection):
    """``[models.NAME]``: a run's ``[model]``, the data it's pruned on, and its training if it comes untrained."""

    data: DataSection
    train: TrainSection | None = None


class StudyNetwork(abc.ABC):
    """Makes one network and its data; goes to other processes by pickling, and gives the same there."""

    @abc.abstractmethod
    def build(self) -> nn.Module:
        """The network in evaluation mode, before any training; the same in every process."""

    @abc.abstractmethod
    def data(self) -> RunData:
        """Its data, in whatever form ``prune`` takes it."""

    def trained(self, model: nn.Module) -> nn.Module:
        """``model`` with the weights that the study is about."""
        return model

    def recipe(self) -> str:
        """What, beside network and data, decides the weights."""
        return ""

    def fingerprint(self) -> str:
        """SHA-256 over the network's classes with their source, its tensors, its data and its recipe.

        Training functions count by name and arguments, not by their code.
        """
        model, data = self.build(), self.data()
        digest = hashlib.sha256(f"{self.recipe()}\n{model}\n".encode())
        for kind in sorted({type(m) for m in model.modules()}, key=lambda k: f"{k.__module__}.{k.__qualname__}"):
            digest.update(f"{kind.__module__}.{kind.__qualname__}\n".encode())
            if not kind.__module__.startswith("torch."):
                digest.update(_source(kind).encode())
        for name, tensor in model.state_dict().items():
            _update(digest, name, tensor)
        for part in (data.calibration, data.holdout):
            for name, tensor in _tensors(part, model):
                _update(digest, name, tensor)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class ConfiguredNetwork(StudyNetwork):
    """A network by the names of its factory, weights and data; what a study file holds."""

    path: Path
    section: NetworkSection

    def _config(self) -> RunConfig:
        model = ModelSection(self.section.factory, self.section.weights)
        return RunConfig(self.path, model, self.section.data, PruneSection(tolerance=0.0), OutputSection())

    def build(self) -> nn.Module:
        import torch

        from ..sources import load_run_model

        with torch.random.fork_rng():
            torch.manual_seed(self.section.train.seed if self.section.train else 0)
            return load_run_model(self._config())

    def data(self) -> RunData:
        from ..sources import load_run_data

        return load_run_data(self._config())

    def recipe(self) -> str:
        return repr(self.section.train)

    def trained(self, model: nn.Module) -> nn.Module:
        import torch

        from ..game.data import check_samples, read_data

        if self.section.train is None:
            return model
        where, _, what = self.section.train.function.partition(":")
        try:
            function = getattr(importlib.import_module(where), what)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{self.path}: 'train.function': can't import {self.section.train.function!r} "
                              f"({error})") from error
        samples = read_data(self.data().calibration, model)
        check_samples(samples, f"the data of {self.section.data.source!r}")
        with torch.random.fork_rng():
            torch.manual_seed(self.section.train.seed)
            result = function(model.train(), *samples.inputs, samples.targets, epochs=self.section.train.epochs,
                              seed=self.section.train.seed)
        return result.eval()


class LiveNetwork(StudyNetwork):
    """A network and data that are at hand; copied, so that what happens to them later changes nothing."""

    def __init__(self, model: nn.Module, data: Any, holdout: Any = None) -> None:
        from ..game.data import read_data
        from ..sources import DEFAULT_HOLDOUT, RunData

        self._model = copy.deepcopy(model)
        share = DEFAULT_HOLDOUT if holdout is None else holdout
        held = share if isinstance(share, float) else read_data(share, model, "held-out data")
        self._data = RunData(read_data(data, model), held)

    def build(self) -> nn.Module:
        return copy.deepcopy(self._model)

    def data(self) -> RunData:
        return self._data


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""  # typed at a prompt, or written in C


def _tensors(part: Any, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    from ..game.data import read_data

    if isinstance(part, float):  # a share: it decides what is set apart
        import torch

        yield "share", torch.tensor(part, dtype=torch.float64)
        return
    samples: LabelledData = read_data(part, model)
    for i, x in enumerate(samples.inputs):
        yield f"input {i}", x
    yield "targets", samples.targets


def _update(digest: Any, name: str, tensor: torch.Tensor) -> None:
    import torch

    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
