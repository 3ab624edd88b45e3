"""Cholesky-based helpers against numpy's own, and the bound on the largest eigenvalue."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mipprune.curvature.positive import FEW, above_largest, factor, gram, inverse, solve_factored, solve_lower


def positive(n: int, seed: int = 0, decay: float = 1.0) -> np.ndarray:
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return (turn * np.arange(1, n + 1) ** -decay) @ turn.T


@pytest.mark.parametrize("n", [1, 5, 60])
def test_solutions_and_inverses(n: int) -> None:
    matrix = positive(n)
    right = np.random.default_rng(1).standard_normal((n, 3))
    np.testing.assert_allclose(matrix @ solve_factored(factor(matrix), right), right, atol=1e-9)
    np.testing.assert_allclose(np.tril(factor(matrix)) @ solve_lower(factor(matrix), right), right, atol=1e-9)
    found = inverse(matrix)
    assert (found == found.T).all()
    np.testing.assert_allclose(found, np.linalg.inv(matrix), atol=1e-8)


def test_an_indefinite_matrix_is_refused() -> None:
    for function in (factor, inverse):
        with pytest.raises(np.linalg.LinAlgError):
            function(np.diag([1.0, -1.0]))


@pytest.mark.parametrize("n", [1, FEW, FEW + 1, 300])
@pytest.mark.parametrize("decay", [0.0, 1e-4, 0.5, 2.0])  # from all eigenvalues alike to one that stands out
def test_the_largest_eigenvalue_is_bounded_closely(n: int, decay: float) -> None:
    matrix = positive(n, decay=decay)
    largest = np.linalg.eigvalsh(matrix)[-1]
    assert largest * (1 - 1e-12) <= above_largest(matrix) <= largest * 1.003
    assert above_largest(matrix) == above_largest(matrix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram(dtype: torch.dtype) -> None:
    x = torch.randn(5, 30, dtype=dtype)
    torch.testing.assert_close(gram(x), x @ x.T)
    torch.testing.assert_close(gram(x.T[::2]), x.T[::2] @ x[:, ::2])
    assert gram(x[:, :0]).abs().max() == 0
