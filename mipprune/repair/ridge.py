"""Ridge regression from moments, the damping chosen by generalised cross-validation."""

from __future__ import annotations

import dataclasses

import torch

from ..curvature.positive import gram

__all__ = ["RIDGES", "Accumulator", "Moments", "cross_validated", "solve_ridge"]

#: Ridges to choose from, relative to the mean variance of a layer's inputs.
RIDGES = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)


@dataclasses.dataclass
class Moments:
    """Moments of a layer's inputs and targets: (g, D, D), (g, D, m), (g, D), (g, m), (g, m), all float64.

    ``xx``, ``xt`` and ``tt`` are about the means where the layer has a free constant, else about 0.
    """

    xx: torch.Tensor
    xt: torch.Tensor
    x: torch.Tensor
    t: torch.Tensor
    tt: torch.Tensor
    rows: int


class Accumulator:
    """Sums up moments part by part, in a metric over positions.

    Args:
        centred: whether moments are wanted about the means.
    """

    def __init__(self, centred: bool) -> None:
        self.centred = centred
        self._sums: list[torch.Tensor] = []
        self._shifts: tuple[torch.Tensor, torch.Tensor] | None = None
        self._rows = 0

    def add(self, x: torch.Tensor, t: torch.Tensor, root: torch.Tensor | None, fastest: bool) -> None:
        """More columns: ``x`` (g, D, R) and ``t`` (g, m, R).

        Args:
            root: (P, P), symmetric square root of the metric over positions; ``None`` is the identity.
            fastest: whether positions or samples run fastest along R.
        """
        self._rows += x.shape[2]
        if self.centred:  # means near the data's own: products about 0 would drown what varies in single precision
            if self._shifts is None:
                self._shifts = x.mean(2, keepdim=True), t.mean(2, keepdim=True)
            x, t = x - self._shifts[0], t - self._shifts[1]
        firsts = [x.sum(2), t.sum(2)]
        if root is None:
            ones = [*firsts, x.new_tensor(float(x.shape[2]))]
        else:
            x, t = _mixed(x, root, fastest), _mixed(t, root, fastest)
            side = root.sum(0)
            samples = x.shape[2] // len(side)
            weight = side.repeat(samples) if fastest else side.repeat_interleave(samples)
            ones = [x @ weight, t @ weight, weight @ weight]
        part = [gram(x[0])[None] if len(x) == 1 else x @ x.mT, x @ t.mT, (t * t).sum(2), *firsts, *ones]
        sums = [p.double() for p in part]
        self._sums = [s + p for s, p in zip(self._sums, sums, strict=True)] if self._sums else sums

    def moments(self) -> Moments:
        """Of everything added."""
        xx, xt, tt, x, t, x1, t1, one = (s / self._rows for s in self._sums)
        if not self.centred:
            return Moments(xx, xt, x, t, tt, self._rows)
        assert self._shifts is not None
        xx = xx - _outer(x, x1) - _outer(x1, x) + one * _outer(x, x)
        xt = xt - _outer(x, t1) - _outer(x1, t) + one * _outer(x, t)
        tt = tt - 2 * t * t1 + one * t**2
        return Moments(xx, xt, x + self._shifts[0][..., 0], t + self._shifts[1][..., 0], tt, self._rows)


def _mixed(x: torch.Tensor, root: torch.Tensor, fastest: bool) -> torch.Tensor:
    """``root`` applied along the positions."""
    if x.numel() == 0:
        return x
    p = len(root)
    if fastest:
        return (x.reshape(*x.shape[:2], -1, p) @ root).reshape(x.shape)
    return (root @ x.reshape(*x.shape[:2], p, -1)).reshape(x.shape)


def solve_ridge(m: Moments, old: torch.Tensor, ridge: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """New weights (g, m, D), the mean of W x, and the bias that makes the mean exact.

    Args:
        m: of the layer.
        old: (g, m, D), the present weights, which the ridge pulls towards.
        ridge: (g, 1), in units of the mean variance of the inputs.
    """
    damp = ridge * _scale(m.xx)
    left = m.xt - m.xx @ old.mT  # what the old weights leave over
    lower, failed = torch.linalg.cholesky_ex(m.xx + torch.diag_embed(damp.expand(-1, m.xx.shape[-1])))
    if failed.any():  # inputs that hardly vary: rounding has left a variance below zero, and tells how large it is
        value, vector = torch.linalg.eigh(m.xx)
        damp = damp - value[:, :1].clamp_max(0)
        step = vector @ ((vector.mT @ left) / (value.clamp_min(0) + damp)[..., None])
    else:
        step = torch.cholesky_solve(left, lower)
    new = old + step.mT
    mean = torch.einsum("gmd,gd->gm", new, m.x)
    return new, mean.flatten(), (m.t - mean).flatten()


def cross_validated(m: Moments, old: torch.Tensor) -> torch.Tensor:
    """The ridge (g, 1) of least generalised cross-validation error (Golub, Heath and Wahba 1979), out of RIDGES."""
    value, vector = torch.linalg.eigh(m.xx)
    value = value.clamp_min(0)
    turned = vector.mT @ (m.xt - m.xx @ old.mT)  # (g, D, m)
    rest = (m.tt - 2 * (old * m.xt.mT).sum(2) + ((old @ m.xx) * old).sum(2)).clamp_min(0)
    ridges = torch.tensor(RIDGES, dtype=value.dtype, device=value.device).expand(len(value), -1)  # (g, ridges)
    damped = value[:, None] + (_scale(m.xx) * ridges)[..., None]  # (g, ridges, D)
    kept = value[:, None] / damped
    shrink = (2 - kept) / damped
    weight = 1 / rest.clamp_min(1e-30)  # every output counts by its relative error
    error = ((rest[:, None] - shrink @ turned**2).clamp_min(0) * weight[:, None]).mean(2)
    error = error / (1 - kept.sum(2) / m.rows).clamp_min(1e-3) ** 2
    return ridges.gather(1, error.argmin(1, keepdim=True))


def _scale(xx: torch.Tensor) -> torch.Tensor:
    """Mean variance of the inputs: (g, 1); of inputs that don't vary, the size of its rounding."""
    return xx.diagonal(dim1=1, dim2=2).abs().mean(1, keepdim=True).clamp_min(1e-30)


def _outer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a[:, :, None] * b[:, None, :]
