"""The last layer refitted as what it is: a convex problem."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

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
    x = features.detach().double().cpu()
    weight = cut.tensors[layer.weight]
    bias = cut.tensors[layer.bias] if layer.bias is not None else None
    if bias is not None:
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    old = weight.double() if bias is None else torch.cat([weight.double(), bias.double()[:, None]], 1)
    start = old.detach().cpu()
    n = len(x)
    second = x.T @ x / n
    size = float(second.diagonal().mean())
    value, basis = torch.linalg.eigh(second)
    basis = basis / (value.clamp_min(0) + l2 * size).sqrt()  # columns: D -> whitened
    white = x @ basis
    pull = l2 * size * (basis**2).sum(0)  # the eigenvectors are orthonormal: the penalty stays diagonal
    first = x @ start.T
    target = torch.softmax(dense.logits.double().cpu() / temperature, 1)
    onehot = F.one_hot(dense.data.targets.cpu().long(), len(start)).double() if labels else torch.zeros_like(target)
    soft_weight, error_weight = (1 - labels) * temperature**2 / n, (1 - labels) * temperature

    # torch's products, not numpy's: their threads don't wait for one another
    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        move = torch.from_numpy(flat).reshape(len(start), -1)
        z = first + white @ move.T
        loss = 0.5 * float((pull * move**2).sum())
        soft = torch.log_softmax(z / temperature, 1)
        loss -= soft_weight * float((target * soft).sum())
        error = error_weight * (soft.exp() - target)
        if labels:
            sharp = torch.log_softmax(z, 1)
            loss -= labels * float((onehot * sharp).sum()) / n
            error = error + labels * (sharp.exp() - onehot)
        return loss, (error.T @ white / n + pull * move).flatten().numpy()

    begin = np.zeros(start.numel())
    found = minimize(objective, begin, jac=True, method="L-BFGS-B", options={"maxiter": max_iter})
    new = (start + torch.from_numpy(found.x).reshape(start.shape) @ basis.T).to(weight)
    with torch.no_grad():
        weight.copy_(new[:, : weight.shape[1]])
        if bias is not None:
            bias.copy_(new[:, -1])


@torch.no_grad()
def _value(cut: CutNetwork, name: str, inputs: dict[str, torch.Tensor], size: int) -> torch.Tensor:
    env = dict(inputs)
    for node in cut.graph.program.captured.nodes:
        if name in env:
            break
        if not is_integer_node(node):
            env[node.name] = cut.step(node, env, size)
    return env[name]
