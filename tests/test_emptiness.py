"""Groups that may lose every unit: which ones, and that the emptied network is the masked one, smaller and usable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mipprune as mp
from mipprune.errors import PlanError
from mipprune.game import LabelledData
from mipprune.repair import CutNetwork, recalibrate_batch_norm, refit
from mipprune.surgery import PrunePlan, empty, load, save
from mipprune.surgery.trial import Trial
from mipprune.surgery.verify import first_tensor
from mipprune.testing.architectures import ARCHITECTURES
from mipprune.testing.cases import NETWORKS, NetworkCase
from mipprune.testing.counting import counted_costs

CASES = {case.name: case for case in (*NETWORKS, *ARCHITECTURES)}
#: case -> the groups that may be emptied
EMPTIABLE = {
    "mlp": [], "residual_net": ["block1.conv1", "block2.conv1"], "feed_forward": ["up"], "branches": ["a"],
    "efficientnet": ["3.expand", "3.se.reduce", "4.se.reduce"],
    "resnext": ["reduce"],
    "transformer": ["attentions.0.qkv", "mlps.0.0", "mlps.1.0"],  # one attention has to bring the class token something
    "torch_encoder": ["encoder.layers.0.self_attn", "encoder.layers.0.linear1", "encoder.layers.1.self_attn",
                      "encoder.layers.1.linear1"],
}
cases = pytest.mark.parametrize("case", [CASES[name] for name in EMPTIABLE], ids=lambda c: c.name)


def emptiable(case: NetworkCase) -> tuple[nn.Module, torch.Tensor, mp.UnitGraph]:
    model, x = case.build().double(), case.inputs(4)
    x = x.double() if x.is_floating_point() else x
    return model, x, mp.allow_empty(mp.trace(model, x[:1]), x)


def emptied(graph: mp.UnitGraph, seed: int) -> np.ndarray:
    """Every group that may be emptied is, with seed 0; else about half of them, and half of the other units."""
    rng = np.random.default_rng(seed)
    kept = rng.random(graph.n_units) < (2.0 if seed == 0 else 0.5)
    for group in graph.groups:
        if group.fewest == 0 and (seed == 0 or rng.random() < 0.5):
            kept[group.units] = False
        elif not kept[group.units].any():
            kept[group.offset] = True
    return kept


@pytest.mark.parametrize("small", [0, empty.SMALL])  # run without numbers, and as it is
@cases
def test_harmless_groups(case: NetworkCase, small: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(empty, "SMALL", small)
    graph = emptiable(case)[2]
    assert [g.name for g in graph.groups if g.fewest == 0] == EMPTIABLE[case.name]
    assert all(g.needed for g in graph.groups if g.fewest)


@cases
def test_mask_equals_surgery(case: NetworkCase, tmp_path: Path) -> None:
    model, x, graph = emptiable(case)
    for seed in range(3):
        kept = emptied(graph, seed)
        plan = PrunePlan.from_mask(graph, kept)
        small = plan.apply(model)
        with torch.no_grad():
            out = first_tensor(small(x))
            torch.testing.assert_close(out, graph.program.run([x], torch.from_numpy(kept).double()), rtol=0, atol=1e-10)
            torch.testing.assert_close(CutNetwork(graph, kept).run([x]), out, rtol=0, atol=1e-10)
        assert (graph.macs(kept), graph.params(kept)) == counted_costs(small, x)
        assert not torch.allclose(out[0], out[1])  # it still sees its input
        save(tmp_path / "small.safetensors", small, plan)
        assert torch.equal(first_tensor(load(tmp_path / "small.safetensors", case.build(seed=3).double())(x)), out)
        plan.save(tmp_path / "plan.json")
        assert PrunePlan.load(tmp_path / "plan.json") == plan


@cases
def test_export_drops_what_is_empty(case: NetworkCase) -> None:
    _, x, graph = emptiable(case)
    small = PrunePlan.from_mask(graph, emptied(graph, 0)).apply(graph.model)
    program = torch.export.export(small, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    torch.testing.assert_close(program.module()(x[:3]), small(x[:3]), rtol=0, atol=1e-10)


@cases
def test_trains_on(case: NetworkCase) -> None:
    model, x, graph = emptiable(case)
    small = PrunePlan.from_mask(graph, emptied(graph, 0)).apply(model)
    small(x).square().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in small.parameters())


def test_without_asking_a_group_keeps_one() -> None:
    model, x = CASES["residual_net"].build(), CASES["residual_net"].inputs(2)
    graph = mp.trace(model, x)
    kept = np.ones(graph.n_units, dtype=bool)
    kept[graph.group("block1.conv1").units] = False
    with pytest.raises(PlanError, match="allow_empty"):
        PrunePlan.from_mask(graph, kept)


def test_repairs_give_an_emptied_branch_its_mean() -> None:
    """A branch that is emptied and refitted adds the mean of what it added in the dense network."""
    model, x, graph = emptiable(CASES["feed_forward"])
    x = torch.cat([x, CASES["feed_forward"].inputs(60, seed=1).double()])
    kept = np.ones(graph.n_units, dtype=bool)
    kept[graph.group("up").units] = False
    small = PrunePlan.from_mask(graph, kept).apply(model)
    refit(graph, kept, small, LabelledData((x,), torch.zeros(len(x), dtype=torch.int64)))
    with torch.no_grad():
        h = model.embed(x)
        expected = model.down(F.gelu(model.up(model.norm(h)))).mean((0, 1))
    torch.testing.assert_close(small.down.bias.detach(), expected, rtol=0, atol=1e-6)


def test_batch_norm_of_an_emptied_branch() -> None:
    model, x, graph = emptiable(CASES["residual_net"])
    kept = emptied(graph, 0)
    small = PrunePlan.from_mask(graph, kept).apply(model)
    data = LabelledData((x,), torch.zeros(len(x), dtype=torch.int64))
    recalibrate_batch_norm(small, data)
    assert bool(small(x).isfinite().all())
    assert refit(graph, kept, small, data) > 0
    assert bool(small(x).isfinite().all())


class Hidden(nn.Module):
    """A residual branch whose code doesn't run at width 0."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.fc((x + self.down(F.max_pool2d(self.up(x), 3, 1, 1))).mean((2, 3)))


