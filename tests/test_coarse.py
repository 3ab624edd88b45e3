"""Coarse units: a removed branch adds exactly zero, surgery agrees with the mask, and all else works as with others."""

from __future__ import annotations

import copy
import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mipprune as mp
from mipprune.bounds.extract import piecewise_linear
from mipprune.errors import BudgetError, ConfigError, PlanError, TraceError, UnknownLayerError
from mipprune.repair import CutNetwork
from mipprune.surgery import PrunePlan, load, save, sync_config, transfer_optimizer
from mipprune.surgery.verify import first_tensor
from mipprune.testing.architectures import ARCHITECTURES, HUGGING_FACE
from mipprune.testing.cases import NETWORKS, NetworkCase
from mipprune.testing.counting import counted_costs

CASES = {case.name: case for case in (*NETWORKS, *ARCHITECTURES, *HUGGING_FACE)}
#: case -> its branches, groups of equal costs; and the groups of which one has to stay
BRANCHES: dict[str, list[tuple[str, ...]]] = {
    "residual_net": [("block1",), ("block2",)],
    "mobilenet": [("3",)],
    "resnext": [("reduce",)],
    "convnext": [("dw",)],
    "mixer": [("tokens",), ("channels",)],
    "transformer": [("attentions.0", "attentions.1"), ("mlps.0", "mlps.1")],
    "torch_encoder": [("encoder.layers.0.self_attn", "encoder.layers.1.self_attn"),
                      ("encoder.layers.0.linear1", "encoder.layers.1.linear1")],
    "bert": [("bert.encoder.layer.0.attention", "bert.encoder.layer.1.attention"),
             ("bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.1.intermediate.dense")],
    "vit": [("vit.layers.0.attention", "vit.layers.1.attention"), ("vit.layers.0.mlp", "vit.layers.1.mlp")],
    "gpt2": [("transformer.h.0.attn", "transformer.h.1.attn"), ("transformer.h.0.mlp", "transformer.h.1.mlp")],
    "llama_gqa": [("model.layers.0.self_attn", "model.layers.1.self_attn"),
                  ("model.layers.0.mlp", "model.layers.1.mlp")],
}
NEEDED = {"transformer": ["attentions.0"], "vit": ["vit.layers.0.attention"]}
QUICK = ("residual_net", "convnext", "transformer", "torch_encoder")


def _cases(*quick: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [
        pytest.param(CASES[name], marks=() if name in quick else pytest.mark.slow) for name in BRANCHES
    ], ids=lambda c: c.name)


cases, costly = _cases(*QUICK), _cases("residual_net")


@functools.cache
def coarse(case: NetworkCase, units: str = "branches") -> tuple[nn.Module, Tensor, mp.UnitGraph]:
    if case in HUGGING_FACE:
        pytest.importorskip("transformers")
    model, x = case.build().double(), case.inputs(4)
    x = x.double() if x.is_floating_point() else x
    return model, x, mp.coarsen(mp.trace(model, x[:1]), x, units)


def every_mask(graph: mp.UnitGraph) -> list[np.ndarray]:
    """All masks that the groups allow."""
    masks = [np.array(bits, dtype=bool) for bits in itertools.product([True, False], repeat=graph.n_units)]
    return [m for m in masks if all(g.fewest <= m[g.units].sum() for g in graph.groups)]


def tolerance(case: NetworkCase) -> float:
    return 1e-6 if case.name == "llama_gqa" else 1e-12  # its norms work in float32 whatever they get


@cases
def test_branches_are_found(case: NetworkCase) -> None:
    graph = coarse(case)[2]
    assert [g.producers for g in graph.groups] == BRANCHES[case.name]
    assert [g.name for g in graph.groups if g.fewest] == NEEDED.get(case.name, [])
    assert all("depend on the input" in g.needed for g in graph.groups if g.fewest)


@cases
def test_mask_equals_surgery_and_costs_are_exact(case: NetworkCase) -> None:
    model, x, graph = coarse(case)
    for kept in every_mask(graph):
        plan = PrunePlan.from_mask(graph, kept)
        small = plan.apply(model)
        plan.check_pruned(model, small)
        with torch.no_grad():
            out = first_tensor(small(x))
            gates = torch.from_numpy(kept).double()
            torch.testing.assert_close(out, graph.program.run([x], gates), rtol=0, atol=tolerance(case))
            torch.testing.assert_close(out, CutNetwork(graph, kept).run([x]), rtol=0, atol=tolerance(case))
        assert (graph.macs(kept), graph.params(kept)) == counted_costs(small, x)
        assert graph.macs(kept) == graph.macs() - sum(
            b.macs for unit, stays in zip(graph.coarse, kept) if not stays for b in unit.branches)


