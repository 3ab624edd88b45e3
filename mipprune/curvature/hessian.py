"""How sharp a minimum is: products with the Hessian and the Gauss-Newton matrix, and their largest eigenvalues."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import nn

from ..errors import ConfigError, ModelStateError
from ..game.data import LabelledData
from ..game.values import check_class_targets
from ..records import Record, frozen_array
from .checks import checked_samples, plain_attention
from .kronecker import kfac_factors, spectral_radius

__all__ = ["CurvatureOperator", "Sharpness", "TopEigenvalues", "hessian_top_eigenvalues", "sharpness"]

KINDS = ("hessian", "gauss_newton")


class CurvatureOperator(LinearOperator):
    """The matrix of second derivatives of the mean cross-entropy in the weights, as a scipy ``LinearOperator``.

    A product costs about two backward passes over the data; nothing of size n_weights^2 is ever formed.  Works in
    float64 on a copy of the model.  Rows follow ``model.named_parameters()``, those that require a gradient, each
    flattened.

    Args:
        model: in evaluation mode, logits of shape (N, C).
        data: samples in any form that :func:`mipprune.prune` takes.
        batch_size: samples at a time.
        kind: ``"hessian"`` or ``"gauss_newton"`` (the Jacobian's square weighted with ``diag(p) - p p'``; positive
            semidefinite, and the Fisher matrix of this loss).
        relative: scale row and column i by ``|w_i|``: the curvature in relative changes of the weights.  Multiplying
            the weights into a ReLU by c and those out of it by 1/c leaves this matrix's eigenvalues as they are
            (adaptive sharpness, 2102.11600), while those of the plain Hessian can be made anything.

    Raises:
        ConfigError: another kind.
        ModelStateError: the model is in training mode, has no weights, or some that aren't finite.
        DataError: no samples, targets that aren't class numbers, inputs that don't fit.
    """

    def __init__(
        self, model: nn.Module, data: Any, kind: str = "hessian", *, relative: bool = False, batch_size: int = 512
    ) -> None:
        if kind not in KINDS:
            raise ConfigError(f"kind: expected one of {KINDS}, got {kind!r}")
        self.kind, self.batch_size = kind, batch_size
        self.model = copy.deepcopy(model).double()
        self.data: LabelledData = checked_samples(self.model, data, "the loss's curvature is a mean over independent "
                                                  "samples")
        self.weights = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        if not self.weights:
            raise ModelStateError(f"{type(model).__name__} has no parameter that requires a gradient; unfreeze what is "
                                  f"to be measured with requires_grad_()")
        with torch.no_grad():
            check_class_targets(self._logits(self.weights, self.data.take(slice(0, 1)).inputs),
                                self.data.targets[:1], "calibration data")
        flat = torch.cat([w.reshape(-1) for w in self.weights.values()])
        self.scale = flat.abs() if relative else None
        self.n_products = 0
        super().__init__(np.float64, (len(flat), len(flat)))

    @property
    def squared_norm(self) -> float:
        """Sum of the squared weights."""
        return float(sum((w**2).sum() for w in self.weights.values()))

    def _matvec(self, vector: np.ndarray) -> np.ndarray:
        self.n_products += 1
        v = torch.from_numpy(np.array(vector, dtype=np.float64).reshape(-1)).to(self.data.targets.device)
        if self.scale is not None:
            v = v * self.scale
        pieces = v.split([w.numel() for w in self.weights.values()])
        direction = {n: p.reshape(w.shape) for (n, w), p in zip(self.weights.items(), pieces, strict=True)}
        product = self._hessian if self.kind == "hessian" else self._gauss_newton
        total = torch.zeros_like(v)
        for part in self.data.batches(self.batch_size):
            with plain_attention():
                found = product(direction, part)
            total += torch.cat([found[name].detach().reshape(-1) for name in self.weights])
        total /= len(self.data)
        return (total if self.scale is None else total * self.scale).cpu().numpy()

    def _hessian(self, direction: dict[str, torch.Tensor], part: LabelledData) -> dict[str, torch.Tensor]:
        """Forward over reverse: the derivative of the gradient along ``direction``."""

        def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
            return F.cross_entropy(self._logits(weights, part.inputs), part.targets.long(), reduction="sum")

        return torch.func.jvp(torch.func.grad(loss), (self.weights,), (direction,))[1]

    def _gauss_newton(self, direction: dict[str, torch.Tensor], part: LabelledData) -> dict[str, torch.Tensor]:
        """``J' B J v``: forward mode, the output curvature, reverse mode."""

        def outputs(weights: dict[str, torch.Tensor]) -> torch.Tensor:
            return self._logits(weights, part.inputs)

        logits, moved = torch.func.jvp(outputs, (self.weights,), (direction,))[:2]
        p = torch.softmax(logits, 1)
        bent = p * (moved - (p * moved).sum(1, keepdim=True))
        return torch.func.vjp(outputs, self.weights)[1](bent)[0]

    def _logits(self, weights: dict[str, torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        out = torch.func.functional_call(self.model, weights, inputs)
        return out[0] if isinstance(out, (tuple, list)) else out


@dataclasses.dataclass(frozen=True, eq=False)
class TopEigenvalues(Record):
    """The largest eigenvalues of a symmetric matrix that is known by its products.

    Attributes:
        values: float64 (k,), falling.
        residuals: float64 (k,): ``|M v - value v|`` of the unit eigenvectors; some eigenvalue of M lies within that.
        n_products: products with the matrix that were spent.
        kind, relative: of the matrix, see :class:`CurvatureOperator`.
    """

    values: np.ndarray
    residuals: np.ndarray
    n_products: int
    kind: str
    relative: bool


def hessian_top_eigenvalues(
    model: nn.Module, data: Any, k: int = 1, *, kind: str = "hessian", relative: bool = False, tol: float = 1e-6,
    batch_size: int = 512, seed: int = 0,
) -> TopEigenvalues:
    """The ``k`` algebraically largest eigenvalues of the Hessian (or Gauss-Newton matrix), by Lanczos in float64.

    ARPACK's implicitly restarted Lanczos method from a seeded start; see :class:`CurvatureOperator` for the matrix.

    Args:
        model, data, kind, relative, batch_size: of :class:`CurvatureOperator`.
        k: from 1 to the number of weights.
        tol: relative accuracy at which ARPACK stops.
        seed: of the start.

    Raises:
        ConfigError: k or tol out of range.
        ModelStateError: the method didn't converge; says how far it came.
    """
    matrix = CurvatureOperator(model, data, kind, relative=relative, batch_size=batch_size)
    n = matrix.shape[0]
    if not 1 <= k <= n or not tol > 0:
        raise ConfigError(f"k must lie in 1..{n} (the number of weights) and tol above 0, got {k} and {tol}")
    if n < max(16, 2 * k + 2):  # too small for a Krylov space: form the matrix
        dense = matrix.matmat(np.eye(n))
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
        values, vectors = values[-k:], vectors[:, -k:]
    else:
        start = np.random.default_rng(seed).standard_normal(n)
        try:
            values, vectors = eigsh(matrix, k, which="LA", v0=start, tol=tol)
        except ArpackNoConvergence as error:
            raise ModelStateError(f"Lanczos found {len(error.eigenvalues)} of {k} eigenvalues in {matrix.n_products} "
                                  f"products; raise tol (now {tol})") from error
    order = np.argsort(-values)
    residuals = [float(np.linalg.norm(matrix.matvec(vectors[:, i]) - values[i] * vectors[:, i])) for i in order]
    return TopEigenvalues(frozen_array(values[order]), frozen_array(residuals), matrix.n_products, kind, relative)


@dataclasses.dataclass(frozen=True, eq=False)
class Sharpness(Record):
    """Sharpness of one network on one data set, in the units that people compare.

    Attributes:
        top_eigenvalue: of the Hessian of the mean cross-entropy, nats per squared weight.
        relative: top eigenvalue of the Hessian in relative changes of the weights, nats; doesn't change when a ReLU
            network's weights are rescaled without changing its function.
        norm_scaled: ``top_eigenvalue * |w|^2``, nats: doesn't change when *all* weights are scaled and the function
            stays (a network that is normalised behind every layer), but does under rescaling between layers.
        kfac_sum: :func:`spectral_radius` of the exact K-FAC factors, summed over layers.
        n_weights, n_samples: what it was measured on.
    """

    top_eigenvalue: float
    relative: float
    norm_scaled: float
    kfac_sum: float
    n_weights: int
    n_samples: int


def sharpness(model: nn.Module, data: Any, *, tol: float = 1e-4, seed: int = 0) -> Sharpness:
    """Measure :class:`Sharpness` of ``model`` (in evaluation mode) on ``data``; raises what its parts raise.

    Args:
        model: logits of shape (N, C).
        data: samples in any form that :func:`mipprune.prune` takes.
        tol, seed: of :func:`hessian_top_eigenvalues`.
    """
    plain = CurvatureOperator(model, data)
    top = float(hessian_top_eigenvalues(model, data, tol=tol, seed=seed).values[0])
    relative = float(hessian_top_eigenvalues(model, data, relative=True, tol=tol, seed=seed).values[0])
    return Sharpness(top, relative, top * plain.squared_norm, spectral_radius(kfac_factors(model, data)),
                     plain.shape[0], len(plain.data))
