"""The last layer refitted as what it is: a convex problem."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from ..graph.capture import is_integer_node
from .cut import CutNetwork
from .refit import DenseRun

__all__ = ["refit_head"]


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
    x = torch.cat(parts).double().cpu().numpy()
    weight = cut.tensors[layer.weight]
    bias = cut.tensors[layer.bias] if layer.bias is not None else None
    if bias is not None:
        x = np.hstack([x, np.ones((len(x), 1))])
    old = weight.double() if bias is None else torch.cat([weight.double(), bias.double()[:, None]], 1)
    start = old.cpu().numpy()
    target = softmax(dense.logits.double().cpu().numpy() / temperature, axis=1)
    onehot = np.eye(len(start))[dense.data.targets.cpu().numpy()] if labels else 0.0
    pull = l2 * float((x**2).mean()) * np.ones(start.shape[1])
    n = len(x)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(start.shape)
        z = x @ w.T
        soft = log_softmax(z / temperature, axis=1)
        loss = -(1 - labels) * temperature**2 * (target * soft).sum() / n
        error = (1 - labels) * temperature * (np.exp(soft) - target)
        if labels:
            sharp = log_softmax(z, axis=1)
            loss -= labels * (onehot * sharp).sum() / n
            error = error + labels * (np.exp(sharp) - onehot)
        loss += 0.5 * (pull * (w - start) ** 2).sum()
        return float(loss), (error.T @ x / n + pull * (w - start)).ravel()

    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": max_iter})
    new = torch.from_numpy(found.x.reshape(start.shape)).to(weight)
    with torch.no_grad():
        weight.copy_(new[:, : weight.shape[1]])
        if bias is not None:
            bias.copy_(new[:, -1])
    return True


@torch.no_grad()
def _value(cut: CutNetwork, name: str, inputs: dict[str, torch.Tensor], size: int) -> torch.Tensor:
    env = dict(inputs)
    for node in cut.graph.program.captured.nodes:
        if name in env:
            break
        if not is_integer_node(node):
            env[node.name] = cut.step(node, env, size)
    return env[name]
