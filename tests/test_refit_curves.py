"""Refit-aware curves against brute force: least squares on every subset, Jacobians sample by sample."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.curvature import RefitModel, output_metrics, refit_curves
from mipprune.game import LabelledData, as_data
from mipprune.graph import UnitGraph, find_layers, trace


def conv_case() -> tuple[UnitGraph, LabelledData]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)
    ).double()
    x = torch.randn(20, 1, 4, 4).double()
    graph = mp.trace(model, x)
    return graph, as_data((x, torch.zeros(20, dtype=torch.int64)), graph)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_output_metrics_sample_by_sample(temperature: float) -> None:
    graph, data = conv_case()
    layers = find_layers(graph.program)
    found = output_metrics(graph, data, layers, temperature=temperature, batch_size=7)
    model = graph.model
    want = torch.zeros(4, 4).double()
    for x in data.inputs[0]:
        z = model[:3](x[None]).detach()
        jacobian = torch.autograd.functional.jacobian(lambda v: model[3:](v)[0], z)[:, 0].flatten(2)  # (C, m, T)
        p = torch.softmax(model[3:](z)[0].detach() / temperature, 0)
        b = (torch.diag(p) - torch.outer(p, p)) / temperature**2
        want += torch.einsum("cmt,cd,dnt->mn", jacobian, b, jacobian) / len(data)
    torch.testing.assert_close(found[layers[1].node.name], want)
    sampled = output_metrics(graph, data, layers, temperature=temperature, probes=400)
    assert (sampled[layers[1].node.name] - want).norm() < 0.15 * want.norm()


def test_curves_are_least_squares_errors() -> None:
    graph, data = conv_case()
    curves = refit_curves(graph, data, ridge=1e-9)
    layers = find_layers(graph.program)
    metrics = output_metrics(graph, data, layers)
    tensors = graph.program.dense_tensors()
    for group, curve, layer in zip(graph.groups, curves, layers[1:], strict=True):
        values = graph.program.values({graph.program.captured.inputs[0]: data.inputs[0]}, {layer.data})
        weight = tensors[layer.weight].flatten(1)
        x = layer.design(values[layer.data], tensors[layer.weight])[0]
        x = x - x.mean(1, keepdim=True)
        metric = metrics[layer.node.name]
        block = len(x) // group.size

        def error(kept: np.ndarray) -> float:
            """1/2 tr(M S), S the covariance of what is left over."""
            own = x[np.repeat(kept, block)]  # noqa: B023
            fit = torch.linalg.lstsq(own.T, (weight @ x).T).solution  # noqa: B023
            rest = weight @ x - fit.T @ own  # noqa: B023
            return float((metric @ (rest @ rest.T)).trace() / x.shape[1] / 2)  # noqa: B023

        n = group.size
        assert sorted(curve.order.tolist()) == list(range(n))
        for removed in range(1, n):
            assert curve.error[removed] == pytest.approx(error(curve.mask(n - removed)), rel=1e-4, abs=1e-10)
            every = [error(~np.isin(np.arange(n), gone)) for gone in itertools.combinations(range(n), removed)]
            assert curve.lower[removed] <= min(every) * (1 + 1e-4) + 1e-10
            assert curve.error[removed] <= np.median(every) * (1 + 1e-4) + 1e-10
        assert curve.lower[1] == pytest.approx(curve.error[1], rel=1e-6)
        whole = weight @ x
        empty = float((metric @ (whole @ whole.T)).trace() / x.shape[1] / 2)
        assert curve.error[n] == pytest.approx(empty, rel=1e-4)
        mixed = np.random.default_rng(0).random(graph.n_units) < 0.5
        found = RefitModel(graph, data, ridge=1e-9).errors(mixed)[graph.groups.index(group)]
        assert found == pytest.approx(error(mixed[group.units]), rel=1e-4, abs=1e-10)


def test_pinned_units_go_last() -> None:
    graph, data = conv_case()
    pinned = np.zeros(graph.n_units, dtype=bool)
    pinned[[0, 3]] = True
    curve = refit_curves(graph, data, pinned=pinned)[0]
    assert set(curve.order[-2:].tolist()) == {0, 3}
    assert curve.mask(2).tolist() == [True, False, False, True, False]


def test_batches_do_not_matter_and_seeds_do() -> None:
    graph, data = conv_case()
    a, b = refit_curves(graph, data, probes=2, seed=1), refit_curves(graph, data, probes=2, seed=1)
    assert all(x == y for x, y in zip(a, b))
    c = refit_curves(graph, data, probes=2, seed=2)
    assert not np.allclose(a[0].error, c[0].error)


def test_inputs_that_hardly_vary_about_a_large_mean() -> None:
    """Their covariance drowns in single precision unless they are shifted first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    with torch.no_grad():
        model[0].weight.mul_(0.05)
        model[0].bias.fill_(100.0)
        model[2].bias.sub_(model[2](torch.full((7,), 100.0)))  # logits around 0
    x = torch.randn(300, 5)
    y = model(x).argmax(1)
    graph = trace(model, x[:1])
    single = refit_curves(graph, as_data((x, y), graph))[0]
    double = copy.deepcopy(model).double()
    graph = trace(double, x[:1].double())
    exact = refit_curves(graph, as_data((x.double(), y), graph))[0]
    assert (np.diff(exact.error) > 0).all()
    assert single.error == pytest.approx(exact.error, rel=0.02, abs=1e-3 * exact.error[-1])
    assert single.lower == pytest.approx(exact.lower, rel=0.02, abs=1e-3 * exact.error[-1])
