"""The metric over positions: against Jacobians sample by sample, and what a refit in it minimises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mipprune as mp
from mipprune.curvature.output_metric import position_metrics
from mipprune.curvature.stream_basis import stream_basis
from mipprune.game import LabelledData, as_data
from mipprune.graph import UnitGraph, find_layers, find_streams
from mipprune.repair import CutNetwork, DenseRun, refit_cut
from mipprune.repair.ridge import Accumulator


class Tokens(nn.Module):
    """Linear layers on five tokens, weighted and averaged at the end; a convolution in front."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.down, self.fc = nn.Conv2d(1, 3, 2), nn.Linear(12, 7), nn.Linear(7, 6), nn.Linear(6, 3)
        self.weight = nn.Parameter(torch.tensor([3.0, 1.0, 0.0, -1.0, 0.5])[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.conv(x))  # (N, 3, 4, 5)
        y = torch.tanh(self.up(y.permute(0, 3, 1, 2).flatten(2)))
        return self.fc((torch.tanh(self.down(y)) * self.weight).mean(1))


def tokens() -> tuple[Tokens, UnitGraph, LabelledData]:
    torch.manual_seed(0)
    model, x = Tokens().double().eval(), torch.randn(40, 1, 5, 6).double()
    graph = mp.trace(model, x[:2])
    return model, graph, as_data((x, torch.zeros(40, dtype=torch.int64)), graph)


def channel_dims(graph: UnitGraph) -> dict[str, int]:
    return {layer.node.name: layer.channel_dim for layer in find_layers(graph.program)}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_sample_by_sample(temperature: float) -> None:
    model, graph, data = tokens()
    found = position_metrics(graph, data, channel_dims(graph), temperature=temperature, batch_size=7)
    layers = [layer.node.name for layer in find_layers(graph.program)]
    assert set(found) == set(layers[:3])  # the last one has a single position
    want = {name: torch.zeros_like(g) for name, g in found.items()}
    for x in data.inputs[0]:
        z = {}
        h = z["conv"] = model.conv(x[None])
        h = z["up"] = model.up(torch.tanh(h).permute(0, 3, 1, 2).flatten(2))
        h = z["down"] = model.down(torch.tanh(h))
        logits = model.fc((torch.tanh(h) * model.weight).mean(1))[0]
        p = torch.softmax(logits.detach() / temperature, 0)
        b = torch.diag(p) - torch.outer(p, p)
        for name, value in zip(layers, z.values(), strict=False):
            rows = torch.stack([torch.autograd.grad(c, value, retain_graph=True)[0][0] for c in logits])
            rows = rows.flatten(2).mT if name == layers[0] else rows  # (C, P, m)
            want[name] += torch.einsum("cpm,cd,dqm->pq", rows, b, rows)
    for name, metric in want.items():
        torch.testing.assert_close(found[name], metric * len(metric) / metric.trace())
    sampled = position_metrics(graph, data, channel_dims(graph), temperature=temperature, probes=300)
    for name in want:
        assert (sampled[name] - found[name]).norm() < 0.15 * found[name].norm()
    unread = found[layers[2]]
    assert unread[2].abs().max() == 0  # the token of weight 0 counts nothing
    assert unread[0, 3] < 0  # errors of one sign at tokens of opposite weights cancel


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), centred=st.booleans(), fastest=st.booleans(), metric=st.booleans(),
       cut=st.integers(1, 6))
