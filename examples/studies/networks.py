"""Networks of the studies beside this file."""

import torch
from torch import nn


def narrow_mlp() -> nn.Module:
    """64-32-12-10: the second hidden layer is small enough for all of its 4,096 coalitions."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 10))


def mlp() -> nn.Module:
    """64-64-32-10."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def tiny_mlp() -> nn.Module:
    """64-12-8-10: small enough for a program with a copy of the network per sample."""
    return nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10))


def fresh_mlp() -> nn.Module:
    """64-128-64-10 with the same untrained weights every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def untrained_mlp() -> nn.Module:
    """The same as ``mlp`` with the same untrained weights every time."""
    torch.manual_seed(0)
    return mlp()
