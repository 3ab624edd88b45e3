"""One Krylov space, many damped systems: shifted symmetric solves by Lanczos."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

__all__ = ["Krylov"]


class Krylov:
    """The Krylov space of a symmetric positive semi-definite A and a vector b, for (A + c I) x = b with any c > 0.

    Lanczos (1950) with full reorthogonalisation: A is a tridiagonal T in an orthonormal basis V whose first vector is
    b / |b|, so x = |b| V (T + c I)^-1 e_1, what conjugate gradients would have after as many iterations.  Takes a
    product with A per iteration and O(P k^2) in all.

    Args:
        product: v -> A v, both (P,).
        start: b (P,).
        iterations: k at most.
        enough: end sooner once the relative residual at ``shift`` is no larger.
        shift: the c that this is asked of.
    """

    def __init__(
        self, product: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, iterations: int,
        enough: float = 0.0, shift: float = 0.0,
    ) -> None:
        self.norm = float(start.norm())
        basis = [start / self.norm] if self.norm > 0 else [torch.zeros_like(start)]
        diagonal: list[float] = []
        beside: list[float] = []
        for _ in range(max(1, iterations)):
            image = product(basis[-1])
            diagonal.append(float(image @ basis[-1]))
            found = torch.stack(basis)
            for _ in range(2):  # once leaves rounding errors of the size that single precision has
                image = image - found.T @ (found @ image)
            length = float(image.norm())
            values, vectors = self._decomposed(diagonal, beside)
            last = float(vectors[-1] @ (vectors[0] / np.maximum(values + shift, 1e-30)))
            if not length > 1e-6 * max(abs(diagonal[0]), 1e-30) or length * abs(last) <= enough:
                break
            beside.append(length)
            basis.append(image / length)
        self.basis = torch.stack(basis[: len(diagonal)])
        self.values, self.vectors = self._decomposed(diagonal, beside)

    def solve(self, shift: float) -> torch.Tensor:
        """The solution x (P,) for c = ``shift`` > 0."""
        part = self.vectors @ (self.vectors[0] * self.norm / (self.values + shift))
        return self.basis.T @ torch.from_numpy(part).to(self.basis)

    @staticmethod
    def _decomposed(diagonal: list[float], beside: list[float]) -> tuple[np.ndarray, np.ndarray]:
        size = len(diagonal)
        off = beside[: size - 1]
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
        return np.maximum(values, 0.0), vectors