def test_moments_are_those_of_all_columns_at_once(
    seed: int, centred: bool, fastest: bool, metric: bool, cut: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    g, d, m, p, n = 2, 3, 2, 4, 7
    x = torch.randn(g, d, p, n, generator=rng, dtype=torch.float64) + 50
    t = torch.randn(g, m, p, n, generator=rng, dtype=torch.float64) - 20
    half = torch.randn(p, p, generator=rng, dtype=torch.float64)
    root = half @ half.T if metric else None
    sums = Accumulator(centred)
    for part in (slice(0, cut), slice(cut, n)):
        columns = [v[..., part].transpose(2, 3).flatten(2) if fastest else v[..., part].flatten(2) for v in (x, t)]
        sums.add(*columns, root, fastest)
    found = sums.moments()
    weight = torch.eye(p).double() if root is None else root @ root
    mean_x, mean_t = x.mean((2, 3)), t.mean((2, 3))
    x0, t0 = (x - mean_x[..., None, None], t - mean_t[..., None, None]) if centred else (x, t)
    torch.testing.assert_close(found.x, mean_x)
    torch.testing.assert_close(found.t, mean_t)
    torch.testing.assert_close(found.xx, torch.einsum("gapn,pq,gbqn->gab", x0, weight, x0) / (p * n))
    torch.testing.assert_close(found.xt, torch.einsum("gapn,pq,gbqn->gab", x0, weight, t0) / (p * n))
    torch.testing.assert_close(found.tt, torch.einsum("gapn,pq,gaqn->ga", t0, weight, t0) / (p * n))
    assert found.rows == p * n


def test_nearly_constant_inputs_keep_their_variance_in_single_precision() -> None:
    torch.manual_seed(0)
    x = 1000 + 1e-2 * torch.randn(1, 3, 400)
    t = torch.randn(1, 1, 400)
    sums = Accumulator(True)
    sums.add(x[..., :150], t[..., :150], None, True)
    sums.add(x[..., 150:], t[..., 150:], None, True)
    want = torch.cov(x[0].double(), correction=0)
    torch.testing.assert_close(sums.moments().xx[0], want, rtol=1e-3, atol=1e-8)


def test_a_refit_has_least_error_in_the_metric() -> None:
    """No small change of the refitted weights lowers tr(E G E'), which here is not the plain squared error."""
    _, graph, data = tokens()
    kept = np.ones(graph.n_units, dtype=bool)
    kept[graph.group("up").offset : graph.group("up").offset + 3] = False
    dense = DenseRun(graph, data)
    cut = CutNetwork(graph, kept)
    refit_cut(cut, dense, ridge=1e-9)
    layer = next(x for x in dense.layers.values() if graph.program.captured.tensors[x.weight] == "down.weight")
    root = dense.position_root(layer.node, layer, None)
    env = dict(dense.inputs[0])
    for node in dense.order[: dense.place[layer.node.name]]:
        env[node.name] = cut.step(node, env, 40)
    weight, bias = cut.tensors[layer.weight], cut.tensors[layer.bias]
    x, target = env[layer.data], dense.targets[0][layer.node.name]

    def error(change: torch.Tensor, metric: bool) -> float:
        e = target - x @ (weight + change).T - bias
        e = e - e.mean((0, 1))  # the bias makes the mean exact whatever the weights are
        return float(((root @ e) if metric else e).square().sum())

    best = error(torch.zeros_like(weight), True)
    step = 1e-4 * torch.randn(20, *weight.shape, generator=torch.Generator().manual_seed(0)).double()
    assert all(error(s, True) > best and error(-s, True) > best for s in step)
    plain = error(torch.zeros_like(weight), False)
    assert any(error(s, False) < plain or error(-s, False) < plain for s in step)
    torch.testing.assert_close((target - x @ weight.T - bias).mean((0, 1)), torch.zeros(6).double())


def test_the_metric_of_a_grid_is_that_of_its_positions() -> None:
    _, graph, data = tokens()
    dense = DenseRun(graph, data)
    layer = next(iter(dense.layers.values()))
    full = dense.position_root(layer.node, layer, None)
    from mipprune.graph.layers import Grid

    part = dense.position_root(layer.node, layer, Grid(2, (1, 0)))
    chosen = [5 * i + j for i in (1, 3) for j in (0, 2, 4)]  # of 4 x 5
    torch.testing.assert_close(part @ part, (full @ full)[chosen][:, chosen])


def test_directions_that_nothing_minds_leave_a_stream_first() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.fc = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.norm(self.embed(x)))

    torch.manual_seed(0)
    model, x = Stream().double().eval(), torch.randn(200, 6).double()
    with torch.no_grad():
        read = torch.linalg.qr(torch.randn(8, 3).double() - 0.1)[0]
        read = torch.linalg.qr(read - read.mean(0))[0]
        model.fc.weight.copy_(torch.randn(3, 3).double() @ read.T)
        model.embed.weight.add_(-0.9 * read @ (read.T @ model.embed.weight))  # what is read varies little
    graph = mp.trace(model, x[:2])
    data = as_data((x, torch.zeros(200, dtype=torch.int64)), graph)
    (stream,) = find_streams(graph)
    held = [float((read.T @ stream_basis(graph, data, stream, plain)[:, :3]).square().sum()) for plain in (1.0, 1e-3)]
    assert held[1] > held[0] + 0.5
