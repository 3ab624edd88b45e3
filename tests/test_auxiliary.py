"""The decoupled layer with a convolutional head: a network whose units are the layer's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.datasets import load_split
from mipprune.errors import DataError
from mipprune.train import fit_conv_head


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(),
        nn.Linear(5 * 36, 10),
    ).eval()


def test_units_of_the_auxiliary_network_are_those_of_the_layer(network: nn.Sequential) -> None:
    x, y = (part[:300] for part in load_split("digits").train)
    graph = mp.trace(network, x[:1])
    found = fit_conv_head(graph, "0", (x, y))
    with torch.no_grad():
        torch.testing.assert_close(found.data.inputs[0], network[:2](x))
    assert found.accuracy > 0.7  # from a random layer; guessing is 0.1
    assert min(found.losses) < 0.4 * found.losses[0]
    assert [p.requires_grad for p in found.network.units.parameters()] == [False]
    torch.testing.assert_close(found.network.units.weight[:, :, 0, 0], torch.eye(6))
    alone = mp.trace(found.network, found.data.inputs[0][:1])
    assert alone.group("units").size == graph.group("0").size
    kept = np.ones(alone.n_units, dtype=bool)
    kept[alone.group("units").units.start + 2] = False
    masked = found.data.inputs[0].clone()
    masked[:, 2] = 0
    with torch.no_grad():
        gates = torch.tensor(kept, dtype=torch.float32)
        torch.testing.assert_close(alone.program.run(found.data.inputs, gates), found.network(masked))
    importance = mp.shapley(mp.LayerGame(alone, "units", found.data), n_evals=600)
    assert importance.n_players == 6


def test_the_seed_decides(network: nn.Sequential) -> None:
    data = tuple(part[:60] for part in load_split("digits").train)
    graph = mp.trace(network, data[0][:1])
    before = torch.random.get_rng_state()
    first, again = (fit_conv_head(graph, "0", data, epochs=2, seed=3) for _ in range(2))
    assert (torch.random.get_rng_state() == before).all()
    assert first.losses == again.losses
    assert first.losses != fit_conv_head(graph, "0", data, epochs=2, seed=4).losses


def test_units_that_are_no_channels_are_refused(network: nn.Sequential) -> None:
    data = tuple(part[:40] for part in load_split("digits").train)
    graph = mp.trace(network, data[0][:1])
    with pytest.raises(DataError, match="fit_linear_head"):
        fit_conv_head(graph, "2", data)  # flattened before they are read
