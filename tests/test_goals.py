"""Where branches behind a layer are gone, it is fitted to what they left of the dense network's stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.game import LabelledData, as_data
from mipprune.graph import UnitGraph
from mipprune.pruning.oracle import RefitOracle
from mipprune.repair import CutNetwork, DenseRun, Sweep, refit_cut
from mipprune.repair.goals import find_goals
from mipprune.surgery import coarsen


class Branches(nn.Module):
    """Three residual branches of the same features; the later ones could be the first one's business."""

    def __init__(self, relu: bool = False, norms: bool = False) -> None:
        super().__init__()
        self.relu = relu
        self.first = nn.Linear(5, 6)
        self.up = nn.ModuleList(nn.Linear(6, 4) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(4, 6) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(6) if norms else nn.Identity() for _ in range(3))
        self.last = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        for up, down, norm in zip(self.up, self.down, self.norms, strict=True):
            x = x + down(up(norm(x)).relu())
            x = x.relu() if self.relu else x
        return self.last(x)


def case(relu: bool = False, norms: bool = False) -> tuple[Branches, UnitGraph, LabelledData]:
    torch.manual_seed(0)
    model, x = Branches(relu, norms).double().eval(), torch.randn(80, 5).double()
    graph = mp.allow_empty(mp.trace(model, x[:1]), x[:1])
    return model, graph, as_data((x, torch.randint(3, (80,))), graph)


def emptied(graph: UnitGraph, *branches: int) -> np.ndarray:
    kept = np.ones(graph.n_units, dtype=bool)
    for k in branches:
        kept[graph.group(f"up.{k}").units] = False
    return kept


def layers_and_goals(graph: UnitGraph, data: LabelledData, kept: np.ndarray) -> dict[str, int]:
    """Which sum (1 to 3) every layer with a goal of its own is fitted to, by the layer's parameter name."""
    dense = DenseRun(graph, data)
    sums = [n.name for n in graph.program.captured.nodes if str(n.target) == "aten.add.Tensor"]
    tensors = graph.program.captured.tensors
    return {tensors[dense.layers[name].weight]: sums.index(goal.node.name) + 1
            for name, goal in find_goals(CutNetwork(graph, kept), dense).items()}


@pytest.mark.parametrize("relu", [False, True])
def test_goals_are_the_last_sums_that_constants_lead_to(relu: bool) -> None:
    _, graph, data = case(relu)
    assert layers_and_goals(graph, data, emptied(graph)) == {}
    assert layers_and_goals(graph, data, emptied(graph, 0)) == {}  # nothing writes to the stream before it
    assert layers_and_goals(graph, data, emptied(graph, 1)) == {"down.0.weight": 2}
    assert layers_and_goals(graph, data, emptied(graph, 2)) == {"down.1.weight": 3}
    both = layers_and_goals(graph, data, emptied(graph, 1, 2))
    assert both.pop("down.1.weight") == 3  # a constant: what the sum before it lacks in the mean
    assert both == {"down.0.weight": 3}


def test_coarse_branches_have_goals_too() -> None:
    model, _, data = case()
    coarse = coarsen(mp.trace(model, data.inputs[0][:1]), data.inputs[0][:1])
    kept = np.array([True, False, False])
    assert layers_and_goals(coarse, data, kept) == {"down.0.weight": 3}


@pytest.mark.parametrize("relu", [False, True])
def test_what_a_branch_before_can_do_is_not_lost(relu: bool) -> None:
    """The second branch computes from the first one's features: the first takes it over without error."""
    model, graph, data = case(relu)
    with torch.no_grad():
        for k in range(3):  # what the branches write is positive, and none of it is read by them
            model.up[k].weight[:, 3:] = 0
            model.down[k].weight[:3] = 0
            model.down[k].bias[:3] = 0
            model.down[k].weight[3:].abs_()
            model.down[k].bias[3:].abs_()
        model.up[1].load_state_dict(model.up[0].state_dict())
    graph = mp.allow_empty(mp.trace(model, data.inputs[0][:1]), data.inputs[0][:1])
    dense = DenseRun(graph, data)
    cut = CutNetwork(graph, emptied(graph, 1))
    assert (cut.run(data.inputs) - dense.logits).abs().max() > 0.01
    refit_cut(cut, dense, ridge=1e-12)
    torch.testing.assert_close(cut.run(data.inputs), dense.logits, atol=1e-6, rtol=1e-6)


