"""Rubbish put into ``prune`` and ``fine_tune`` is refused by the name of what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.errors import ConfigError, DataError, InfeasibleError, MipPruneError, ModelStateError
from mipprune.train import fine_tune

X = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 3
BAD = X.clone()
BAD[3, 2] = torch.nan


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"repair": None}, ConfigError, "repair"),
        ({"repair": ("bm",)}, ConfigError, "bm"),
        ({"stages": 2.5}, ConfigError, "stages must be a whole number"),
        ({"min_keep": 1.5}, ConfigError, "min_keep must be a whole number"),
        ({"multiple": True}, ConfigError, "multiple must be a whole number"),
        ({"budget": mp.Macs(1e-4)}, InfeasibleError, "can't go below"),
        ({"pin": ["0", "2"]}, InfeasibleError, "pin fewer layers"),
        ({"pin": "nowhere"}, mp.errors.UnknownLayerError, "'nowhere'"),
        ({"data": (BAD, Y)}, DataError, "1 of 60 samples"),
        ({"data": (X[:0], Y[:0])}, DataError, "empty"),
        ({"data": (X, Y[:9])}, DataError, "9 targets"),
        ({"validation": (BAD, Y)}, DataError, "validation data"),
        ({"validation": (X, Y + 3)}, DataError, "validation data: targets lie in 3"),
        ({"model": 3}, ModelStateError, "got int"),
    ],
)
def test_prune_refuses(model: nn.Module, options: dict[str, Any], error: type[MipPruneError], text: str) -> None:
    given = {"model": model, "data": (X, Y), "budget": mp.Macs(0.5), "progress": False} | options
    with pytest.raises(error, match=text):
        mp.prune(**given)


def test_one_layer_may_be_named_by_a_string(model: nn.Module) -> None:
    graph = mp.trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 4))
    assert graph.units_of("0").all()
    with pytest.raises(mp.errors.UnknownLayerError, match="'00'"):
        graph.units_of("00")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"data": (BAD, Y)}, DataError, "training data.*NaN"),
        ({"data": (X[:0], Y[:0])}, DataError, "training data is empty"),
        ({"data": (X[:, :3], Y)}, DataError, r"doesn't run on inputs of shape \(60, 3\)"),
        ({"data": (X, Y + 5)}, DataError, "targets lie in 5..7"),
        ({"validation": (BAD, Y)}, DataError, "validation data.*NaN"),
        ({"validation": (X[:0], Y[:0])}, DataError, "validation data is empty"),
        ({"teacher": nn.Linear(8, 5)}, ConfigError, "teacher puts out"),
        ({"teacher": nn.Linear(7, 3)}, DataError, "teacher doesn't run"),
        ({"temperature": 0.0}, ConfigError, "temperature"),
        ({"weight_decay": -1.0}, ConfigError, "weight_decay"),
        ({"batch_size": 2.5}, ConfigError, "whole numbers"),
    ],
)
def test_fine_tune_refuses(model: nn.Module, options: dict[str, Any], error: type[MipPruneError], text: str) -> None:
    given = {"model": model, "data": (X, Y), "validation": (X, Y), "epochs": 1, "progress": False} | options
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(error, match=text):
        fine_tune(**given)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not model.training
