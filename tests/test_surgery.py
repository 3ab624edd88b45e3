"""Surgery: mask = surgery, dead units don't matter, keeping all is the identity; plans and files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import mipprune as mp
from mipprune.errors import PlanError, VerificationError
from mipprune.game.data import LabelledData
from mipprune.repair import recalibrate_batch_norm
from mipprune.surgery import PrunePlan, load, load_plan, save, verify
from mipprune.testing.cases import NETWORKS, NetworkCase
from mipprune.testing.masking import kill_units, masked_model

from .test_graph import cases, masks


@cases
def test_mask_equals_surgery(case: NetworkCase) -> None:
    model, x = case.build().double(), case.inputs(12).double()
    graph = mp.trace(model, x)
    for kept in masks(graph.n_units, 8, graph.costs.sizes, seed=3):
        small = PrunePlan.from_mask(graph, kept).apply(model)
        torch.testing.assert_close(small(x), masked_model(graph, kept)(x), rtol=0, atol=1e-11)
        report = verify(graph, kept, small, LabelledData((x,), torch.zeros(len(x), dtype=torch.int64)))
        assert report.max_abs_diff < 1e-11
        assert report.n_samples == 12


@pytest.mark.parametrize("case", [c for c in NETWORKS if c.zero_stays_zero], ids=lambda c: c.name)
def test_removing_dead_units_changes_nothing(case: NetworkCase) -> None:
    x = case.inputs(12).double()
    graph = mp.trace(case.build().double(), x)
    dead = ~masks(graph.n_units, 4, graph.costs.sizes, seed=5) & ~graph.program.averaged
    dead = dead[dead.sum(1).argmax()]
    assert dead.any()
    model = kill_units(graph, dead)
    graph = mp.trace(model, x)
    small = PrunePlan.from_mask(graph, ~dead).apply(model)
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-11)


@cases
def test_keeping_all_is_the_identity(case: NetworkCase) -> None:
    model, x = case.build(), case.inputs()
    graph = mp.trace(model, x)
    plan = PrunePlan.from_mask(graph, np.ones(graph.n_units, dtype=bool))
    same = plan.apply(model)
    assert not plan.cuts
    assert torch.equal(same(x), model(x))
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), model.state_dict().values(), strict=True))


@cases
def test_the_model_is_not_touched(case: NetworkCase) -> None:
    model = case.build()
    before = copy.deepcopy(model.state_dict())
    graph = mp.trace(model, case.inputs())
    small = PrunePlan.from_mask(graph, masks(graph.n_units, 1, graph.costs.sizes)[0]).apply(model)
    with torch.no_grad():
        for p in small.parameters():
            p.add_(1.0)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@cases
def test_plan_and_model_survive_a_file(case: NetworkCase, tmp_path: Path) -> None:
    model, x = case.build(), case.inputs()
    graph = mp.trace(model, x)
    plan = PrunePlan.from_mask(graph, masks(graph.n_units, 1, graph.costs.sizes)[0])
    plan.save(tmp_path / "plan.json")
    assert PrunePlan.load(tmp_path / "plan.json") == plan
    small = plan.apply(model)
    save(tmp_path / "small.safetensors", small, plan)
    fresh = case.build(seed=7)  # other weights, same architecture
    again = load(tmp_path / "small.safetensors", fresh)
    assert torch.equal(again(x), small(x))
    assert load_plan(tmp_path / "small.safetensors") == plan


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    case = next(c for c in NETWORKS if c.name == "tied")
    model = case.build()
    graph = mp.trace(model, case.inputs())
    plan = PrunePlan.from_mask(graph, np.array([True, False, True, True, False]))
    small = plan.apply(model)
    assert small[2].weight is small[4].weight
    assert small[2].weight.shape == (3, 3)
    save(tmp_path / "s.safetensors", small, plan)
    assert load(tmp_path / "s.safetensors", model)[2].weight.shape == (3, 3)


def test_attributes_follow_the_weights() -> None:
    model = NETWORKS[1].build()
    graph = mp.trace(model, NETWORKS[1].inputs())
    kept = np.zeros(graph.n_units, dtype=bool)
    kept[[0, 2, 5, 6, 7, 10, 11]] = True
    small = PrunePlan.from_mask(graph, kept).apply(model)
    assert (small[0].out_channels, small[1].num_features, small[4].in_channels) == (2, 2, 2)
    assert (small[8].in_features, small[8].out_features, small[9].num_features) == (3 * 9, 2, 2)
    assert small[0].weight.requires_grad
    small(NETWORKS[1].inputs()).sum().backward()


def plan_of_mlp() -> tuple[nn.Module, PrunePlan]:
    model = NETWORKS[0].build()
    graph = mp.trace(model, NETWORKS[0].inputs())
    return model, PrunePlan.from_mask(graph, masks(graph.n_units, 1, graph.costs.sizes)[0])


def test_plan_for_another_architecture() -> None:
    model, plan = plan_of_mlp()
    with pytest.raises(PlanError, match="another architecture"):
        plan.apply(NETWORKS[1].build())
    with pytest.raises(PlanError, match="apply the plan to the dense model"):
        plan.apply(plan.apply(model))
    other = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 4))
    with pytest.raises(PlanError, match="another architecture"):
        plan.apply(other)


def test_a_mask_that_empties_a_layer() -> None:
    graph = mp.trace(NETWORKS[0].build(), NETWORKS[0].inputs())
    with pytest.raises(PlanError, match="removes every unit of '0'"):
        PrunePlan.from_mask(graph, np.arange(graph.n_units) >= 9)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"record": "PrunePlan"}', '{"record": "Other"}', "\x00\x01"])
def test_corrupt_plan_file(tmp_path: Path, damage: str) -> None:
    (tmp_path / "plan.json").write_text(damage)
    with pytest.raises(PlanError, match=r"plan\.json"):
        PrunePlan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("indices", [[-1, 2], [2, 1], [0, 99], [0.5]])
def test_plan_with_impossible_indices(tmp_path: Path, indices: list[float]) -> None:
    data = plan_of_mlp()[1].to_dict()
    data["cuts"][0]["kept"] = {"dtype": "float64" if 0.5 in indices else "int64", "shape": [len(indices)],
                               "data": indices}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(PlanError, match="indices"):
        PrunePlan.load(tmp_path / "plan.json")


def test_corrupt_model_file(tmp_path: Path) -> None:
    model, plan = plan_of_mlp()
    path = tmp_path / "small.safetensors"
    save(path, plan.apply(model), plan)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PlanError, match="not a safetensors file"):
        load(path, model)
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(PlanError, match="without a prune plan"):
        load(path, model)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.safetensors", model)


def test_weights_that_do_not_fit_the_plan(tmp_path: Path) -> None:
    model, plan = plan_of_mlp()
    save(tmp_path / "dense.safetensors", model, plan)  # the dense weights under a plan that shrinks
    with pytest.raises(PlanError, match="don't fit"):
        load(tmp_path / "dense.safetensors", model)


@cases
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_files_keep_the_dtype(case: NetworkCase, dtype: torch.dtype, tmp_path: Path) -> None:
    model = case.build()
    graph = mp.trace(model, case.inputs())
    plan = PrunePlan.from_mask(graph, masks(graph.n_units, 1, graph.costs.sizes)[0])
    small = plan.apply(model).to(dtype)
    save(tmp_path / "small.safetensors", small, plan)
    again = load(tmp_path / "small.safetensors", case.build(seed=7))  # float32, as built
    for (name, a), (other, b) in zip(small.state_dict().items(), again.state_dict().items(), strict=True):
        assert (name, a.dtype) == (other, b.dtype)
        assert torch.equal(a, b)


@cases
def test_a_dense_network_without_memory_is_enough(case: NetworkCase, tmp_path: Path) -> None:
    model, x = case.build(), case.inputs()
    model[0].requires_grad_(False) if isinstance(model, nn.Sequential) else None
    graph = mp.trace(model, x)
    plan = PrunePlan.from_mask(graph, masks(graph.n_units, 1, graph.costs.sizes)[0])
    small = plan.apply(model)
    save(tmp_path / "small.safetensors", small, plan)
    again = load(tmp_path / "small.safetensors", copy.deepcopy(model).to("meta"))
    assert torch.equal(again(x), small(x))
    frozen = [[p.requires_grad for p in net.parameters()] for net in (small, again)]
    assert frozen[0] == frozen[1]


class Rotary(nn.Module):
    """A buffer that is computed, not stored, and one that is a view of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)
        self.register_buffer("scale", torch.linspace(1, 2, 5), persistent=False)
        self.register_buffer("first", self.a.weight.detach()[:1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.relu(self.a(x)) * self.scale)


def test_buffers_that_files_do_not_hold(tmp_path: Path) -> None:
    model, x = Rotary().eval(), torch.randn(4, 3)
    graph = mp.trace(model, x)
    plan = PrunePlan.from_mask(graph, np.array([True, False, True, False, True]))
    small = plan.apply(model)
    assert small.scale.tolist() == [1.0, 1.5, 2.0]
    save(tmp_path / "small.safetensors", small, plan)
    assert torch.equal(load(tmp_path / "small.safetensors", Rotary().eval())(x), small(x))
    with pytest.raises(PlanError, match=r"\['scale'\] are computed"):
        load(tmp_path / "small.safetensors", Rotary().to("meta"))


class Remembers(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 1}

    def set_extra_state(self, state: object) -> None:
        pass


def test_state_that_is_not_a_tensor(tmp_path: Path) -> None:
    model = nn.Sequential(Remembers(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    plan = PrunePlan.from_mask(mp.trace(model, torch.randn(1, 3)), np.array([True, True, False, True]))
    with pytest.raises(PlanError, match="_extra_state"):
        save(tmp_path / "small.safetensors", plan.apply(model), plan)
    assert not list(tmp_path.iterdir())


@cases
def test_state_dicts_load_weights_only(case: NetworkCase, tmp_path: Path) -> None:
    model, x = case.build(), case.inputs()
    graph = mp.trace(model, x)
    plan = PrunePlan.from_mask(graph, masks(graph.n_units, 1, graph.costs.sizes)[0])
    small = plan.apply(model)
    torch.save(small.state_dict(), tmp_path / "small.pt")
    again = plan.apply(case.build(seed=7))
    again.load_state_dict(torch.load(tmp_path / "small.pt", weights_only=True))
    assert torch.equal(again(x), small(x))


def test_kept_indices_of_a_parameter() -> None:
    model, plan = plan_of_mlp()
    small = plan.apply(model)
    kept = plan.kept_indices("3.weight")
    assert sorted(kept) == [0, 1]
    assert torch.equal(small[3].weight, model[3].weight[torch.tensor(kept[0])][:, torch.tensor(kept[1])])
    assert plan.kept_indices("5.bias") == plan.kept_indices("nothing") == {}


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plan = plan_of_mlp()
    plan.save(tmp_path / "plan.json")
    before = (tmp_path / "plan.json").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        plan.save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_verification_catches_a_wrong_model() -> None:
    case = NETWORKS[0]
    model, x = case.build(), case.inputs()
    graph = mp.trace(model, x)
    kept = masks(graph.n_units, 1, graph.costs.sizes)[0]
    small = PrunePlan.from_mask(graph, kept).apply(model)
    with torch.no_grad():
        small[0].bias += 0.1
    data = LabelledData((x,), torch.zeros(len(x), dtype=torch.int64))
    with pytest.raises(VerificationError, match="differs"):
        verify(graph, kept, small, data)
    with pytest.raises(VerificationError, match=r"differs|shape|doesn't run"):
        verify(graph, kept, nn.Sequential(nn.Linear(6, 2)), data)
    with torch.no_grad():
        small[0].bias.fill_(float("nan"))
    with pytest.raises(VerificationError):
        verify(graph, kept, small, data)


def test_batch_norm_recalibration() -> None:
    case = NETWORKS[1]
    model, x = case.build(), case.inputs(40)
    data = LabelledData((x,), torch.zeros(40, dtype=torch.int64))
    weights = copy.deepcopy(dict(model.named_parameters()))
    assert recalibrate_batch_norm(model, data) == 3
    first = model[0](x)
    torch.testing.assert_close(model[1].running_mean, first.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, first.var((0, 2, 3)))
    assert not any(m.training for m in model.modules())
    assert model[1].momentum == 0.1
    assert all(torch.equal(weights[k], v) for k, v in model.named_parameters())
    assert recalibrate_batch_norm(NETWORKS[0].build(), data) == 0
