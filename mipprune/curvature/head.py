"""The auxiliary linear head of one layer: the part of the decoupled, convex layer problem that needs the network."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax

from ..game.data import LabelledData
from ..graph import UnitGraph
from ..records import Record, frozen_array

__all__ = ["HeadFit", "fit_linear_head"]


@dataclasses.dataclass(frozen=True, eq=False)
class HeadFit(Record):
    """Multinomial logistic regression on one layer's activations.

    Attributes:
        activations: float64 (N, n): the mean over positions of what each unit hands to its readers.
        weight: float64 (C, n).
        bias: float64 (C,).
        targets: int64 (N,).
        loss: mean cross-entropy of the head on the same samples, without the penalty.
        accuracy: its accuracy on the same samples; low means that the layer's task isn't linearly readable here.
    """

    activations: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    targets: np.ndarray
    loss: float
    accuracy: float


def fit_linear_head(graph: UnitGraph, layer: str, data: LabelledData, l2: float = 1e-4) -> HeadFit:
    """Train a linear classifier on the activations of ``layer`` (2002.07259's decoupled layer, with a linear head).

    Minimises mean cross-entropy + ``l2/2 |weight|^2`` on activations scaled to unit root mean square, by L-BFGS in
    float64, and returns the weights for the unscaled activations.

    Args:
        graph: the traced network.
        layer: module path.
        data: calibration samples, with class numbers as targets.
        l2: weight of the penalty, in the scaled activations.
    """
    group = graph.group(layer)
    with torch.no_grad():
        parts = [graph.program.activations(part.inputs, group.units).double().cpu() for part in data.batches()]
    activations = torch.cat(parts).numpy()
    targets = data.targets.cpu().numpy().astype(np.int64)
    with torch.no_grad():
        classes = int(graph.program.run(data.take(slice(0, 1)).inputs).shape[-1])
    scale = np.sqrt((activations**2).mean(0))
    scale[scale == 0] = 1.0
    x = np.hstack([activations / scale, np.ones((len(activations), 1))])
    onehot = np.eye(classes)[targets]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(classes, -1)
        logp = log_softmax(x @ w.T, axis=1)
        gradient = (np.exp(logp) - onehot).T @ x / len(x)
        gradient[:, :-1] += l2 * w[:, :-1]
        return float(-(logp * onehot).sum() / len(x) + l2 / 2 * (w[:, :-1] ** 2).sum()), gradient.ravel()

    found = minimize(objective, np.zeros(classes * x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    w = found.x.reshape(classes, -1)
    logp = log_softmax(x @ w.T, axis=1)
    return HeadFit(
        activations=frozen_array(activations),
        weight=frozen_array(w[:, :-1] / scale),
        bias=frozen_array(w[:, -1]),
        targets=frozen_array(targets, np.int64),
        loss=float(-logp[np.arange(len(x)), targets].mean()),
        accuracy=float((logp.argmax(1) == targets).mean()),
    )
