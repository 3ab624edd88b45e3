"""Incremental walks: adding one unit's share after another is running the network at every step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.game import LayerGame
from mipprune.testing.sample_game_contract import SampleGameContract


class Residual(nn.Module):
    """What the reader's output meets again later: a skip from before the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.one = nn.Conv2d(3, 5, 3, padding=1)
        self.two = nn.Conv2d(5, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.norm(self.two(torch.relu(self.one(x)))))
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """A linear layer over three-dimensional activations."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x + self.down(torch.relu(self.up(x)))).mean(1))


class Branches(nn.Module):
    """One convolution reads the channels of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 3, 3)
        self.both, self.head = nn.Conv2d(7, 4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        return self.head(torch.relu(self.both(x)).mean((2, 3)))


def plain_cnn(**options: object) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, **options), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )


def flattened() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 7), nn.ReLU(), nn.Linear(7, 3))


IMAGES, TOKENS = (1, 6, 6), (5, 4)
#: name -> (network, layer, shape of a sample)
CASES = {
    "cnn, stride and padding": (lambda: plain_cnn(stride=2, padding=1), "0", IMAGES),
    "cnn, dilation, no bias": (lambda: plain_cnn(dilation=2, bias=False), "0", IMAGES),
    "cnn, padding by name": (lambda: plain_cnn(padding="same"), "0", IMAGES),
    "channels of several features": (flattened, "0", IMAGES),
    "hidden layer": (flattened, "3", IMAGES),
    "residual": (Residual, "one", IMAGES),
    "concatenation": (Branches, "left", IMAGES),
    "cnn, groups": (lambda: nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ), "0", IMAGES),
    "tokens": (Tokens, "up", TOKENS),
}
each_case = pytest.mark.parametrize("case", CASES)


def make(case: str, **options: object) -> LayerGame:
    build, layer, shape = CASES[case]
    torch.manual_seed(1)
    model = build().double()
    x = torch.randn(9, *shape, dtype=torch.float64)
    model.train()
    model(2 * x)  # batch-norm statistics that aren't 0 and 1
    model.eval()
    data = (x, torch.arange(9) % 3)
    return LayerGame(mp.trace(model, x), layer, data, fused=False, **options)  # type: ignore[arg-type]


@each_case
def test_walks_and_toggles_are_those_of_the_whole_suffix(case: str) -> None:
    fast, slow = make(case), make(case, incremental=False)
    assert (fast._reader is None) == (case in ("cnn, padding by name", "cnn, groups"))
    assert slow._reader is None
    rng = np.random.default_rng(0)
    shape = (fast.n_samples, fast.n_players)
    orders, masks = rng.random(shape).argsort(axis=1), rng.random(shape) < 0.5
    for _ in range(2):  # the second time from what the first kept
        np.testing.assert_allclose(fast.walk(orders), slow.walk(orders), atol=1e-12)
        np.testing.assert_allclose(fast.toggle(masks), slow.toggle(masks), atol=1e-12)


@each_case
@pytest.mark.parametrize("numbers", [1, 2000])
def test_little_memory_changes_nothing_but_speed(case: str, numbers: int) -> None:
    tight, roomy = make(case, batch_bytes=8 * numbers), make(case)
    orders = np.random.default_rng(0).random((roomy.n_samples, roomy.n_players)).argsort(axis=1)
    np.testing.assert_allclose(tight.walk(orders), roomy.walk(orders), atol=1e-12)


@pytest.mark.parametrize("case", ["residual", "concatenation"])
def test_units_of_other_layers_stay_removed(case: str) -> None:
    build, layer, shape = CASES[case]
    torch.manual_seed(1)
    model = build().double().eval()
    x = torch.randn(9, *shape, dtype=torch.float64)
    graph = mp.trace(model, x)
    kept = np.ones(graph.n_units, dtype=bool)
    for group in graph.groups:
        if group.name != graph.group(layer).name:
            kept[group.units.start] = False
    assert not kept.all()
    games = [LayerGame(graph, layer, (x, torch.arange(9) % 3), kept=kept, fused=False, incremental=i)
             for i in (True, False)]
    assert games[0]._reader is not None
    masks = np.random.default_rng(0).random((9, games[0].n_players)) < 0.5
    np.testing.assert_allclose(games[0].toggle(masks), games[1].toggle(masks), atol=1e-12)


class TestIncrementalConvolution(SampleGameContract):
    def make_game(self) -> LayerGame:
        return make("cnn, stride and padding")


class TestIncrementalInSmallBatches(SampleGameContract):
    def make_game(self) -> LayerGame:
        return make("residual", batch_bytes=4000)
