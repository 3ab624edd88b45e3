"""The benchmark's walk through Torch-Pruning: one for all budgets, and its selection on our side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mipprune as mp
from mipprune.surgery import PrunePlan

pytest.importorskip("torch_pruning")
pytest.importorskip("sklearn")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import bar
    import peers

    yield bar, peers
    for name in ("bar", "peers"):
        sys.modules.pop(name, None)


def network(bar: Any, name: str) -> torch.nn.Module:
    torch.manual_seed(3)
    return bar.NETWORKS[name]().eval()


@pytest.mark.parametrize("name", ["cnn", "transformer"])
@pytest.mark.parametrize("kind", ["random", "l2"])
def test_one_walk_serves_all_budgets(bench: Any, name: str, kind: str) -> None:
    bar, peers = bench
    model, data = network(bar, name), bar.digits()
    cuts = peers.walk(model, data, (0.5, 0.2, 0.1), kind, "global", 5)
    assert [c.budget for c in cuts] == [0.5, 0.2, 0.1]
    for cut in cuts:
        (own,) = peers.walk(model, data, (cut.budget,), kind, "global", 5)
        assert own.ratio == cut.ratio <= cut.budget
        assert all(torch.equal(a, b) for a, b in zip(own.model.parameters(), cut.model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["cnn", "resnet", "transformer"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_kept_units_cut_out_the_same_network(bench: Any, name: str, scope: str) -> None:
    bar, peers = bench
    model, data = network(bar, name), bar.digits()
    twin, x = peers.split_heads(model), data.test[0][:32]
    torch.testing.assert_close(twin(x), model(x), atol=2e-5, rtol=1e-4)
    graph = mp.trace(twin, x[:1])
    for cut in peers.walk(model, data, (0.5, 0.2), "l2", scope, 0):
        kept = peers.kept_units(graph, cut.kept)
        small = PrunePlan.from_mask(graph, kept).apply(twin)
        for attention in (m for m in small.modules() if isinstance(m, peers.SplitAttention)):
            attention.scale = attention.q[0].out_features**-0.5  # theirs follows the width
        torch.testing.assert_close(small(x), cut.model(x), atol=2e-5, rtol=1e-4)
        assert graph.macs(kept) / graph.macs() == pytest.approx(cut.ratio, abs=1e-12)


def test_part_of_a_unit_is_refused(bench: Any) -> None:
    bar, peers = bench
    model = network(bar, "resnet")
    graph = mp.trace(model, torch.zeros(1, 1, 8, 8))
    kept = {"stem.0": np.arange(1, 16), "l1.0.c2": np.arange(16)}  # tied by the residual addition
    with pytest.raises(ValueError, match="whole units"):
        peers.kept_units(graph, kept)
