"""What is coupled to one unit, against Torch-Pruning's dependency graph, where that is installed."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

import mipprune as mp
from mipprune.testing.architectures import ARCHITECTURES
from mipprune.testing.cases import NETWORKS, NetworkCase

tp = pytest.importorskip("torch_pruning")
pytestmark = pytest.mark.filterwarnings("ignore:Unwrapped parameters")
LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
CASES = {c.name: c for c in (*NETWORKS, *ARCHITECTURES)}
#: Cases where both find the same indices for every unit.
SAME = ("mlp", "cnn", "conv1d", "residual_net", "residual_mlp", "branches", "depthwise", "feed_forward", "tied",
        "lenet", "vgg", "unet", "densenet", "mobilenet", "efficientnet", "convnext", "inception", "dgcnn", "mixer")
#: Cases where more leaves with a unit here, and why.
MORE = {
    "resnext": "whole groups leave, so that `groups` times the width of a group stays the number of channels; "
               "Torch-Pruning's graph removes one channel, its pruners round afterwards",
    "group_norm": "whole groups of a group-norm leave; Torch-Pruning leaves that to rounding, too",
    "transformer": "heads leave whole; in Torch-Pruning a head is declared by the user with num_heads=",
    "manual_attention": "as above",
}
#: Cases where the peer's answer can't be cut out of the network as it stands.
OTHERWISE = {
    "super_resolution": "the two halves of a gated linear unit, and the four channels that a pixel shuffle makes one "
                        "of, have to leave together; Torch-Pruning does not tie them",
    "shufflenet": "with few groups the same channels leave in every group, and the shuffle moves them",
}

Cut = set[tuple[str, str, int]]


def ours(graph: mp.UnitGraph, unit: int) -> Cut:
    """(layer, "in" or "out", index) of everything that leaves with a unit, in linear, convolution and norm layers."""
    modules = dict(graph.model.named_modules())
    cut: Cut = set()
    for (name, dim), units in graph.unit_sites.items():
        path, _, attribute = name.rpartition(".")
        module = modules[path]
        if attribute == "weight" and isinstance(module, LAYERS):
            transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
            side = "in" if dim == (0 if transposed else 1) else "out"
            cut |= {(path, side, int(i)) for i in np.flatnonzero(units == unit)}
    return cut


def theirs(model: nn.Module, graph: object, layer: str, index: int) -> Cut:
    """The same from Torch-Pruning, when output ``index`` of ``layer`` is removed."""
    names = {module: name for name, module in model.named_modules()}
    module = model.get_submodule(layer)
    group = graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, [index])
    cut: Cut = set()
    for dependency, indices in group:
        target = dependency.target.module
        if isinstance(target, LAYERS):
            side = "out" if graph.is_out_channel_pruning_fn(dependency.handler) else "in"
            if isinstance(target, nn.modules.batchnorm._BatchNorm) or getattr(target, "groups", 1) > 1:
                side = "out"
            cut |= {(names[target], side, int(getattr(i, "idx", i))) for i in indices}
    return cut


def differences(case: NetworkCase) -> list[tuple[str, Cut, Cut]]:
    model, x = case.build(), case.inputs(1)
    graph = mp.trace(model, x)
    peer = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    found = []
    for group in graph.groups:
        layer = group.producers[0]
        first = graph.unit_sites[f"{layer}.weight", 1 if isinstance(
            model.get_submodule(layer), nn.modules.conv._ConvTransposeNd) else 0]
        for unit in range(group.offset, group.offset + group.size):
            index = int(np.flatnonzero(first == unit)[0])
            mine, other = ours(graph, unit), theirs(model, peer, layer, index)
            if mine != other:
                found.append((f"{layer}[{index}]", mine - other, other - mine))
    return found


@pytest.mark.parametrize("name", SAME)
def test_the_same_indices_leave_together(name: str) -> None:
    assert differences(CASES[name]) == []


@pytest.mark.parametrize("name", MORE)
def test_more_leaves_together_where_it_has_to(name: str) -> None:
    found = differences(CASES[name])
    assert found
    assert all(mine and not other for _, mine, other in found)


@pytest.mark.parametrize("name", OTHERWISE)
def test_differences_that_are_known(name: str) -> None:
    assert differences(CASES[name])
