"""Repairs against slow references: normal equations, hat matrices, Jacobians, and networks where nothing is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mipprune as mp
from mipprune.game import as_data
from mipprune.graph import UnitGraph, find_layers
from mipprune.graph.layers import Grid
from mipprune.repair import CutNetwork, DenseRun, refit, refit_cut, refit_head
from mipprune.repair.ridge import RIDGES, Accumulator, Moments, cross_validated, solve_ridge
from mipprune.surgery import PrunePlan
from mipprune.testing.cases import NETWORKS

each_network = pytest.mark.parametrize("case", NETWORKS, ids=lambda c: c.name)


def some_mask(graph: UnitGraph, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    kept = rng.random(graph.n_units) < 0.6
    for group in graph.groups:
        kept[group.offset + rng.integers(group.size)] = True
    return kept


def labelled(graph: UnitGraph, x: torch.Tensor) -> Any:
    return as_data((x, torch.zeros(len(x), dtype=torch.int64)), graph)


@each_network
def test_the_cut_network_is_the_one_that_surgery_makes(case: Any) -> None:
    model, x = case.build(), case.inputs(6)
    graph = mp.trace(model, x)
    kept = some_mask(graph)
    small = PrunePlan.from_mask(graph, kept).apply(model)
    cut = CutNetwork(graph, kept)
    with torch.no_grad():
        torch.testing.assert_close(cut.run((x,)), small(x), atol=1e-6, rtol=1e-6)
    for tensor in cut.tensors.values():
        if tensor.is_floating_point():
            tensor.mul_(1.25)
    cut.write(small)
    with torch.no_grad():
        torch.testing.assert_close(cut.run((x,)), small(x), atol=1e-6, rtol=1e-6)


@each_network
def test_layers_are_matrix_products(case: Any) -> None:
    model, x = case.build(), case.inputs(3)
    program = mp.trace(model, x).program
    layers = find_layers(program)
    tensors = program.dense_tensors()
    wanted = {layer.data for layer in layers} | {layer.node.name for layer in layers}
    values = program.values(dict(zip(program.captured.inputs, (x,))), wanted)
    for layer in layers:
        weight = tensors[layer.weight]
        columns = layer.design(values[layer.data], weight)
        groups = len(columns)
        out = weight.reshape(groups, weight.shape[0] // groups, -1) @ columns
        if layer.bias is not None:
            out = out + tensors[layer.bias].reshape(groups, -1, 1)
        torch.testing.assert_close(out, layer.outputs(values[layer.node.name], groups), atol=1e-5, rtol=1e-5)


def test_odd_convolutions_and_grids() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 7)
    for conv in (nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(4, 6, (3, 2), 1, "same", dilation=2), nn.Conv2d(4, 8, 3, groups=2),
                 nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 5, 3, padding="valid")):
        conv.eval()
        layer = find_layers(mp.trace(nn.Sequential(conv, nn.ReLU(), nn.Flatten()), x).program)[0]
        y = conv(x).detach() - conv.bias.detach().reshape(1, -1, 1, 1)
        for grid in (None, Grid(2, (1, 0))):
            columns = layer.design(x, conv.weight.detach(), grid)
            product = conv.weight.detach().reshape(len(columns), -1, columns.shape[1]) @ columns
            want = layer.outputs(layer.on_grid(y, grid), len(columns))
            torch.testing.assert_close(product, want, atol=1e-5, rtol=1e-5)


def test_refit_is_ridge_regression() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(60, 5).double()
    graph = mp.trace(model, x)
    kept = np.array([True] * 5 + [False] * 3)
    small = PrunePlan.from_mask(graph, kept).apply(model)
    assert refit(graph, kept, small, labelled(graph, x), ridge=0.01) == 1
    with torch.no_grad():
        h, t, old = torch.tanh(model[0](x))[:, :5], model(x), model[2].weight[:, :5]
        h0, t0 = h - h.mean(0), t - t.mean(0)
        cov = h0.T @ h0 / 60
        left = cov + 0.01 * cov.diagonal().mean() * torch.eye(5)
        right = h0.T @ t0 / 60 + 0.01 * cov.diagonal().mean() * old.T
        weight = torch.linalg.solve(left, right).T
    torch.testing.assert_close(small[2].weight.detach(), weight)
    torch.testing.assert_close(small[2].bias.detach(), t.mean(0) - weight @ h.mean(0))
    torch.testing.assert_close(small[0].weight.detach(), model[0].weight[:5].detach())


class Twins(nn.Module):
    """A residual network whose channels come in pairs that do the same: half of each can go without loss."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.a, self.na = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b, self.nb = nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.n0(self.stem(x)))
        x = F.relu(self.nb(self.b(F.relu(self.na(self.a(x))))) + x)
        return self.fc(x.mean((2, 3)))


def twins() -> Twins:
    torch.manual_seed(2)
    model = Twins().double().eval()
    with torch.no_grad():
        for norm in (model.n0, model.na, model.nb):
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
                tensor.copy_(torch.rand(len(tensor)) + 0.3)
        for tensor in (*model.stem.parameters(), *model.n0.parameters(), model.n0.running_mean, model.n0.running_var,
                       model.a.weight, *model.na.parameters(), model.na.running_mean, model.na.running_var,
                       model.b.weight, *model.nb.parameters(), model.nb.running_mean, model.nb.running_var):
            tensor[1::2] = tensor[::2]
    return model