def test_what_does_not_run_at_width_0_says_so() -> None:
    model = Hidden().eval()
    graph = mp.allow_empty(mp.trace(model, torch.randn(1, 1, 5, 5)), torch.randn(1, 1, 5, 5))
    group = graph.group("up")
    assert group.fewest == 1
    assert "doesn't run without it" in group.needed
    assert "doesn't run without it" in str(graph)


def test_code_is_tried_without_arithmetic_and_all_groups_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One network is cut for real, whatever the number of groups; what doesn't run at width 0 is out before that."""

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.blocks, self.fc = nn.Conv2d(1, 4, 1), nn.ModuleList(), nn.Linear(4, 2)
            for _ in range(3):
                self.blocks.append(nn.ModuleList([nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1)]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for i, (up, down) in enumerate(self.blocks):
                y = up(x)
                x = x + down(F.max_pool2d(y, 3, 1, 1) if i == 1 else y)
            return self.fc(x.mean((2, 3)))

    model, x = Blocks().eval(), torch.randn(1, 1, 5, 5)
    graph = mp.trace(model, x)
    fails = Trial.fails
    tried: list[np.ndarray] = []
    monkeypatch.setattr(Trial, "fails", lambda self, kept: tried.append(kept) or fails(self, kept))
    graph = mp.allow_empty(graph, x)
    assert [g.name for g in graph.groups if g.fewest == 0] == ["blocks.0.0", "blocks.2.0"]
    assert "doesn't run without it" in graph.group("blocks.1.0").needed
    assert len(tried) == 1


def test_prune_empties_what_a_budget_leaves_no_room_for() -> None:
    torch.manual_seed(0)
    model = CASES["residual_net"].build()
    x = CASES["residual_net"].inputs(80)
    with torch.no_grad():
        y = model(x).argmax(1)
    options = {"repair": ("bn", "refit", "head"), "progress": False, "holdout": 0.2}
    graph = mp.allow_empty(mp.trace(model, x), x)
    counts = np.array([g.fewest for g in graph.groups])
    smallest = graph.costs.cost("macs", counts) / graph.macs()
    with pytest.raises(mp.errors.InfeasibleError):
        mp.prune(model, (x, y), budget=mp.Macs(smallest), allow_empty=False, **options)
    assert smallest <= 0.1  # where it is the default
    result = mp.prune(model, (x, y), budget=mp.Macs(smallest), **options)
    assert result.report.ratio("macs") <= smallest
    assert [layer.kept for layer in result.report.layers] == counts.tolist()