def test_a_stream_that_others_read_on_the_way_keeps_its_own_sum() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.side, self.last = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 3)
            self.up = nn.ModuleList(nn.Linear(6, 4) for _ in range(2))
            self.down = nn.ModuleList(nn.Linear(4, 6) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x).relu()
            between = x + self.down[0](self.up[0](x).relu())
            x = between + self.down[1](self.up[1](between).relu())
            return self.last(x) + self.side(between)

    torch.manual_seed(0)
    x = torch.randn(30, 5)
    graph = mp.allow_empty(mp.trace(Read().eval(), x[:1]), x[:1])
    assert layers_and_goals(graph, as_data((x, torch.zeros(30).long()), graph), emptied(graph, 1)) == {}


def test_what_else_is_added_on_the_way_ends_it() -> None:
    class Wide(nn.Module):
        """Three parallel layers, added up, before a branch."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ModuleList(nn.Linear(5, 6) for _ in range(3))
            self.up, self.down, self.last = nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first[0](x) + self.first[1](x) + self.first[2](x)
            return self.last(x + self.down(self.up(x).relu()))

    torch.manual_seed(0)
    x = torch.randn(30, 5)
    graph = mp.allow_empty(mp.trace(Wide().eval(), x[:1]), x[:1])
    kept = np.ones(graph.n_units, dtype=bool)
    kept[graph.group("up").units] = False
    data = as_data((x, torch.zeros(30).long()), graph)
    assert layers_and_goals(graph, data, kept) == {"first.2.weight": 3}  # the first sum lacks the third layer


def test_a_projection_beside_an_empty_branch_answers_for_the_blocks_behind() -> None:
    class Blocks(nn.Module):
        """A block with a projection on the skip, and one without."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.skip, self.last = nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(6, 3)
            self.up = nn.ModuleList([nn.Linear(4, 3), nn.Linear(6, 3)])
            self.down = nn.ModuleList(nn.Linear(3, 6) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x).relu()
            x = (self.down[0](self.up[0](x).relu()) + self.skip(x)).relu()
            return self.last((self.down[1](self.up[1](x).relu()) + x).relu())

    torch.manual_seed(0)
    x = torch.randn(30, 5)
    graph = mp.allow_empty(mp.trace(Blocks().eval(), x[:1]), x[:1])
    data = as_data((x, torch.zeros(30).long()), graph)
    kept = emptied(graph, 0, 1)
    assert layers_and_goals(graph, data, kept)["skip.weight"] == 2
    dense = DenseRun(graph, data)
    tensors = graph.program.captured.tensors
    (skip,) = (layer for layer in dense.layers.values() if tensors[layer.weight] == "skip.weight")
    assert find_goals(CutNetwork(graph, kept), dense)[skip.node.name].other is None  # the branch beside it is constant


@pytest.mark.parametrize("norms", [False, True])
def test_a_sweep_takes_over_only_what_has_the_same_goals(norms: bool) -> None:
    _, graph, data = case(norms=norms)
    going_on = RefitOracle(graph, data, None, head=True)
    rng = np.random.default_rng(0)
    taken = 0
    for number in range(25):
        kept = emptied(graph, *np.flatnonzero(rng.random(3) < 0.5))
        if number % 3:
            kept[graph.group("up.2").offset] = False
        taken += Sweep(CutNetwork(graph, kept), going_on.fit, before=[old for _, _, old in going_on._best]).start > 0
        fresh = RefitOracle(graph, data, None, head=True)
        assert going_on(kept) == pytest.approx(fresh(kept), rel=1e-9, abs=1e-12)
    assert taken > 0
