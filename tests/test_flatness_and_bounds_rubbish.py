"""Bounds, curvature and training say what is wrong and what to do, before any work is done."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.errors import BudgetError, ConfigError, DataError, InfeasibleError, ModelStateError, TraceError

Data = tuple[torch.Tensor, torch.Tensor]
BOUNDS: dict[str, Callable[[nn.Module, Any], object]] = {
    "neuron_gap": mp.bounds.neuron_gap,
    "neurons": lambda model, data: mp.bounds.random_pruning(model, data, keep=0.5),
    "weights": lambda model, data: mp.bounds.random_pruning(model, data, keep=0.5, what="weights"),
    "magnitude": lambda model, data: mp.bounds.magnitude_pruning(model, data, keep=0.5),
    "validate_neurons": lambda model, data: mp.bounds.validate_neurons(model, data, n_masks=2),
    "validate_weights": lambda model, data: mp.bounds.validate_weights(model, data, n_masks=2),
}
CURVATURE: dict[str, Callable[[nn.Module, Any], object]] = {
    "kfac": mp.curvature.kfac_factors,
    "eigenvalues": mp.curvature.hessian_top_eigenvalues,
    "sharpness": mp.curvature.sharpness,
}
TRAIN: dict[str, Callable[[nn.Module, Any], object]] = {
    "train": lambda model, data: mp.train_and_prune(model, data, budget=mp.Units(0.5), epochs=1, progress=False),
}
EVERYTHING = BOUNDS | CURVATURE | TRAIN


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def _data(n: int = 20) -> Data:
    torch.manual_seed(1)
    return torch.randn(n, 8), torch.randint(3, (n,))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x.reshape(-1, 2, 4))[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 8)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.inside(x.reshape(-1, 2, 4))
        return self.head(self.attention(z, z, z, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("name", list(EVERYTHING))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(name: str, value: float) -> None:
    model = _mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = value
    with pytest.raises(ModelStateError, match=r"'2\.weight' holds NaN or infinite"):
        EVERYTHING[name](model, _data())


@pytest.mark.parametrize("name", list(EVERYTHING))
def test_data_that_do_not_fit_are_refused(name: str) -> None:
    (x, y), model = _data(), _mlp()
    bad: list[tuple[Any, type[Exception], str]] = [
        ((x[:0], y[:0]), DataError, "data is empty"),
        (None, DataError, "expected \\(inputs, targets\\)"),
        ((x, y[:3]), DataError, "20 samples .* 3 targets"),
        ((x * math.nan, y), DataError, "NaN or infinite values in 20 of 20"),
        ((x[:, :5], y), (DataError, TraceError), "doesn't run on inputs of shape"),  # type: ignore[list-item]
    ]
    for data, error, text in bad:
        with pytest.raises(error, match=text):
            EVERYTHING[name](model, data)


@pytest.mark.parametrize("name", list(BOUNDS))
@pytest.mark.parametrize(("network", "operation"), [(Recurrent, "LSTM"), (Attention, "Attention")])
def test_layers_without_a_bound_are_named(name: str, network: type[nn.Module], operation: str) -> None:
    with pytest.raises(TraceError, match=f"{operation}.*mipprune.prune bounds the accuracy"):
        BOUNDS[name](network().eval(), _data())


def test_attention_has_second_derivatives() -> None:
    """The fused kernels have none; the Hessian is that of the same function."""
    torch.manual_seed(0)
    model, (x, y) = Attention().eval(), _data(6)
    matrix = mp.curvature.CurvatureOperator(model, (x, y))
    double = copy.deepcopy(model).double()
    weights, direction = list(double.parameters()), torch.randn(matrix.shape[0], dtype=torch.float64)
    start, slopes = nn.utils.parameters_to_vector(weights).detach(), []
    for step in (1e-5, -1e-5):
        nn.utils.vector_to_parameters(start + step * direction, weights)
        grads = torch.autograd.grad(nn.functional.cross_entropy(double(x.double()), y), weights)
        slopes.append(torch.cat([g.flatten() for g in grads]))
    found = torch.from_numpy(matrix @ direction.numpy())
    torch.testing.assert_close(found, (slopes[0] - slopes[1]) / 2e-5, atol=1e-7, rtol=1e-5)
    result = mp.train_and_prune(model, _data(40), budget=mp.Units(0.9), flatness=0.01, epochs=1, progress=False)
    assert result.report.radii[0] > 0


def test_frozen_networks() -> None:
    """What needs no gradient in the weights goes on; what does says which switch to turn."""
    model = _mlp().requires_grad_(False)
    for name, call in (CURVATURE | TRAIN).items():
        if name != "kfac":
            with pytest.raises(ModelStateError, match=r"requires_grad_\(\)"):
                call(model, _data())
    thawed = mp.curvature.kfac_factors(_mlp(), _data())
    assert mp.curvature.kfac_factors(model, _data()) == thawed
    assert mp.bounds.neuron_gap(model, _data()) == mp.bounds.neuron_gap(_mlp(), _data())


@pytest.mark.parametrize("keep", [0, -0.1, 1.2, math.nan, "half", None])
def test_keep_rates_out_of_range(keep: Any) -> None:
    model, data, bounds = _mlp(), _data(), mp.bounds
    calls = [lambda: bounds.random_pruning(model, data, keep=keep, what="weights"),
             lambda: bounds.magnitude_pruning(model, data, keep=keep),
             lambda: bounds.validate_weights(model, data, keep=keep, n_masks=2)]
    if keep != 0:  # all neurons may go, and then the bound is that of the empty network
        calls += [lambda: bounds.random_pruning(model, data, keep=keep),
                  lambda: bounds.validate_neurons(model, data, keep=keep, n_masks=2)]
    for call in calls:
        with pytest.raises(BudgetError, match="keep"):
            call()


@pytest.mark.parametrize("delta", [0, 1, -1, math.nan, "a"])
def test_probabilities_out_of_range(delta: Any) -> None:
    model, data, bounds = _mlp(), _data(), mp.bounds
    gap = bounds.neuron_gap(model, data)
    for call in (
        lambda: bounds.random_pruning(model, data, keep=0.5, delta=delta),
        lambda: bounds.random_pruning(model, data, keep=0.5, delta=delta, what="weights"),
        lambda: bounds.validate_weights(model, data, delta=delta, n_masks=2), lambda: bounds.keep_for(gap, 1.0, delta),
        lambda: bounds.width_for(1.0, delta, depth=2, exponent=0.5), lambda: bounds.chance_constrained(gap, 1.0, delta),
    ):
        with pytest.raises(BudgetError, match="delta"):
            call()


def test_other_arguments_of_the_bounds() -> None:
    model, data, bounds = _mlp(), _data(), mp.bounds
    gap = bounds.neuron_gap(model, data)
    for n in (0, -1, 2.5):
        with pytest.raises(BudgetError, match="n_masks"):
            bounds.validate_neurons(model, data, n_masks=n)  # type: ignore[arg-type]
        with pytest.raises(BudgetError, match="n_masks"):
            bounds.validate_weights(model, data, n_masks=n)  # type: ignore[arg-type]
    for eps in (math.nan, -1.0):
        with pytest.raises(BudgetError, match="eps"):
            bounds.keep_for(gap, eps, 0.1)
    with pytest.raises(InfeasibleError, match="eps"):
        bounds.keep_for(gap, 0.0, 0.1)
    with pytest.raises(BudgetError, match="whole depth"):
        bounds.width_for(1.0, 0.1, depth=1.5, exponent=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", [
    {"epochs": 1.5}, {"epochs": 0}, {"lr": math.nan}, {"lr": 0.0}, {"batch_size": "a"}, {"batch_size": 1},
    {"flatness": math.nan}, {"weight_decay": math.nan}, {"sharpness_aware": -1.0}, {"sharpness_aware": math.inf},
    {"threshold": math.nan}, {"schedule": "cubic"}, {"selection_samples": 0}, {"holdout": 2}, {"seed": "a"},
    {"min_keep": 2.5}, {"min_keep": True}, {"aggregate": "mean"},
])
def test_options_of_the_training_out_of_range(option: dict[str, Any]) -> None:
    (name,) = option
    found = {"flatness": "mu >= 0", "holdout": "share"}.get(name, name)
    with pytest.raises(ConfigError, match=found):
        mp.train_and_prune(_mlp(), _data(), **{"budget": mp.Units(0.5), "progress": False, **option})
