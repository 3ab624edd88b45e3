"""Sample-wise walks: by their definition, the same through the fused kernel and through any suffix."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.errors import DataError
from mipprune.game import LayerGame, fused
from mipprune.testing.cases import NetworkCase

from .test_graph import cases
from .test_layer_game import example

VALUES = ("cross_entropy", "accuracy", "margin", "logit_distance")
ACTIVATIONS = (nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh(), nn.Sigmoid(), nn.SiLU(), nn.GELU())


def draw(game: LayerGame, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An order and a mask for every sample."""
    rng = np.random.default_rng(seed)
    shape = (game.n_samples, game.n_players)
    return rng.random(shape).argsort(1), rng.random(shape) < 0.6


def check_by_definition(game: LayerGame) -> None:
    """Every sample's marginals from the values of its own coalitions, one by one."""
    orders, masks = draw(game)
    walked, toggled = game.walk(orders), game.toggle(masks)
    for k in range(game.n_samples):
        coalitions = [np.isin(np.arange(game.n_players), orders[k, :t]) for t in range(game.n_players + 1)]
        steps = np.diff(game.sample_values(np.array(coalitions))[:, k])
        np.testing.assert_allclose(walked[k, orders[k]], steps, atol=1e-12)
        for i in range(game.n_players):
            pair = np.array([masks[k], masks[k]])
            pair[:, i] = True, False
            on, off = game.sample_values(pair)[:, k]
            assert toggled[k, i] == pytest.approx(on - off, abs=1e-12)


@cases
def test_walks_by_definition(case: NetworkCase) -> None:
    graph, x, y = example(case, n=4)
    for group in graph.groups:
        check_by_definition(LayerGame(graph, group.name, (x, y), fused=False))


def perceptron(activation: nn.Module) -> nn.Module:
    """Everything that the fused kernel takes: two more layers, batch-norm before and after, dropout, a dead unit."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 6), nn.BatchNorm1d(6), activation,
        nn.Linear(6, 8, bias=False), activation, nn.BatchNorm1d(8), nn.Linear(8, 4),
    ).double().eval()  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None
            module.running_mean.normal_(0, 0.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    with torch.no_grad():
        model[1].bias[3] = -100.0
    return model


@functools.cache
def perceptron_graph(activation: nn.Module) -> tuple[mp.UnitGraph, torch.Tensor]:
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(1)).double()
    return mp.trace(perceptron(activation), x), x


def perceptron_game(activation: nn.Module, layer: str, value: str, **options: object) -> LayerGame:
    graph, x = perceptron_graph(activation)
    return LayerGame(graph, layer, (x, torch.arange(9) % 4), value, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("layer", ["0", "4", "7"])
def test_fused_equals_generic(activation: nn.Module, layer: str) -> None:
    pytest.importorskip("numba")
    for value in VALUES:
        quick = perceptron_game(activation, layer, value)
        slow = perceptron_game(activation, layer, value, fused=False)
        assert quick._chain is not None
        orders, masks = draw(quick)
        np.testing.assert_allclose(quick.walk(orders), slow.walk(orders), atol=1e-12)
        np.testing.assert_allclose(quick.toggle(masks), slow.toggle(masks), atol=1e-12)


def test_the_dead_unit_is_a_null_player() -> None:
    game = perceptron_game(ACTIVATIONS[0], "0", "cross_entropy")
    orders, masks = draw(game)
    assert (game.walk(orders)[:, 3] == 0).all()
    assert (game.toggle(masks)[:, 3] == 0).all()


def test_rows_sum_to_the_whole_value() -> None:
    game = perceptron_game(ACTIVATIONS[2], "4", "margin")
    ends = game.sample_values(np.array([np.zeros(6, dtype=bool), np.ones(6, dtype=bool)]))
    np.testing.assert_allclose(game.walk(draw(game)[0]).sum(1), ends[1] - ends[0], atol=1e-12)


def test_the_batch_does_not_matter() -> None:
    whole = perceptron_game(ACTIVATIONS[0], "4", "cross_entropy", fused=False)
    tiny = perceptron_game(ACTIVATIONS[0], "4", "cross_entropy", fused=False, batch_bytes=1)
    orders, masks = draw(whole)
    np.testing.assert_allclose(whole.walk(orders), tiny.walk(orders), atol=1e-13)
    np.testing.assert_allclose(whole.toggle(masks), tiny.toggle(masks), atol=1e-13)


def test_without_numba_the_generic_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mipprune.game.layer.fused_available", lambda: False)
    game = perceptron_game(ACTIVATIONS[0], "4", "cross_entropy")
    assert game._chain is None
    check_by_definition(game)


def test_other_suffixes_are_left_to_the_generic_way() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.a(x))
            return self.c(torch.relu(self.b(h)) + 0.5 * h.detach().sum(1, keepdim=True) * 0 + h)

    torch.manual_seed(0)
    x = torch.randn(4, 5).double()
    graph = mp.trace(Residual().double().eval(), x)
    for group in graph.groups:
        game = LayerGame(graph, group.name, (x, torch.arange(4) % 3))
        assert game._chain is None
        check_by_definition(game)


def test_bad_orders_and_masks() -> None:
    game = perceptron_game(ACTIVATIONS[0], "4", "cross_entropy")
    orders, masks = draw(game)
    repeated = orders.copy()
    repeated[2] = 0
    for bad in (repeated, orders[:3], orders[:, :3], orders + 1):
        with pytest.raises(DataError, match="permutations"):
            game.walk(bad)
    with pytest.raises(DataError, match="one per sample"):
        game.toggle(masks[:3])
    with pytest.raises(DataError, match="no per-sample"):
        perceptron_game(ACTIVATIONS[0], "4", lambda out, target: out.sum()).walk(orders)  # type: ignore[arg-type]


def test_kernel_sees_nan() -> None:
    pytest.importorskip("numba")
    game = perceptron_game(ACTIVATIONS[2], "4", "cross_entropy")
    chain = game._chain
    assert chain is not None
    chain.columns[1, 2] = np.nan
    assert np.isnan(fused.fused_walk(chain, draw(game)[0], *game._fused_value())).any()
