"""Positive definite matrices: products, factor, inverse, and a proved bound on the largest eigenvalue."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from scipy.linalg import lapack
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

__all__ = ["above_largest", "factor", "gram", "inverse", "solve_factored", "solve_lower"]

#: Sizes up to which the largest eigenvalue is computed exactly, and the relative accuracy above.
FEW, NEAR = 128, 1e-3


def gram(x: torch.Tensor) -> torch.Tensor:
    """``x x'`` of a matrix (D, R), in its dtype; on the CPU by half the work, which torch doesn't ask BLAS for.

    Half precision becomes single: sums of squares overflow there, and BLAS has no such product.
    """
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if x.device.type != "cpu":
        return x @ x.mT
    rows = x.detach().numpy()
    return torch.from_numpy(rows @ rows.T)


def factor(positive: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor, float64 (D, D); what is above its diagonal means nothing.

    Raises:
        numpy.linalg.LinAlgError: the matrix isn't positive definite in double precision.
    """
    lower, info = lapack.dpotrf(positive.T, lower=1)  # symmetric: the transpose is in LAPACK's order
    if info != 0:
        raise np.linalg.LinAlgError("the matrix isn't positive definite")
    return lower


def solve_factored(lower: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``A^-1 right`` from A's :func:`factor`: float64, shape of ``right`` (D, m)."""
    return lapack.dpotrs(lower, right, lower=1)[0]


def solve_lower(lower: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``L^-1 right`` for the :func:`factor` L: float64, shape of ``right`` (D, m)."""
    return lapack.dtrtrs(lower, right, lower=1)[0]


def inverse(positive: np.ndarray) -> np.ndarray:
    """Inverse, float64 (D, D), symmetric to the last bit; half the work of a general matrix's.

    Raises:
        numpy.linalg.LinAlgError: as in :func:`factor`.
    """
    lower = np.tril(lapack.dpotri(factor(positive), lower=1, overwrite_c=1)[0])
    return lower + np.tril(lower, -1).T


def above_largest(positive: np.ndarray) -> float:
    """Not less than the largest eigenvalue, and at most 0.2% more: a Lanczos value that a Cholesky factor proves."""
    if len(positive) > FEW:
        with contextlib.suppress(np.linalg.LinAlgError, ArpackNoConvergence):
            start = np.random.default_rng(0).standard_normal(len(positive))
            near = eigsh(positive, 1, v0=start, tol=NEAR / 10, return_eigenvectors=False)[0]  # from below
            factor(near * (1 + NEAR) * np.eye(len(positive)) - positive)
            rounding = 4 * len(positive) * np.finfo(np.float64).eps  # of the factor, relative to the largest
            return float(near * (1 + NEAR) * (1 + rounding))
    return float(np.linalg.eigvalsh(positive)[-1])
