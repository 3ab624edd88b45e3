"""Networks of the studies beside this file."""

from torch import nn


def narrow_mlp() -> nn.Module:
    """64-32-12-10: the second hidden layer is small enough for all of its 4,096 coalitions."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 10))


def mlp() -> nn.Module:
    """64-64-32-10."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
