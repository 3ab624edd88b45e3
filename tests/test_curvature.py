"""Gate derivatives against finite differences and dense Jacobians; the auxiliary head against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mipprune as mp
from mipprune.curvature import expand_gates, fit_linear_head
from mipprune.game import as_data
from mipprune.testing.cases import NETWORKS, NetworkCase

from .test_graph import cases
from .test_layer_game import example


@cases
def test_gradient_agrees_with_central_differences(case: NetworkCase) -> None:
    graph, x, y = example(case)
    kept = np.random.default_rng(0).random(graph.n_units) < 0.8
    expansion = expand_gates(graph, as_data((x, y), graph), kept)

    def loss(gates: np.ndarray) -> float:
        return float(F.cross_entropy(graph.program.run([x], torch.from_numpy(gates)), y))

    assert expansion.loss == pytest.approx(loss(kept.astype(float)), abs=1e-12)
    h = 1e-5
    for unit in range(graph.n_units):
        step = np.zeros(graph.n_units)
        step[unit] = h
        slope = (loss(kept - step) - loss(kept + step)) / (2 * h)
        assert expansion.gradient[unit] == pytest.approx(slope if kept[unit] else 0.0, abs=1e-8)


@cases
def test_curvature_is_the_gauss_newton_matrix(case: NetworkCase) -> None:
    graph, x, y = example(case)
    expansion = expand_gates(graph, as_data((x, y), graph))
    whole = torch.zeros(graph.n_units, graph.n_units, dtype=torch.float64)
    ones = torch.ones(graph.n_units, dtype=torch.float64)
    for k in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda g, k=k: graph.program.run([x[k : k + 1]], g)[0], ones)
        p = torch.softmax(graph.program.run([x[k : k + 1]])[0], 0)
        whole += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / len(x)
    for group, block in zip(graph.groups, expansion.curvature, strict=True):
        np.testing.assert_allclose(block, whole[group.units, group.units].detach().numpy(), atol=1e-12)
        assert np.linalg.eigvalsh(block).min() > -1e-12


def test_batch_size_does_not_matter() -> None:
    graph, x, y = example(NETWORKS[3])
    data = as_data((x, y), graph)
    a, b = expand_gates(graph, data, batch_size=4), expand_gates(graph, data)
    np.testing.assert_allclose(a.gradient, b.gradient, atol=1e-13)
    for left, right in zip(a.curvature, b.curvature, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-13)


def test_record_round_trip() -> None:
    graph, x, y = example(NETWORKS[0])
    expansion = expand_gates(graph, as_data((x, y), graph))
    assert type(expansion).from_dict(expansion.to_dict()) == expansion


def test_head_is_the_penalised_logistic_optimum() -> None:
    graph, x, y = example(NETWORKS[0], n=60)
    fit = fit_linear_head(graph, "0", as_data((x, y), graph), l2=1e-2)
    hidden = graph.model[1](graph.model[0](x)).detach()
    np.testing.assert_allclose(fit.activations, hidden.numpy(), atol=1e-12)
    scale = np.sqrt((fit.activations**2).mean(0))
    scaled = torch.from_numpy(fit.activations / scale)
    weight = torch.tensor(fit.weight * scale, requires_grad=True)
    bias = torch.tensor(fit.bias.copy(), requires_grad=True)
    (F.cross_entropy(scaled @ weight.T + bias, y) + 0.5e-2 * (weight**2).sum()).backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() < 1e-4
    logits = torch.from_numpy(fit.activations @ fit.weight.T + fit.bias)
    assert fit.loss == pytest.approx(float(F.cross_entropy(logits, y)))
    assert fit.accuracy == pytest.approx(float((logits.argmax(1) == y).double().mean()))


def test_head_of_a_conv_layer_averages_positions() -> None:
    graph, x, y = example(NETWORKS[1])
    fit = fit_linear_head(graph, "4", as_data((x, y), graph))
    with torch.no_grad():
        channels = graph.model[:7](x).mean((2, 3))
    np.testing.assert_allclose(fit.activations, channels.numpy(), atol=1e-12)


def test_surrogate_predicts_a_small_removal() -> None:
    """Second order: the error of the expansion falls with the cube of the step, up to the Gauss-Newton residual."""
    graph, x, y = example(NETWORKS[0])
    group = graph.groups[1]
    expansion = expand_gates(graph, as_data((x, y), graph))
    quadratic = mp.surrogates.Quadratic.from_curvature(expansion.gradient[group.units], expansion.curvature[1])
    direction = np.random.default_rng(0).random(group.size)
    gates = torch.ones(graph.n_units, dtype=torch.float64)
    errors = []
    for step in (1e-2, 1e-3):
        moved = gates.clone()
        moved[group.units] -= step * torch.from_numpy(direction)
        true = float(F.cross_entropy(graph.program.run([x], moved), y)) - expansion.loss
        errors.append(abs(true - quadratic.drop(step * direction)))
    # the last group feeds the logits linearly, so Gauss-Newton is the whole Hessian there
    assert errors[1] < 2e-3 * errors[0]
