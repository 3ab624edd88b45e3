"""Levenberg-Marquardt: a handful of damped Gauss-Newton steps on all kept weights of a small network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .cut import CutNetwork
from .dense import DenseRun
from .krylov import Krylov

__all__ = ["MOST_WEIGHTS", "count_weights", "polish"]

#: Networks with more kept weights are left alone unless asked for: the steps would take longer than they gain.
MOST_WEIGHTS = 100_000
#: Products with J' per step that estimate the diagonal of the curvature; the estimate is averaged over steps.
_PROBES = 8
#: Dampings tried per step, each this factor from the last; what a step without success multiplies the damping by.
_TRIALS, _FACTOR, _BACK = 8, 4.0, 64.0
#: Fewest and most samples of the curvature.
_FEWEST, _MOST = 256, 2048
#: A Krylov space is large enough when the system's relative residual is this, at the smallest damping likely tried.
_ENOUGH = 0.05

Flat = torch.Tensor


@torch.enable_grad()  # whatever the caller has set
def polish(
    cut: CutNetwork, dense: DenseRun, *, steps: int = 12, damping: float = 0.1, iterations: int = 40,
    share: float = 0.3, temperature: float = 4.0, seed: int = 0, judge: Callable[[], float] | None = None,
    patience: int = 3, goes_on: Callable[[], bool] = lambda: True,
) -> list[float]:
    """Move all kept weights towards the dense network's softened outputs, in place.

    Minimises f = t^2 KL(dense || cut at temperature t), mean over samples, by Levenberg-Marquardt (Marquardt 1963)
    with the generalised Gauss-Newton matrix (Schraudolph 2002)::

        (G + damping D) d = -grad f,    G = J' (diag(q) - q q') J / N,

    J the logits' Jacobian (never formed), q the cut network's softened outputs, D the geometric mean of an estimate of
    diag(G) and its mean.  Every step builds one Krylov space of D^-1/2 G D^-1/2 by Lanczos, in which the system is
    solved for as many dampings as one likes; the one that lowers f most is taken, the old weights stay if none does.
    There is no learning rate and no batch to choose: f, its gradient and every decision see all samples, only G is that
    of a random ``share``.  A step costs about 3 ``iterations`` forward passes over that share, and its memory is what
    one backward pass needs for it.

    Args:
        cut: the small network; its tensors are changed.
        dense: what the dense network computes on the calibration data.
        steps: solves, whether or not they were taken.
        damping: the first one, relative to D.
        iterations: of Lanczos in each step, at most.
        share: of the samples, for G: at least 256 samples, at most 2,048.
        temperature: t.
        seed: of the samples of G and of the estimate of D.
        judge: asked for the loss on other data after every step; the best weights by it stay, those before the first
            step among them.  Without it the last ones stay.
        patience: with ``judge``, end after so many steps without a new best.
        goes_on: asked before every step.

    Returns:
        f before, and after every step, whatever the judge said of it.
    """
    problem = _Problem(cut, dense, temperature)
    generator = torch.Generator().manual_seed(seed)
    samples = min(problem.n, max(_FEWEST, min(_MOST, int(share * problem.n))))
    diagonal: Flat | None = None
    losses = [problem.loss()]
    best = (judge(), problem.weights(), 0) if judge is not None else None
    for step in range(1, steps + 1):
        if not goes_on() or (best is not None and step - best[2] > patience):
            break
        curvature = problem.curvature(torch.randperm(problem.n, generator=generator)[:samples], generator)
        diagonal = curvature.diagonal if diagonal is None else (diagonal + curvature.diagonal) / 2
        loss, damping = _step(problem, curvature, diagonal, damping, iterations, losses[-1])
        if loss < losses[-1] and best is not None and judge is not None and (value := judge()) < best[0]:
            best = (value, problem.weights(), step)
        losses.append(loss)
    if best is not None:
        problem.assign(best[1])
    return losses


def count_weights(cut: CutNetwork) -> int:
    """How many weights of ``cut`` :func:`polish` would move."""
    return sum(cut.tensors[name].numel() for name in _trainable(cut))


def _step(
    problem: _Problem, curvature: _Curvature, diagonal: Flat, damping: float, iterations: int, loss: float
) -> tuple[float, float]:
    """One step from weights of this ``loss``, in place: the new loss, and the damping to go on with.

    Dampings on a ladder around the last one are tried, as long as the loss falls; if none lowers it, nothing moves.
    """
    mean = diagonal.mean()
    scale = (diagonal.clamp_min(1e-4 * mean) * mean).pow(-0.25)  # of D^-1/2
    space = Krylov(
        lambda v: scale * curvature.product(scale * v), -scale * problem.gradient(), iterations, _ENOUGH,
        damping / _FACTOR,
    )
    before = problem.weights()

    def attempt(value: float) -> float:
        problem.assign(before + scale * space.solve(value))
        found = problem.loss()
        return found if np.isfinite(found) else np.inf

    best, least = damping, attempt(damping)
    trials = 1
    for factor in (_FACTOR, 1 / _FACTOR):
        improved = False
        while trials < _TRIALS:
            value = attempt(best * factor)
            trials += 1
            if value >= least:
                break
            best, least, improved = best * factor, value, True
        if improved:
            break
    if least < loss:
        problem.assign(before + scale * space.solve(best))
        return least, best
    problem.assign(before)
    return loss, damping * _BACK


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


class _Problem:
    """The divergence of the dense network's outputs from the small one's, as a function of the flat weights (P,)."""

    def __init__(self, cut: CutNetwork, dense: DenseRun, temperature: float) -> None:
        self.cut, self.temperature = cut, temperature
        self.names = _trainable(cut)
        inputs = cut.graph.program.captured.inputs
        self.batches = [
            [env[name][:n] for name in inputs] for env, n in zip(dense.inputs, dense.fitted, strict=True) if n
        ]
        self.n = sum(len(batch[0]) for batch in self.batches)
        self.inputs = [torch.cat(parts) for parts in zip(*self.batches, strict=True)]
        soft = torch.log_softmax(dense.logits / temperature, -1)
        self.target = soft.exp()
        self.rows = soft.numel() // soft.shape[-1]
        self.entropy = float((self.target * soft).double().sum()) / self.rows
        self._parts = self.target.split([len(batch[0]) for batch in self.batches])

    @torch.no_grad()
    def weights(self) -> Flat:
        return torch.cat([self.cut.tensors[name].flatten() for name in self.names])

    @torch.no_grad()
    def assign(self, flat: Flat) -> None:
        sizes = [self.cut.tensors[name].numel() for name in self.names]
        for name, part in zip(self.names, flat.split(sizes), strict=True):
            self.cut.tensors[name].copy_(part.reshape(self.cut.tensors[name].shape))

    @torch.no_grad()
    def loss(self) -> float:
        """t^2 KL(dense || cut) in nats, mean over samples."""
        total = 0.0
        for batch, target in zip(self.batches, self._parts, strict=True):
            total += float((target * torch.log_softmax(self.cut.run(batch) / self.temperature, -1)).double().sum())
        return self.temperature**2 * (self.entropy - total / self.rows)

    def gradient(self) -> Flat:
        """Of :meth:`loss`: (P,)."""
        total: Flat | None = None
        for batch, target in zip(self.batches, self._parts, strict=True):
            leaves, tensors = self._leaves()
            soft = torch.log_softmax(self.cut.evaluate(batch, tensors) / self.temperature, -1)
            part = _flat_gradient(-(self.temperature**2) / self.rows * (target * soft).sum(), leaves)
            total = part if total is None else total + part
        assert total is not None
        return total

    def curvature(self, samples: torch.Tensor, generator: torch.Generator) -> _Curvature:
        leaves, tensors = self._leaves()
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivatives
            logits = self.cut.evaluate([x[samples.to(x.device)] for x in self.inputs], tensors)
        return _Curvature(logits, leaves, self.temperature, generator)

    def _leaves(self) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """Copies of the trainable tensors, and all tensors with these among them."""
        own = self.cut.tensors
        fresh = {id(own[name]): own[name].detach().clone().requires_grad_(True) for name in self.names}
        tensors = {node: fresh.get(id(t), t) for node, t in own.items()}
        return [tensors[name] for name in self.names], tensors


class _Curvature:
    """G = J' (diag(q) - q q') J / N by two passes per product; one forward pass in all.

    Attributes:
        diagonal: (P,), an unbiased estimate of diag(G): mean square of J' L s over random signs s, L L' the middle
            factor: L = diag(sqrt q) - q sqrt(q)'.
    """

    def __init__(
        self, logits: torch.Tensor, leaves: list[torch.Tensor], temperature: float, generator: torch.Generator
    ) -> None:
        self.logits, self.leaves = logits, leaves
        self.q = torch.softmax(logits.detach() / temperature, -1)
        self.rows = self.q.numel() // self.q.shape[-1]
        self.dual = torch.zeros_like(logits, requires_grad=True)
        self.pulled = _flat_gradient(logits, leaves, self.dual, create_graph=True)  # J'u: its transpose is J
        root = self.q.sqrt()
        squares = torch.zeros_like(self.pulled.detach())
        for _ in range(_PROBES):
            signs = torch.randint(0, 2, self.q.shape, generator=generator).to(self.q) * 2 - 1
            spread = root * signs
            squares += self.transposed(spread - self.q * spread.sum(-1, keepdim=True)) ** 2
        self.diagonal = squares / (_PROBES * self.rows)

    def product(self, v: Flat) -> Flat:
        """G v."""
        y = self.q * self.forward(v)
        return self.transposed(y - self.q * y.sum(-1, keepdim=True)) / self.rows

    def forward(self, v: Flat) -> torch.Tensor:
        """J v, in the logits' shape."""
        return torch.autograd.grad(self.pulled, self.dual, v, retain_graph=True)[0]

    def transposed(self, u: torch.Tensor) -> Flat:
        """J'u."""
        return _flat_gradient(self.logits, self.leaves, u)


def _flat_gradient(
    value: torch.Tensor, leaves: list[torch.Tensor], seeds: torch.Tensor | None = None, create_graph: bool = False
) -> Flat:
    parts = torch.autograd.grad(
        value, leaves, seeds, create_graph=create_graph, retain_graph=seeds is not None, allow_unused=True,
        materialize_grads=True,
    )
    return torch.cat([p.flatten() for p in parts])
