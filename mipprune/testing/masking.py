"""Slow, transparent reference for masking: the whole network, with the columns that read a removed unit set to zero."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from ..graph import UnitGraph

__all__ = ["kill_units", "masked_model"]


def masked_model(graph: UnitGraph, kept: np.ndarray) -> nn.Module:
    """A copy of the dense network that ignores the removed units: their input columns are zero in every reader.

    Independent of :class:`~mipprune.graph.Program`: it touches weights and runs the model's own forward.
    """
    model = copy.deepcopy(graph.model)
    modules = dict(model.named_modules())
    removed = ~np.asarray(kept, dtype=bool)
    with torch.no_grad():
        for (name, dim), units in graph.unit_sites.items():
            module = modules[name.rpartition(".")[0]]
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and dim == 1:
                off = torch.from_numpy((units >= 0) & removed[np.maximum(units, 0)])
                module.weight[:, off] = 0.0
    return model


def kill_units(graph: UnitGraph, dead: np.ndarray) -> nn.Module:
    """A copy of the network in which the units of the mask ``dead`` are zero by their own making.

    What produces them is zeroed (weights, biases, batch-norm scale and shift), never what reads them.
    """
    model = copy.deepcopy(graph.model)
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for (name, dim), units in graph.unit_sites.items():
            if name in tensors and dim == 0:
                tensors[name][torch.from_numpy((units >= 0) & dead[np.maximum(units, 0)])] = 0.0
    return model