@costly
def test_survives_a_file_and_exports(case: NetworkCase, tmp_path: Path) -> None:
    model, x, graph = coarse(case)
    kept = every_mask(graph)[-1]
    plan = PrunePlan.from_mask(graph, kept)
    small = plan.apply(model)
    save(tmp_path / "small.safetensors", small, plan)
    again = load(tmp_path / "small.safetensors", case.build(seed=3).double())
    assert torch.equal(first_tensor(again(x)), first_tensor(small(x)))
    plan.save(tmp_path / "plan.json")
    assert PrunePlan.load(tmp_path / "plan.json") == plan
    program = torch.export.export(small, (x,))
    assert torch.equal(first_tensor(program.module()(x)), first_tensor(small(x)))
    names = {removal.module for unit in graph.coarse for removal in unit.removals}
    first = sorted(names)[-1]
    assert not any(n.startswith(f"{first}.") for n in small.state_dict()) or kept.any()


def test_a_block_becomes_its_skip() -> None:
    """Not only the output agrees: the block itself computes relu(skip), bit for bit."""
    model, x, graph = coarse(CASES["residual_net"])
    small = PrunePlan.from_mask(graph, np.zeros(2, dtype=bool)).apply(model)
    with torch.no_grad():
        stem = small.stem(x)
        assert torch.equal(small.block1(stem), F.relu(stem))
        assert torch.equal(small.block2(stem), F.relu(model.block2.skip(stem)))
    assert [n for n, _ in small.named_parameters() if n.startswith("block1")] == []
    assert model.block1.conv1.weight is not None  # the dense network isn't touched


@costly
def test_the_rest_can_be_pruned_again_by_fine_units(case: NetworkCase) -> None:
    model, x, graph = coarse(case)
    kept = np.ones(graph.n_units, dtype=bool)
    kept[-1] = False
    small = PrunePlan.from_mask(graph, kept).apply(model)
    fine = mp.trace(small, x[:1])
    assert fine.groups
    rng = np.random.default_rng(0)
    mask = rng.random(fine.n_units) < 0.5
    mask[[g.offset for g in fine.groups]] = True
    smaller = PrunePlan.from_mask(fine, mask).apply(small)
    with torch.no_grad():
        expected = fine.program.run([x], torch.from_numpy(mask).double())
        torch.testing.assert_close(first_tensor(smaller(x)), expected, rtol=0, atol=max(1e-10, tolerance(case)))
    assert (fine.macs(mask), fine.params(mask)) == counted_costs(smaller, x)


@pytest.mark.parametrize("name", ["residual_net", pytest.param("torch_encoder", marks=pytest.mark.slow)])
def test_blocks_leave_together(name: str) -> None:
    model, x, graph = coarse(CASES[name], "blocks")
    if name == "torch_encoder":
        assert [g.producers for g in graph.groups] == [("encoder.layers.0", "encoder.layers.1")]
        assert all(len(unit.branches) == 2 for unit in graph.coarse)
    for kept in every_mask(graph):
        small = PrunePlan.from_mask(graph, kept).apply(model)
        with torch.no_grad():
            expected = graph.program.run([x], torch.from_numpy(kept).double())
            torch.testing.assert_close(first_tensor(small(x)), expected, rtol=0, atol=1e-12)
        assert (graph.macs(kept), graph.params(kept)) == counted_costs(small, x)


def test_games_value_what_surgery_leaves() -> None:
    """Exact Shapley values of two attentions, from losses of really smaller networks."""
    model, x, graph = coarse(CASES["torch_encoder"])
    y = torch.arange(len(x)) % 4
    group = graph.group("encoder.layers.1.self_attn")
    value = {}
    for bits in itertools.product([False, True], repeat=2):
        kept = np.ones(graph.n_units, dtype=bool)
        kept[group.units] = bits
        with torch.no_grad():
            value[bits] = -float(F.cross_entropy(PrunePlan.from_mask(graph, kept).apply(model)(x), y))
    one, two, none, both = value[True, False], value[False, True], value[False, False], value[True, True]
    expected = [(one - none + both - two) / 2, (two - none + both - one) / 2]
    game = mp.LayerGame(graph, group.name, (x, y))
    np.testing.assert_allclose(mp.shapley(game, method="exact").values, expected, atol=1e-10)
    sampled = mp.shapley(game, n_evals=200, seed=0)
    np.testing.assert_allclose(sampled.values, expected, atol=1e-6 + 5 * float(sampled.stderr.max()))


