"""The flatness penalty: its value against K-FAC factors, its gradient against central differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.curvature import kfac_factors, spectral_radius
from mipprune.testing.cases import NETWORKS
from mipprune.train import FlatnessPenalty


def network(name: str, n: int = 7) -> tuple[nn.Module, torch.Tensor]:
    case = next(c for c in NETWORKS if c.name == name)
    return case.build().double(), case.inputs(n).double()


def central_differences(
    function: Callable[[], float], weights: list[nn.Parameter], direction: torch.Tensor, h: float
) -> float:
    start, values = nn.utils.parameters_to_vector(weights).detach().clone(), []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(start + sign * h * direction, weights)
        values.append(function())
    nn.utils.vector_to_parameters(start, weights)
    return (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize("name", ["mlp", "conv1d", "cnn", "depthwise"])
@pytest.mark.parametrize("sharing", ["reduce", "expand"])
@pytest.mark.parametrize("aggregate", ["sum", "max"])
def test_gradient_agrees_with_central_differences(name: str, sharing: str, aggregate: str) -> None:
    """The differences are of the spectral radius itself, from eigenvalues: nothing is frozen there."""
    model, x = network(name)
    data, draws = (x, torch.zeros(len(x), dtype=torch.long)), torch.zeros(len(x), 0, dtype=torch.float64)
    penalty = FlatnessPenalty(0.7, 1e-3, aggregate=aggregate, method="exact", sharing=sharing, iterations=800)
    weights = list(model.parameters())
    value = penalty(model, (x,), draws)
    grads = torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True)

    def true() -> float:
        return 0.7 * max(0.0, spectral_radius(kfac_factors(model, data, sharing=sharing), aggregate) - 1e-3)

    assert value.item() == pytest.approx(true(), rel=1e-10)
    gradient = torch.cat([g.flatten() for g in grads])
    torch.manual_seed(1)
    for direction in (gradient / gradient.norm(), gradient / gradient.norm() + 0.1 * torch.randn_like(gradient)):
        slope = central_differences(true, weights, direction, 1e-5)
        assert float(gradient @ direction) == pytest.approx(slope, rel=1e-6)


def test_gradient_of_a_sketch() -> None:
    """With fixed signs, a sketched radius is a function of the weights too."""
    model, x = network("mlp")
    draws = torch.rand(len(x), 2, dtype=torch.float64)
    penalty = FlatnessPenalty(1.0, iterations=800)
    weights = list(model.parameters())
    grads = torch.autograd.grad(penalty(model, (x,), draws), weights, allow_unused=True, materialize_grads=True)
    gradient = torch.cat([g.flatten() for g in grads])
    direction = gradient / gradient.norm()
    slope = central_differences(lambda: penalty(model, (x,), draws).item(), weights, direction, 1e-5)
    assert float(gradient @ direction) == pytest.approx(slope, rel=1e-6)


def test_sketches_average_to_the_exact_moment_at_fixed_vectors() -> None:
    model, x = network("mlp", 5)
    exact = FlatnessPenalty(1.0, method="exact", iterations=500)
    none = torch.zeros(len(x), 0, dtype=torch.float64)
    true = float(exact.radius(model, (x,), none))
    sketched = FlatnessPenalty(1.0)
    sketched._follow = lambda rows, vector: vector  # type: ignore[method-assign, assignment, return-value]
    sketched.vectors = exact.vectors
    draws = torch.rand(150, 5, 4, dtype=torch.float64)
    found = torch.tensor([sketched.radius(model, (x,), draw).item() for draw in draws])
    assert abs(float(found.mean()) - true) < 4.5 * float(found.std()) / len(found) ** 0.5
    assert float(found.std()) > 0


def test_below_the_threshold_nothing_is_charged() -> None:
    model, x = network("mlp")
    penalty = FlatnessPenalty(1.0, 1e6)
    value = penalty(model, (x,), torch.rand(len(x), 1, dtype=torch.float64))
    assert value.item() == 0.0
    grads = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, materialize_grads=True)
    assert all(not g.any() for g in grads)


def test_vectors_are_warm_started_and_modes_restored() -> None:
    model, x = network("cnn")
    model.train()
    model[1].eval()
    penalty = FlatnessPenalty(1.0, method="exact")
    draws = torch.zeros(len(x), 0, dtype=torch.float64)
    first = [float(penalty.radius(model, (x,), draws)) for _ in range(40)]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(first))  # Rayleigh quotients rise
    true = spectral_radius(kfac_factors(model.eval(), (x, torch.zeros(len(x), dtype=torch.long))))
    assert first[-1] == pytest.approx(true, rel=1e-6)
    model.train()
    model[1].eval()
    penalty.radius(model, (x,), draws)
    assert [m.training for m in model] == [i != 1 for i in range(len(model))]


@pytest.mark.parametrize("options", [{"mu": -1.0}, {"mu": 1.0, "threshold": -1.0}, {"mu": 1.0, "method": "labels"}])
def test_options_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(mp.errors.ConfigError, match="flatness penalty"):
        FlatnessPenalty(**options)  # type: ignore[arg-type]
