"""Levenberg-Marquardt: a handful of damped Gauss-Newton steps on all kept weights of a small network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.func import jacrev, vmap

from .cut import CutNetwork
from .refit import DenseRun

__all__ = ["MOST_WEIGHTS", "polish"]

#: More kept weights than this and the normal equations cost too much.
MOST_WEIGHTS = 8_000


def polish(
    cut: CutNetwork, dense: DenseRun, *, steps: int = 5, damping: float = 1e-2, batch_size: int = 64,
    n_samples: int | None = None, seed: int = 0,
) -> list[float]:
    """Move all kept weights towards the dense network's logits, in place.

    Minimises mean squared error of the logits by Levenberg-Marquardt (Marquardt 1963): each step solves

        (J'J / N + damping diag(J'J / N)) d = J'r / N,    r the missing part of the logits,

    is taken if the error falls (damping / 4), and thrown away if not (damping * 8).  No learning rate, no batches to
    choose.  P weights, N samples and C logits cost O(N C P^2 + P^3) a step.

    Args:
        steps: solves, whether or not they were taken.
        n_samples: how many of the samples make J, a fresh choice each step; the error is always that of all.

    Returns:
        The mean squared error before, and after every step.
    """
    names = _trainable(cut)
    parameters = {name: cut.tensors[name] for name in names}
    inputs = tuple(torch.cat([env[name] for env in dense.inputs]) for name in cut.graph.program.captured.inputs)
    generator = torch.Generator().manual_seed(seed)
    errors = [_error(cut, inputs, dense.logits)]
    for _ in range(steps):
        n = len(dense.logits)
        index = torch.arange(n)
        if n_samples is not None and n_samples < n:
            index = torch.randperm(n, generator=generator)[:n_samples]
        normal, gradient = _normal_equations(cut, parameters, tuple(x[index] for x in inputs), dense.logits[index], batch_size)
        scale = normal.diagonal().clamp_min(1e-8 * float(normal.diagonal().max()))
        before = {name: tensor.clone() for name, tensor in parameters.items()}
        while True:
            move = torch.linalg.solve(normal + damping * torch.diag(scale), gradient)
            _add(parameters, before, move)
            error = _error(cut, inputs, dense.logits)
            if error < errors[-1]:
                damping /= 4
                break
            damping *= 8
            if damping > 1e4:
                _add(parameters, before, torch.zeros_like(move))
                return errors
        errors.append(error)
    return errors


def _trainable(cut: CutNetwork) -> list[str]:
    own = {name for name, _ in cut.graph.model.named_parameters(remove_duplicate=False)}
    names = cut.graph.program.captured.tensors
    seen: set[int] = set()
    out = []
    for node, tensor in cut.tensors.items():
        if names[node] in own and tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            out.append(node)
    return out


def count_weights(cut: CutNetwork) -> int:
    """How many weights :func:`polish` would move."""
    return sum(cut.tensors[name].numel() for name in _trainable(cut))


def _normal_equations(
    cut: CutNetwork, parameters: dict[str, torch.Tensor], inputs: Sequence[torch.Tensor], target: torch.Tensor, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """J'J / N and J'r / N, float64."""

    def one(values: dict[str, torch.Tensor], *sample: torch.Tensor) -> torch.Tensor:
        return cut.evaluate([x[None] for x in sample], cut.tensors | values)[0]

    jacobian = vmap(jacrev(one), in_dims=(None, *[0] * len(inputs)))
    total = sum(p.numel() for p in parameters.values())
    normal = torch.zeros(total, total, dtype=torch.float64)
    gradient = torch.zeros(total, dtype=torch.float64)
    for start in range(0, len(target), batch_size):
        part = tuple(x[start : start + batch_size] for x in inputs)
        rows = jacobian(parameters, *part)
        flat = torch.cat([rows[name].flatten(2) for name in parameters], 2).flatten(0, 1)
        rest = (target[start : start + batch_size] - cut.run(part)).flatten()
        normal += (flat.T @ flat).double()
        gradient += (flat.T @ rest).double()
    return normal / len(target), gradient / len(target)


@torch.no_grad()
def _error(cut: CutNetwork, inputs: Sequence[torch.Tensor], target: torch.Tensor) -> float:
    return float(((cut.run(inputs) - target).double() ** 2).sum() / len(target))


@torch.no_grad()
def _add(parameters: dict[str, torch.Tensor], before: dict[str, torch.Tensor], move: torch.Tensor) -> None:
    at = 0
    for name, tensor in parameters.items():
        tensor.copy_(before[name] + move[at : at + tensor.numel()].reshape(tensor.shape).to(tensor.dtype))
        at += tensor.numel()