@pytest.mark.parametrize("batch_size", [7, 64])
def test_what_others_can_do_as_well_is_not_missed(batch_size: int) -> None:
    model, x = twins(), torch.randn(40, 1, 6, 6).double()
    graph = mp.trace(model, x)
    kept = np.arange(graph.n_units) % 2 == 0
    cut = CutNetwork(graph, kept)
    damaged = (cut.run((x,)) - model(x)).abs().max()
    refit_cut(cut, DenseRun(graph, labelled(graph, x), batch_size), ridge=1e-10)
    assert damaged > 0.1
    torch.testing.assert_close(cut.run((x,)), model(x).detach(), atol=1e-5, rtol=1e-5)


def test_nothing_removed_nothing_changed() -> None:
    model, x = twins(), torch.randn(10, 1, 6, 6).double()
    graph = mp.trace(model, x)
    cut = CutNetwork(graph, np.ones(graph.n_units, dtype=bool))
    before = {k: v.clone() for k, v in cut.tensors.items()}
    assert refit_cut(cut, DenseRun(graph, labelled(graph, x))) == 0
    assert all(torch.equal(before[k], v) for k, v in cut.tensors.items())


def test_a_branch_makes_good_what_its_skip_lost() -> None:
    """At a residual sum the target is what the present skip leaves over, not the branch's own dense output."""
    torch.manual_seed(3)
    model, x = twins(), torch.randn(64, 1, 6, 6).double()
    with torch.no_grad():
        model.stem.weight.add_(0.3 * torch.randn_like(model.stem.weight))  # pairs are no longer equal
    graph = mp.trace(model, x)
    kept = np.ones(graph.n_units, dtype=bool)
    kept[graph.group("stem").offset] = False
    dense = DenseRun(graph, labelled(graph, x))
    total = next(layer.total.name for layer in dense.layers.values() if layer.total is not None)
    index = torch.tensor([1, 2, 3])
    errors = []
    for repaired in (False, True):
        cut = CutNetwork(graph, kept)
        if repaired:
            refit_cut(cut, dense)
        env = dict(dense.inputs[0])
        for node in dense.order:
            env[node.name] = cut.step(node, env, 64)
        errors.append(float((env[total] - dense.targets[0][total][:, index]).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_variances_that_rounding_made_negative_leave_the_old_weights() -> None:
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.normal(size=(1, 5, 5))) * 1e-14
    old = torch.from_numpy(rng.normal(size=(1, 2, 5)))
    xx = noise + noise.mT - 1e-13 * torch.eye(5, dtype=torch.float64)
    xt = torch.from_numpy(rng.normal(size=(1, 5, 2))) * 1e-13
    x, t = torch.ones(1, 5, dtype=torch.float64), torch.tensor([[3.0, -2.0]], dtype=torch.float64)
    moments = Moments(xx, xt, x, t, torch.full((1, 2), 1e-13, dtype=torch.float64), 100)
    ridge = cross_validated(moments, old)
    new, mean, bias = solve_ridge(moments, old, ridge)
    assert float((new - old).abs().max()) < 10 * float(old.abs().max())
    torch.testing.assert_close(mean + bias, t.flatten())


def test_the_ridge_is_the_best_by_generalised_cross_validation() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(30, 12)), rng.normal(size=12)
    t = x @ w + 3 * rng.normal(size=30)
    x, t = x - x.mean(0), t - t.mean()
    cov = x.T @ x / 30
    scale = np.trace(cov) / 12

    def score(ridge: float) -> float:
        hat = x @ np.linalg.solve(cov + ridge * scale * np.eye(12), x.T) / 30
        return float(np.mean((t - hat @ t) ** 2) / (1 - np.trace(hat) / 30) ** 2)

    sums = Accumulator(centred=True)
    sums.add(torch.from_numpy(x.T.copy())[None], torch.from_numpy(t)[None, None], None, True)
    ridge = cross_validated(sums.moments(), torch.zeros(1, 1, 12, dtype=torch.float64))
    best = min(RIDGES, key=score)
    assert RIDGES[0] < best
    assert float(ridge) == pytest.approx(best)


def digits_case(digits_flat: Any) -> tuple[UnitGraph, np.ndarray, DenseRun]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10))
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(3)  # logits of a size that matters
    x, y = digits_flat.train[0][:300], digits_flat.train[1][:300]
    graph = mp.trace(model, x)
    return graph, some_mask(graph, 4), DenseRun(graph, as_data((x, y), graph))


def test_the_head_is_at_its_optimum(digits_flat: Any) -> None:
    graph, kept, dense = digits_case(digits_flat)
    results = []
    for shift in (0.0, 0.5):
        cut = CutNetwork(graph, kept)
        refit_cut(cut, dense)
        cut.tensors[dense.layers[graph.program.captured.output.name].bias or ""].add_(shift)
        assert refit_head(cut, dense, l2=1e-3, max_iter=2000)
        results.append(cut)
    p, q = (torch.log_softmax(c.run(dense.data.inputs) / 4, 1) for c in results)
    torch.testing.assert_close(p, q, atol=5e-3, rtol=5e-3)  # both penalties and the softmax move with the shift
    soft = torch.log_softmax(dense.logits / 4, 1)
    plain = CutNetwork(graph, kept)
    refit_cut(plain, dense)
    r = torch.log_softmax(plain.run(dense.data.inputs) / 4, 1)
    assert (soft.exp() * (soft - p)).sum() < (soft.exp() * (soft - r)).sum()
