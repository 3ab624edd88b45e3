"""Curvature written out: dense second derivatives, patches by slicing, one sample and one Jacobian at a time."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["dense_curvature", "kfac_reference"]


def dense_curvature(model: nn.Module, x: torch.Tensor, y: torch.Tensor, kind: str = "hessian") -> np.ndarray:
    """The mean cross-entropy's Hessian or Gauss-Newton matrix in ``model.parameters()``: float64 (n, n).

    Forms everything: O(n^2) memory, and for the Gauss-Newton matrix one Jacobian per sample.
    """
    model = copy.deepcopy(model)  # functional_call leaves a module that is called twice without its parameters
    weights = {name: p.detach() for name, p in model.named_parameters()}
    flat = torch.cat([w.reshape(-1) for w in weights.values()])

    def logits(vector: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        pieces = vector.split([w.numel() for w in weights.values()])
        own = {name: piece.reshape(w.shape) for (name, w), piece in zip(weights.items(), pieces, strict=True)}
        return torch.func.functional_call(model, own, (inputs,))

    if kind == "hessian":
        return torch.autograd.functional.hessian(lambda v: F.cross_entropy(logits(v, x), y), flat).numpy()
    total = np.zeros((len(flat), len(flat)))
    for k in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda v, k=k: logits(v, x[k : k + 1])[0], flat).numpy()
        p = torch.softmax(logits(flat, x[k : k + 1])[0], 0).detach().numpy()
        total += jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian / len(x)
    return total


def kfac_reference(
    model: nn.Module, layer: str, x: torch.Tensor, sharing: str = "expand"
) -> tuple[np.ndarray, np.ndarray]:
    """K-FAC factors (groups, d, d) and (groups, o, o) of a ``layer`` that is called once, by loops."""
    module = model.get_submodule(layer)
    groups = getattr(module, "groups", 1)
    a: list[list[np.ndarray]] = [[] for _ in range(groups)]
    g: list[list[np.ndarray]] = [[] for _ in range(groups)]
    for k in range(len(x)):
        seen, out = _call(model, module, x[k : k + 1])

        def rest(z: torch.Tensor, k: int = k) -> torch.Tensor:
            handle = module.register_forward_hook(lambda m, args, output: z.clone())
            try:
                return model(x[k : k + 1])[0]
            finally:
                handle.remove()

        p = torch.softmax(model(x[k : k + 1])[0], 0).detach().numpy()
        jacobian = torch.autograd.functional.jacobian(rest, out)[:, 0].numpy()
        positions = _positions(module, seen[0].numpy(), jacobian)
        if sharing == "reduce":
            inputs = np.mean([read for read, _ in positions], axis=0)
            positions = [(inputs, np.sum([derivatives for _, derivatives in positions], axis=0))]
        for inputs, derivatives in positions:
            for group in range(groups):
                row = np.array_split(inputs, groups)[group].ravel()
                a[group].append(np.append(row, 1.0) if module.bias is not None else row)
                j = np.array_split(derivatives, groups, axis=1)[group]
                g[group].append(j.T @ (np.diag(p) - np.outer(p, p)) @ j)
    count = len(g[0])
    return (
        np.array([sum(np.outer(v, v) for v in rows) / len(x) for rows in a]),
        np.array([sum(rows) / count for rows in g]),
    )


def _call(model: nn.Module, module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    kept: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda m, args, out: kept.extend([args[0].clone(), out.clone()]))
    with torch.no_grad():
        model(x)
    handle.remove()
    return kept[0], kept[1]


def _positions(module: nn.Module, x: np.ndarray, jacobian: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(what is read, derivatives (C, out)) at every position of one sample."""
    if isinstance(module, nn.Linear):
        classes = len(jacobian)
        rows, derivatives = x.reshape(-1, x.shape[-1]), jacobian.reshape(classes, -1, jacobian.shape[-1])
        return [(rows[t], derivatives[:, t]) for t in range(len(rows))]
    assert isinstance(module, nn.modules.conv._ConvNd)
    sides = np.array(module._reversed_padding_repeated_twice).reshape(-1, 2)[::-1]
    mode = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}[module.padding_mode]
    padded = np.pad(x, [(0, 0), *(tuple(s) for s in sides)], mode=mode)  # type: ignore[call-overload]
    out = []
    for place in itertools.product(*(range(n) for n in jacobian.shape[2:])):
        window: tuple[Any, ...] = (slice(None), *(
            slice(t * s, t * s + (k - 1) * d + 1, d)
            for t, s, k, d in zip(place, module.stride, module.kernel_size, module.dilation)
        ))
        here: tuple[Any, ...] = (slice(None), slice(None), *place)
        out.append((padded[window], jacobian[here]))
    return out
