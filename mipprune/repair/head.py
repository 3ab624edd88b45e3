"""The last layer refitted as what it is: a convex problem."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import softmax

from ..graph.capture import is_integer_node
from .cut import CutNetwork
from .dense import DenseRun

__all__ = ["fit_head", "refit_head"]


def refit_head(
    cut: CutNetwork, dense: DenseRun, *, temperature: float = 4.0, labels: float = 0.0, l2: float = 1e-4,
    max_iter: int = 200,
) -> bool:
    """Fit the last linear layer of ``cut`` anew, as multinomial logistic regression, by L-BFGS in float64.

    Minimises over its weights and bias, on the samples of ``dense``::

        (1 - labels) t^2 KL(dense || cut at temperature t) + labels (cross-entropy) + l2/2 v |W - W_0|^2,

    v the mean square of the layer's inputs; convex, so that start and order don't matter.  The squared error of
    :func:`~mipprune.repair.refit` minds all logits alike, this one those that decide.

    Args:
        cut: the small network; its last layer is changed.
        dense: what the dense network computes on the calibration data.
        temperature: t, of both outputs.
        labels: share of the cross-entropy with the labels, from 0 to 1.
        l2: weight of the pull towards W_0.
        max_iter: of L-BFGS.

    Returns:
        Whether there is such a layer: one whose output, one row per sample, is the network's.
    """
    layer = dense.layers.get(cut.graph.program.captured.output.name)
    if layer is None or not layer.is_linear or dense.logits.ndim != 2:
        return False
    parts = [_value(cut, layer.data, env, size) for env, size in zip(dense.inputs, dense.sizes, strict=True)]
    fit_head(cut, dense, torch.cat(parts), temperature=temperature, labels=labels, l2=l2, max_iter=max_iter)
    return True


def fit_head(
    cut: CutNetwork, dense: DenseRun, features: torch.Tensor, *, temperature: float = 4.0, labels: float = 0.0,
    l2: float = 1e-4, max_iter: int = 200,
) -> None:
    """:func:`refit_head` for known inputs of the last layer: ``features`` (N, D), one row per sample of ``dense``.

    The problem is solved in the basis that makes the inputs uncorrelated and of one size: a few steps are enough.
    """
    layer = dense.layers[cut.graph.program.captured.output.name]
    x = features.double().cpu().numpy()
    weight = cut.tensors[layer.weight]
    bias = cut.tensors[layer.bias] if layer.bias is not None else None
    if bias is not None:
        x = np.hstack([x, np.ones((len(x), 1))])
    old = weight.double() if bias is None else torch.cat([weight.double(), bias.double()[:, None]], 1)
    start = old.cpu().numpy()
    n = len(x)
    second = x.T @ x / n
    size = float(second.diagonal().mean())
    value, basis = np.linalg.eigh(second)
    basis = basis / np.sqrt(np.maximum(value, 0) + l2 * size)  # columns: D -> whitened
    white = x @ basis
    pull = l2 * size * (basis**2).sum(0)  # the eigenvectors are orthonormal: the penalty stays diagonal
    first = x @ start.T
    target = softmax(dense.logits.double().cpu().numpy() / temperature, axis=1)
    onehot = np.eye(len(start))[dense.data.targets.cpu().numpy()] if labels else np.zeros_like(target)
    soft_weight, error_weight = (1 - labels) * temperature**2 / n, (1 - labels) * temperature

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        move = flat.reshape(len(start), -1)
        z = first + white @ move.T
        loss = 0.5 * float((pull * move**2).sum())
        soft, p = _log_softmax(z / temperature)
        loss -= soft_weight * float((target * soft).sum())
        error = error_weight * (p - target)
        if labels:
            sharp, p = _log_softmax(z)
            loss -= labels * float((onehot * sharp).sum()) / n
            error = error + labels * (p - onehot)
        return loss, (error.T @ white / n + pull * move).ravel()

    found = minimize(objective, np.zeros(start.size), jac=True, method="L-BFGS-B", options={"maxiter": max_iter})
    new = torch.from_numpy(start + found.x.reshape(start.shape) @ basis.T).to(weight)
    with torch.no_grad():
        weight.copy_(new[:, : weight.shape[1]])
        if bias is not None:
            bias.copy_(new[:, -1])


def _log_softmax(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm and value of the softmax along rows."""
    z = z - z.max(1, keepdims=True)
    p = np.exp(z)
    total = p.sum(1, keepdims=True)
    return z - np.log(total), p / total


@torch.no_grad()
def _value(cut: CutNetwork, name: str, inputs: dict[str, torch.Tensor], size: int) -> torch.Tensor:
    env = dict(inputs)
    for node in cut.graph.program.captured.nodes:
        if name in env:
            break
        if not is_integer_node(node):
            env[node.name] = cut.step(node, env, size)
    return env[name]
