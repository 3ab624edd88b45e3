"""Residual streams: found where a rotation is harmless, projected without loss where nothing is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.curvature import RefitModel, refit_curves
from mipprune.curvature.stream_basis import projected_errors, stream_basis, stream_projection
from mipprune.game import as_data
from mipprune.graph import UnitGraph, find_streams
from mipprune.repair import CutNetwork, DenseRun, refit_cut
from mipprune.repair.projection import project_streams


class Block(nn.Module):
    """Pre-norm feed-forward branches around a stream of 10 units, with a table added at the start."""

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        self.plain = plain
        self.embed, self.place = nn.Linear(4, 10), nn.Parameter(torch.randn(1, 3, 10))
        self.n1, self.up, self.down = nn.LayerNorm(10), nn.Linear(10, 12), nn.Linear(12, 10)
        self.n2, self.fc = nn.LayerNorm(10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) + self.place
        x = x + self.down(torch.tanh(self.up(x if self.plain else self.n1(x))))
        return self.fc(self.n2(x).mean(1))


def case(rank: int | None = None) -> tuple[UnitGraph, Any, torch.Tensor]:
    """A network whose stream lies in a space of ``rank`` dimensions, beside the mean over units."""
    torch.manual_seed(0)
    model = Block().double().eval()
    with torch.no_grad():
        for norm in (model.n1, model.n2):
            norm.weight.copy_(torch.rand(10) + 0.5)
            norm.bias.copy_(torch.randn(10))
        if rank is not None:
            space = torch.linalg.qr(torch.randn(10, 10).double() - 0.3)[0][:, :rank]
            space = torch.linalg.qr(space - space.mean(0))[0]
            for layer in (model.embed, model.down):
                layer.weight.copy_(space @ space.T @ layer.weight)
                layer.bias.copy_(space @ (space.T @ layer.bias))
            model.place.copy_(model.place @ space @ space.T)
    x = torch.randn(80, 3, 4).double()
    graph = mp.trace(model, x[:2])
    return graph, as_data((x, torch.zeros(80, dtype=torch.int64)), graph), x


def without(graph: UnitGraph, group: int, count: int) -> np.ndarray:
    kept = np.ones(graph.n_units, dtype=bool)
    kept[graph.groups[group].offset + count : graph.groups[group].units.stop] = False
    return kept


def test_streams_are_found_where_a_rotation_is_harmless() -> None:
    graph, _, x = case()
    (stream,) = find_streams(graph)
    assert graph.groups[stream.group].size == 10
    assert [len(stream.writers), len(stream.norms), len(stream.readers), len(stream.tables)] == [2, 2, 2, 1]
    assert find_streams(mp.trace(Block(plain=True).double().eval(), x[:2])) == []  # a layer reads it without a norm
    chain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 3)).eval()
    assert find_streams(mp.trace(chain, torch.randn(2, 4))) == []  # units behind a ReLU are what they are


@pytest.mark.parametrize("rank", [2, 5])
def test_a_stream_of_few_dimensions_is_projected_without_loss(rank: int) -> None:
    graph, data, x = case(rank)
    (stream,) = find_streams(graph)
    dense = DenseRun(graph, data)
    kept = without(graph, stream.group, rank + 1)
    for repair in (project_streams, lambda cut, run: refit_cut(cut, run, ridge=1e-12)):
        cut = CutNetwork(graph, kept)
        assert (cut.run((x,)) - dense.logits).abs().max() > 0.05
        repair(cut, dense)
        torch.testing.assert_close(cut.run((x,)), dense.logits, atol=1e-3, rtol=1e-3)  # up to the norms' epsilon
    fewer = CutNetwork(graph, without(graph, stream.group, rank))
    project_streams(fewer, dense)
    assert (fewer.run((x,)) - dense.logits).abs().max() > 0.02
    error = refit_curves(graph, data)[stream.group].error
    assert error[10 - rank - 1] < 0.1 * error[10 - rank]


def test_the_projection_has_orthogonal_directions_and_no_mean() -> None:
    graph, data, _ = case()
    (stream,) = find_streams(graph)
    basis = stream_basis(graph, data, stream)
    torch.testing.assert_close(basis.T @ basis, torch.eye(9).double())
    torch.testing.assert_close(basis.sum(0), torch.zeros(9).double(), atol=1e-8, rtol=0)
    for count in (1, 2, 6):
        down = stream_projection(basis, count)
        assert down.shape == (10, count)
        torch.testing.assert_close(down.sum(1), torch.zeros(10).double(), atol=1e-8, rtol=0)
        torch.testing.assert_close(torch.linalg.svdvals(down)[: count - 1], torch.ones(count - 1).double())
    assert (stream_projection(basis, 10) == torch.eye(10)).all()


def test_projected_errors_are_least_squares_errors() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5))
    x -= x.mean(0)
    weight, gain = rng.normal(size=(3, 5)), rng.random(5) + 0.5
    basis = np.linalg.qr(rng.normal(size=(5, 4)))[0]
    errors = projected_errors(x.T @ x / 200, weight.T @ weight, gain, basis)
    for count in range(6):
        features = (x / gain) @ basis[:, : max(count - 1, 0)]
        features = x if count == 5 else features
        fitted = features @ np.linalg.lstsq(features, x @ weight.T, rcond=None)[0] if features.size else 0.0
        assert errors[count] == pytest.approx(((x @ weight.T - fitted) ** 2).sum() / 200, rel=1e-6, abs=1e-9)


def test_only_the_number_of_a_streams_units_counts() -> None:
    graph, data, x = case()
    (stream,) = find_streams(graph)
    dense = DenseRun(graph, data)
    outputs, errors = [], []
    for shift in (0, 3):
        kept = without(graph, stream.group, 6)
        units = graph.groups[stream.group].units
        kept[units] = np.roll(kept[units], shift)
        cut = CutNetwork(graph, kept)
        refit_cut(cut, dense)
        outputs.append(cut.run((x,)))
        errors.append(RefitModel(graph, data).errors(kept)[stream.group])
    torch.testing.assert_close(*outputs)
    assert errors[0] == errors[1] == refit_curves(graph, data)[stream.group].error[4]
