"""Levenberg-Marquardt: a handful of damped Gauss-Newton steps on all kept weights of a small network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .cut import CutNetwork
from .dense import DenseRun

__all__ = ["MOST_WEIGHTS", "count_weights", "polish"]

#: Networks with more kept weights are left alone unless asked for: the steps would take longer than they gain.
MOST_WEIGHTS = 8_000
#: Products with J that estimate the diagonal of J'J.
_PROBES = 8

Flat = torch.Tensor


def polish(
    cut: CutNetwork, dense: DenseRun, *, steps: int = 8, damping: float = 0.1, iterations: int = 20, seed: int = 0,
    goes_on: Callable[[], bool] = lambda: True,
) -> list[float]:
    """Move all kept weights towards the dense network's logits, in place.

    Minimises the mean squared error of the logits by Levenberg-Marquardt (Marquardt 1963): each step solves::

        (J'J / N + damping D) d = J'r / N,    r the missing part of the logits, D an estimate of diag(J'J / N),

    by conjugate gradients preconditioned with D, J never formed; the step is taken if the error falls (damping / 4),
    and thrown away if not (damping * 8).  There is no learning rate and no batch to choose.  A step costs about
    3 ``iterations`` forward passes over the data, the memory one backward pass needs for all samples.

    Args:
        cut: the small network; its tensors are changed.
        dense: what the dense network computes on the calibration data.
        damping: the first one.
        seed: of the estimate D.
        steps: solves, whether or not they were taken.
        iterations: of conjugate gradients in each.
        goes_on: asked before every step.

    Returns:
        The mean squared error before, and after every step.
    """
    names = _trainable(cut)
    inputs = [torch.cat([env[name] for env in dense.inputs]) for name in cut.graph.program.captured.inputs]
    generator = torch.Generator().manual_seed(seed)
    errors = [_error(cut, inputs, dense.logits)]
    for _ in range(steps):
        if not goes_on():
            break
        linear = _Linearised(cut, names, inputs)
        rest = dense.logits - linear.output.detach()
        n = len(rest)
        gradient = linear.transposed(rest) / n
        signs = [torch.randint(0, 2, rest.shape, generator=generator).to(rest) * 2 - 1 for _ in range(_PROBES)]
        scale = torch.stack([linear.transposed(s) ** 2 for s in signs]).mean(0) / n
        scale = scale.clamp_min(1e-4 * float(scale.mean()))
        move = _conjugate_gradients(linear, damping * scale, gradient, scale * (1 + damping), iterations)
        before = [cut.tensors[name].clone() for name in names]
        _add(cut, names, before, move)
        error = _error(cut, inputs, dense.logits)
        if error < errors[-1]:
            damping /= 4
            errors.append(error)
        else:
            damping *= 8
            _add(cut, names, before, torch.zeros_like(move))
            errors.append(errors[-1])
    return errors


def count_weights(cut: CutNetwork) -> int:
    """How many weights of ``cut`` :func:`polish` would move."""
    return sum(cut.tensors[name].numel() for name in _trainable(cut))


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


class _Linearised:
    """The logits as a linear map of small changes of the weights: products with J and J', one forward pass in all."""

    def __init__(self, cut: CutNetwork, names: list[str], inputs: list[torch.Tensor]) -> None:
        fresh = {id(cut.tensors[name]): cut.tensors[name].detach().clone().requires_grad_(True) for name in names}
        tensors = {node: fresh.get(id(t), t) for node, t in cut.tensors.items()}
        self.leaves = [tensors[name] for name in names]
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivatives
            self.output = cut.evaluate(inputs, tensors)
        self.dual = torch.zeros_like(self.output, requires_grad=True)
        pulled = torch.autograd.grad(
            self.output, self.leaves, self.dual, create_graph=True, allow_unused=True, materialize_grads=True
        )
        self.pulled = torch.cat([p.flatten() for p in pulled])  # J'u, linear in u: its transpose is J

    def forward(self, v: Flat) -> torch.Tensor:
        return torch.autograd.grad(self.pulled, self.dual, v, retain_graph=True)[0]

    def transposed(self, u: torch.Tensor) -> Flat:
        parts = torch.autograd.grad(
            self.output, self.leaves, u, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([p.flatten() for p in parts])


def _conjugate_gradients(linear: _Linearised, damped: Flat, right: Flat, diagonal: Flat, iterations: int) -> Flat:
    """Solves (J'J / N + diag(damped)) x = right, preconditioned with ``diagonal``."""
    x = torch.zeros_like(right)
    residual = right.clone()
    direction = preconditioned = residual / diagonal
    energy = float(residual @ preconditioned)
    for _ in range(iterations):
        image = linear.transposed(linear.forward(direction)) / len(linear.output) + damped * direction
        curvature = float(direction @ image)
        if not curvature > 0 or not energy > 0:
            break
        x = x + energy / curvature * direction
        residual = residual - energy / curvature * image
        preconditioned = residual / diagonal
        after = float(residual @ preconditioned)
        direction = preconditioned + after / energy * direction
        energy = after
    return x


@torch.no_grad()
def _error(cut: CutNetwork, inputs: list[torch.Tensor], target: torch.Tensor) -> float:
    return float(((cut.run(inputs) - target).double() ** 2).sum() / len(target))


@torch.no_grad()
def _add(cut: CutNetwork, names: list[str], before: list[torch.Tensor], move: Flat) -> None:
    at = 0
    for name, old in zip(names, before, strict=True):
        cut.tensors[name].copy_(old + move[at : at + old.numel()].reshape(old.shape))
        at += old.numel()
