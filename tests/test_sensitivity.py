"""What a refit minds, in one pass, is what its parts are one by one; and input covariances from some rows are near."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.curvature import RefitModel, output_metrics, refit_curves
from mipprune.curvature.input_covariance import _parts, _step, input_covariances
from mipprune.curvature.output_metric import ENOUGH, PROBES, TEMPERATURE, enough, position_metrics
from mipprune.curvature.sensitivity import Sensitivity
from mipprune.curvature.stream_basis import stream_basis
from mipprune.game import LabelledData, as_data
from mipprune.graph import UnitGraph, find_layers, find_streams
from mipprune.graph.layers import _padded
from mipprune.repair import DenseRun


class Normed(nn.Module):
    """A residual stream of width 6 between layer-norms on four tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down, self.fc = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 3)
        self.first, self.last = nn.LayerNorm(6), nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + self.down(torch.relu(self.up(self.first(x))))
        return self.fc(self.last(x).mean(1))


def normed(n: int = 40) -> tuple[UnitGraph, LabelledData]:
    torch.manual_seed(0)
    model, x = Normed().double().eval(), torch.randn(n, 4, 5).double()
    graph = mp.trace(model, x[:2])
    return graph, as_data((x, torch.zeros(n, dtype=torch.int64)), graph)


@pytest.mark.parametrize("n", [40, ENOUGH + 30])
def test_one_pass_measures_what_each_one_does(n: int) -> None:
    graph, data = normed(n)
    found, few = Sensitivity(graph, data, seed=3), enough(data)
    layers = find_layers(graph.program)
    about = {"temperature": TEMPERATURE, "probes": PROBES, "seed": 3}
    outputs = output_metrics(graph, few, layers, **about)
    assert set(found.outputs) == set(outputs)
    for name, metric in outputs.items():
        torch.testing.assert_close(found.outputs[name], TEMPERATURE**2 * metric)
    dims = {layer.node.name: -1 for layer in layers} | {x.total.name: -1 for x in layers if x.total is not None}
    positions = position_metrics(graph, few, dims, **about)
    assert set(found.positions) == set(positions)
    for name, metric in positions.items():
        torch.testing.assert_close(found.positions[name], metric)


def test_streams_are_those_of_their_own_measurement() -> None:
    graph, data = normed()
    ((stream, basis),) = Sensitivity(graph, data).streams
    assert stream.group == find_streams(graph)[0].group
    own = stream_basis(graph, data, stream)
    torch.testing.assert_close(basis @ basis.T, own @ own.T)
    torch.testing.assert_close((basis * own).sum(0).abs(), torch.ones(5).double())


def test_dense_runs_and_curves_take_what_is_known() -> None:
    graph, data = normed()
    known = Sensitivity(graph, data)
    part = data.take(slice(0, 20))
    shared = DenseRun(graph, part, sensitivity=known)
    assert shared.streams is known.streams
    assert DenseRun(graph, part).sensitivity.data is part
    curves = refit_curves(graph, data, sensitivity=known)
    kept = np.ones(graph.n_units, dtype=bool)
    for group, curve in zip(graph.groups, curves, strict=True):
        kept[group.units] = curve.mask(group.size - 2)
    found = RefitModel(graph, data, sensitivity=known).errors(kept)
    np.testing.assert_allclose(found, [curve.error[2] for curve in curves], rtol=1e-8)
    measured = refit_curves(graph, data, temperature=TEMPERATURE, probes=PROBES)  # the same metrics, on few samples
    for curve, other in zip(curves, measured, strict=True):
        np.testing.assert_allclose(curve.error, other.error, rtol=1e-8)


def test_a_projected_stream_is_bounded_by_its_own_error_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = normed()
    ((stream, _),) = Sensitivity(graph, data).streams
    bounded: list[int] = []
    module = sys.modules[RefitModel.__module__]
    least = module.least_errors
    monkeypatch.setattr(module, "least_errors", lambda some, n: bounded.append(n) or least(some, n))
    curves = refit_curves(graph, data)
    assert bounded == [group.size for i, group in enumerate(graph.groups) if i != stream.group]
    assert (curves[stream.group].lower == curves[stream.group].error).all()


def convolved(n: int) -> tuple[UnitGraph, LabelledData]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Linear(192, 3))
    x = nn.functional.avg_pool2d(torch.randn(n, 2, 10, 10), 3, 1).double()
    graph = mp.trace(model.double().eval(), x[:2])
    return graph, as_data((x, torch.zeros(n, dtype=torch.int64)), graph)


def test_covariances_of_all_rows() -> None:
    graph, data = convolved(50)
    conv, _, linear = layers = find_layers(graph.program)
    found = input_covariances(graph, data, layers, enough=10**9)
    x = data.inputs[0]
    windows = nn.functional.unfold(x, 3, padding=1).movedim(1, 0).flatten(1)
    torch.testing.assert_close(found[0], torch.cov(windows, correction=0))
    y = graph.model[:4](x)
    torch.testing.assert_close(found[2], torch.cov(y.T, correction=0))
    assert (_step(conv, graph.model[0].weight, 50, 10**9), _step(linear, graph.model[4].weight, 50, 1)) == (1, 1)


def test_covariances_of_some_rows_are_near() -> None:
    graph, data = convolved(600)
    layers = find_layers(graph.program)
    exact, found = input_covariances(graph, data, layers, enough=10**9), input_covariances(graph, data, layers)
    torch.testing.assert_close(found[2], exact[2], rtol=0, atol=0)  # a linear layer's rows are samples
    for a, b in zip(found[:2], exact[:2], strict=True):
        assert not torch.equal(a, b)
        assert (a - b).norm() < 0.1 * b.norm()


@pytest.mark.parametrize(("samples", "step"), [(17, 1), (18, 1), (72, 2), (71, 1), (72 * 4, 4), (72 * 400, 4)])
def test_steps_leave_enough_rows_and_parts_cover_every_position(samples: int, step: int) -> None:
    graph, _ = convolved(2)
    layer = find_layers(graph.program)[0]  # 64 positions, 18 columns
    assert _step(layer, graph.model[0].weight, samples, 64) == step
    parts = list(_parts(torch.arange(100), layer, step))
    assert sorted(int(i) for part, _ in parts for i in part) == list(range(100))
    assert len({grid for _, grid in parts}) == step**2


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (5, 0, 4, 4), (1, 2, 1, 1), (5, 3, 7), (2, 3, 4, 5, 6)])
def test_padding_moves_samples_last(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for pad in ([1, 2] * (len(shape) - 2), [0, 0] * (len(shape) - 2)):
        found = _padded(x, pad)
        assert torch.equal(found, nn.functional.pad(x, pad).movedim(0, -1))
        assert found.is_contiguous()
