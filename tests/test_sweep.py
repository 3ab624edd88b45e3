"""A sweep that takes over from another one ends where a sweep from the start does, on every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mipprune.errors import BudgetError, TraceError
from mipprune.game import LabelledData
from mipprune.graph import UnitGraph, trace
from mipprune.pruning.oracle import RefitOracle
from mipprune.surgery import coarsen
from mipprune.surgery.verify import first_tensor
from mipprune.testing.architectures import ARCHITECTURES, HUGGING_FACE
from mipprune.testing.cases import NETWORKS, NetworkCase

ALL = [*NETWORKS, *(pytest.param(case, marks=pytest.mark.slow) for case in (*ARCHITECTURES, *HUGGING_FACE))]


def labelled(case: NetworkCase, graph: UnitGraph) -> LabelledData:
    inputs = case.inputs(24)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad():
        y = first_tensor(graph.model(*inputs))
    if y.ndim != 2:
        pytest.skip("the oracle judges logits, one row per sample")
    return LabelledData(inputs, y.argmax(1))


@pytest.mark.parametrize("coarse", [False, True], ids=["units", "branches"])
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_taking_over_changes_nothing(case: NetworkCase, coarse: bool) -> None:
    model = case.build().eval()
    inputs = case.inputs(1)
    graph = trace(model, inputs)
    if coarse:
        try:
            graph = coarsen(graph, inputs)
        except (BudgetError, TraceError) as error:
            pytest.skip(str(error).splitlines()[0])
    data = labelled(case, graph)
    rng = np.random.default_rng(0)
    going_on = RefitOracle(graph, data, None, head=True)
    kept = np.ones(graph.n_units, dtype=bool)
    for number in range(8):  # neighbours, most of which differ late, and now and then something else
        trial = kept.copy()
        trial[rng.choice(graph.n_units, 1 + (number % 4 == 3) * (graph.n_units // 4))] ^= True
        for group in graph.groups:
            trial[group.offset] |= not trial[group.units].any()
        fresh = RefitOracle(graph, data, None, head=True)
        assert going_on(trial) == pytest.approx(fresh(trial), rel=1e-9, abs=1e-12)
        kept = trial


class Projected(nn.Module):
    """Two residual blocks with projections on the skip, which run, and are fitted, before the branch beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.skips = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, n, 3, padding=1), nn.ReLU(), nn.Conv2d(n, 4, 3, padding=1)) for n in (5, 6)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        for skip, branch in zip(self.skips, self.branches, strict=True):
            x = (skip(x) + branch(x)).relu()
        return self.head(x.mean((2, 3)))


def test_a_projection_is_fitted_again_when_the_branch_beside_it_leaves() -> None:
    torch.manual_seed(0)
    model, x = Projected().eval(), torch.randn(60, 1, 6, 6)
    graph = coarsen(trace(model, x[:1]), x[:1])
    assert [group.size for group in graph.groups] == [1, 1]
    data = LabelledData((x,), torch.randint(3, (60,)))
    going_on = RefitOracle(graph, data, None, head=True)
    for mask in ([1, 1], [1, 0], [0, 0], [0, 1], [1, 1], [0, 0]):
        kept = np.array(mask, dtype=bool)
        assert going_on(kept) == pytest.approx(RefitOracle(graph, data, None, head=True)(kept), rel=1e-9)