def test_gates_are_differentiated() -> None:
    """The gate gradient is the derivative of the loss of a network whose branches are scaled."""
    model, x, graph = coarse(CASES["residual_net"])
    y = torch.arange(len(x)) % 4
    expansion = mp.expand_gates(graph, mp.game.as_data((x, y), graph))
    for unit in range(graph.n_units):
        losses = []
        for gate in (1 - 1e-5, 1 + 1e-5):
            gates = torch.ones(graph.n_units, dtype=torch.float64)
            gates[unit] = gate
            scaled = case_with_scaled_branch(model, unit, gate)
            with torch.no_grad():
                losses.append(float(F.cross_entropy(scaled(x), y)))
        assert expansion.gradient[unit] == pytest.approx(-(losses[1] - losses[0]) / 2e-5, rel=1e-5)
        assert expansion.curvature[unit].shape == (1, 1)
        assert expansion.curvature[unit][0, 0] > 0


def case_with_scaled_branch(model: nn.Module, unit: int, gate: float) -> nn.Module:
    scaled = copy.deepcopy(model)
    norm = scaled.get_submodule(f"block{unit + 1}.bn2")
    with torch.no_grad():
        norm.weight.mul_(gate)
        norm.bias.mul_(gate)
    return scaled


def trained_data(name: str, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = CASES[name].build(), CASES[name].inputs(n)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


@pytest.mark.parametrize(
    "surrogate", [None, *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("quadratic", "additive"))]
)
def test_prune_removes_branches(surrogate: str | None, tmp_path: Path) -> None:
    model, x, y = trained_data("residual_net", 60)
    result = mp.prune(model, (x, y), budget=mp.Macs(0.8), units="branches", surrogate=surrogate, stages=1,
                      progress=False)
    assert result.report.ratio("macs") <= 0.8
    assert sum(layer.kept for layer in result.report.layers) == 1
    assert result.plan.removals
    result.save(tmp_path / "r.safetensors")
    again = mp.load(tmp_path / "r.safetensors", CASES["residual_net"].build(seed=1))
    assert torch.equal(again(x), result.model(x))


def test_repairs_make_good_what_a_branch_did() -> None:
    """A refit lowers the distance to the dense outputs on the data it is fitted to."""
    model, x, graph = coarse(CASES["residual_net"])
    x = torch.cat([x, CASES["residual_net"].inputs(100, seed=1).double()])
    kept = np.array([False, True])
    small = PrunePlan.from_mask(graph, kept).apply(model)
    with torch.no_grad():
        dense, before = model(x), float((small(x) - model(x)).square().mean())
        data = mp.game.LabelledData((x,), torch.zeros(len(x), dtype=torch.int64))
        assert mp.repair.refit(graph, kept, small, data) > 0
        assert float((small(x) - dense).square().mean()) < 0.5 * before


def test_layers_and_pins_are_named_by_branch_or_module() -> None:
    graph = coarse(CASES["transformer"])[2]
    assert graph.units_of("attentions.1").tolist() == [False, True, False, False]
    assert graph.units_of(["mlps.0.2", "attentions.0"]).tolist() == [True, False, True, False]
    assert graph.units_of("mlps").tolist() == [False, False, True, True]
    with pytest.raises(UnknownLayerError):
        graph.units_of("head")


def test_optimizer_state_of_removed_parameters_leaves() -> None:
    model, x, graph = coarse(CASES["residual_net"])
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    F.cross_entropy(model(x), torch.arange(len(x)) % 4).backward()
    optimizer.step()
    plan = PrunePlan.from_mask(graph, np.array([False, True]))
    small = plan.apply(model)
    new = transfer_optimizer(plan, model, small, optimizer)
    assert [id(p) for p in new.param_groups[0]["params"]] == [id(p) for p in small.parameters()]
    own = dict(model.named_parameters())
    for name, parameter in small.named_parameters():
        assert torch.equal(new.state[parameter]["exp_avg"], optimizer.state[own[name]]["exp_avg"])


