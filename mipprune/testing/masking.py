"""Slow, transparent references for masking that touch weights and run the model's own forward."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..graph import UnitGraph

__all__ = ["KeptLayerNorm", "kill_units", "masked_model"]


class KeptLayerNorm(nn.Module):
    """A layer-norm over some entries of the last dimension; the others come out as 0."""

    def __init__(self, norm: nn.LayerNorm, kept: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (None if p is None else p[self.kept] for p in (self.norm.weight, self.norm.bias))
        out = torch.zeros_like(x)
        out[..., self.kept] = F.layer_norm(x[..., self.kept], (int(self.kept.sum()),), weight, bias, self.norm.eps)
        return out


def masked_model(graph: UnitGraph, kept: np.ndarray) -> nn.Module:
    """A copy of the dense network that ignores the units not ``kept`` (bool, (n_units,)): their input columns are zero
    in every reader, and layer-norms leave them out.

    Independent of :class:`~mipprune.graph.Program`.  Knows linear, convolution and layer-norm modules as readers.
    """
    model = copy.deepcopy(graph.model)
    modules = dict(model.named_modules())
    removed = ~np.asarray(kept, dtype=bool)
    with torch.no_grad():
        for (name, dim), units in graph.unit_sites.items():
            path, _, attribute = name.rpartition(".")
            module = modules[path]
            off = torch.from_numpy((units >= 0) & removed[np.maximum(units, 0)])
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and dim == 1:
                module.weight[:, off] = 0.0
            elif isinstance(module, nn.LayerNorm) and attribute == "weight":
                parent, _, child = path.rpartition(".")
                setattr(modules[parent], child, KeptLayerNorm(module, ~off))
    return model


def kill_units(graph: UnitGraph, dead: np.ndarray) -> nn.Module:
    """A copy of the network in which the units of the mask ``dead`` are zero by their own making.

    What produces them is zeroed (weights, biases, batch-norm scale and shift), never what reads them.
    """
    model = copy.deepcopy(graph.model)
    modules, tensors = dict(model.named_modules()), dict(model.named_parameters())
    with torch.no_grad():
        for (name, dim), units in graph.unit_sites.items():
            if name in tensors and (tensors[name].ndim == 1 or dim != _input_dim(modules[name.rpartition(".")[0]])):
                off = torch.from_numpy((units >= 0) & dead[np.maximum(units, 0)])
                tensors[name].movedim(dim, 0)[off] = 0.0
    return model


def _input_dim(module: nn.Module) -> int | None:
    """The dimension of a module's weight that its inputs lie along."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd) or type(module).__name__ == "Conv1D":  # GPT-2's linear
        return 0
    return 1 if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) else None
