"""Ridge regression from moments, the damping chosen by generalised cross-validation."""

from __future__ import annotations

import dataclasses

import torch

__all__ = ["RIDGES", "Moments", "cross_validated", "solve_ridge"]

#: Ridges to choose from, relative to the mean variance of a layer's inputs.
RIDGES = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)


@dataclasses.dataclass
class Moments:
    """Moments of a layer's inputs and targets: (g, D, D), (g, D, m), (g, D), (g, m), (g, m), all float64."""

    xx: torch.Tensor
    xt: torch.Tensor
    x: torch.Tensor
    t: torch.Tensor
    tt: torch.Tensor
    rows: int


def solve_ridge(
    m: Moments, old: torch.Tensor, ridge: float | None, centred: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """New weights (g, m, D), the mean of W x, and the bias that makes the mean exact."""
    xx = m.xx - _outer(m.x, m.x) if centred else m.xx
    xt = m.xt - _outer(m.x, m.t) if centred else m.xt
    tt = m.tt - m.t**2 if centred else m.tt
    left = xt - xx @ old.mT  # covariance of the inputs with what the old weights leave over
    value, vector = torch.linalg.eigh(xx)
    value = value.clamp_min(0)
    turned = vector.mT @ left  # (g, D, m)
    scale = value.mean(1, keepdim=True).clamp_min(1e-30)
    if ridge is None:
        rest = tt - 2 * (old * xt.mT).sum(2) + ((old @ xx) * old).sum(2)
        damp = cross_validated(value, turned, rest.clamp_min(0), scale, m.rows)
    else:
        damp = ridge * scale
    new = old + (vector @ (turned / (value + damp)[..., None])).mT
    mean = torch.einsum("gmd,gd->gm", new, m.x)
    return new, mean.flatten(), (m.t - mean).flatten()


def cross_validated(
    value: torch.Tensor, turned: torch.Tensor, rest: torch.Tensor, scale: torch.Tensor, rows: int
) -> torch.Tensor:
    """The damping (g, 1) of least generalised cross-validation error (Golub, Heath and Wahba 1979), out of RIDGES."""
    trials = scale * torch.tensor(RIDGES, dtype=scale.dtype, device=scale.device)  # (g, ridges)
    kept = value[:, None] / (value[:, None] + trials[..., None])  # (g, ridges, D)
    shrink = (2 - kept) / (value[:, None] + trials[..., None])
    weight = 1 / rest.clamp_min(1e-30)  # every output counts by its relative error
    error = ((rest[:, None] - shrink @ turned**2).clamp_min(0) * weight[:, None]).mean(2)
    error = error / (1 - kept.sum(2) / rows).clamp_min(1e-3) ** 2
    return trials.gather(1, error.argmin(1, keepdim=True))


def _outer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a[:, :, None] * b[:, None, :]