class Odd(nn.Module):
    """Three residual sums that can't lose a branch, and one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.a, self.b, self.c = (nn.Linear(5, 5) for _ in range(4))
        self.weight, self.out = nn.Parameter(torch.randn(5, 5)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x + torch.sigmoid(self.a(x))  # 0 becomes 1/2
        x = x + F.linear(x, self.weight)  # in plain code
        x = x + self.b(x)
        x = x + F.relu(self.b(x))  # a layer of two branches
        return self.out(x + self.c(x))


def test_what_can_not_leave_says_why() -> None:
    model = Odd().eval()
    graph = mp.coarsen(mp.trace(model, torch.randn(1, 5)), torch.randn(1, 5))
    assert [unit.name for unit in graph.coarse] == ["c"]
    reasons = [p.reason for p in graph.pinned]
    assert len(reasons) == 4
    assert sum("isn't zero" in r and "sigmoid" in r for r in reasons) == 1
    assert sum("in plain code, or in a module that others share" in r for r in reasons) == 3
    assert "c: 1 units" in str(graph)


def test_networks_without_branches_are_refused() -> None:
    case = CASES["mlp"]
    graph = mp.trace(case.build(), case.inputs(1))
    with pytest.raises(TraceError, match="no sum of a value and something computed from it"):
        mp.coarsen(graph, case.inputs(1))
    case = CASES["residual_mlp"]
    with pytest.raises(TraceError, match=r"(?s)no residual branch.*sigmoid"):
        mp.coarsen(mp.trace(case.build(), case.inputs(1)), case.inputs(1))


class Block(nn.Module):
    """An attention written out between linear layers, and a feed-forward that may end in a sigmoid."""

    def __init__(self, bounded: bool) -> None:
        super().__init__()
        self.bounded = bounded
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 3)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + (torch.sigmoid(self.mlp(x)) if self.bounded else self.mlp(x))


def test_work_in_plain_code_stays_and_is_counted() -> None:
    """The projections leave, the attention goes on with zeros; masks and costs say exactly that."""
    model, x = nn.Sequential(Block(False), Block(False), nn.Linear(6, 2)).double().eval(), torch.randn(3, 5, 6).double()
    graph = mp.coarsen(mp.trace(model, x), x)
    assert [unit.name for unit in graph.coarse] == ["0.q", "1.q", "0.mlp", "1.mlp"]
    for kept in every_mask(graph):
        small = PrunePlan.from_mask(graph, kept).apply(model)
        with torch.no_grad():
            expected = graph.program.run([x], torch.from_numpy(kept).double())
            torch.testing.assert_close(small(x), expected, rtol=0, atol=1e-12)
        assert (graph.macs(kept), graph.params(kept)) == counted_costs(small, x)
    attention = 2 * 2 * 5 * 5 * 3  # scores and sums of two heads
    assert graph.macs(np.zeros(4, dtype=bool)) == 2 * attention + 5 * 6 * 2


def test_a_block_leaves_with_all_its_branches_or_not_at_all() -> None:
    model, x = nn.Sequential(Block(True), Block(False), nn.Linear(6, 2)).eval(), torch.randn(2, 5, 6)
    graph = mp.coarsen(mp.trace(model, x), x, "blocks")
    assert [unit.name for unit in graph.coarse] == ["1"]
    assert ("0", "another branch of the block can't leave") in [(p.module, p.reason) for p in graph.pinned]


class Tied(nn.Module):
    """A branch whose weight the output layer shares."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.mix, self.out = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.out.weight = self.mix.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.out(x + self.mix(x))


def test_shared_parameters_are_refused() -> None:
    model = Tied().eval()
    with pytest.raises(TraceError, match=r"read outside of the branch|share parameters"):
        mp.coarsen(mp.trace(model, torch.randn(1, 4)), torch.randn(1, 4))


def test_refusals() -> None:
    model, x, y = trained_data("residual_net", 20)
    graph = mp.trace(model, x[:1])
    with pytest.raises(ConfigError, match="units: expected"):
        mp.coarsen(graph, x, "layers")
    branches = mp.coarsen(graph, x)
    with pytest.raises(ConfigError, match="coarse already"):
        mp.coarsen(branches, x)
    options = {"budget": mp.Macs(0.5), "units": "branches", "progress": False}
    with pytest.raises(ConfigError, match="surrogate='refit'"):
        mp.prune(model, (x, y), **options, surrogate="refit")
    with pytest.raises(ConfigError, match="leave as a whole"):
        mp.prune(model, (x, y), **options, multiple=8)
    with pytest.raises(ConfigError, match="units: expected 'fine'"):
        mp.prune(model, (x, y), **(options | {"units": "layers"}))
    with pytest.raises(BudgetError, match="latency tables"):
        mp.prune(model, (x, y), **(options | {"budget": mp.Latency(0.5)}))
    data = mp.game.as_data((x, y), graph)
    for fine in (lambda: mp.allow_empty(branches, x), lambda: mp.measure_latency(branches, x),
                 lambda: mp.curvature.refit_curves(branches, data), lambda: piecewise_linear(branches)):
        with pytest.raises(ConfigError, match="speaks of neurons, channels and heads"):
            fine()
    plan = PrunePlan.from_mask(branches, np.array([False, True]))
    other = CASES["transformer"].build()
    with pytest.raises(PlanError, match="removes 'block1"):
        plan.apply(other)
    with pytest.raises(PlanError, match="leaves with this plan"):
        plan.check_pruned(model, model)


@pytest.mark.slow
def test_no_configuration_says_that_a_branch_left() -> None:
    model, x, graph = coarse(CASES["bert"])
    plan = PrunePlan.from_mask(graph, np.array([False, True, True, True]))
    with pytest.raises(PlanError, match="left as a whole"):
        sync_config(plan.apply(model), plan, x)
