"""K-FAC factors, Hessian and Gauss-Newton products against curvlinops and BackPACK, where they are installed.

Beside a CPU build of torch (BackPACK's torchvision doesn't import there, and isn't needed): pip install --no-deps
-c constraints.txt curvlinops-for-pytorch backpack-for-pytorch einconv einops linear-operator opt-einsum unfoldnd
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mipprune.curvature import CurvatureOperator, hessian_top_eigenvalues, kfac_factors


def _mlp() -> tuple[nn.Sequential, torch.Tensor]:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 4)), torch.randn(9, 5)


def _cnn() -> tuple[nn.Sequential, torch.Tensor]:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, (2, 3), stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 4),
    ), torch.randn(9, 2, 8, 10)


NETWORKS = pytest.mark.parametrize("make", [_mlp, _cnn], ids=["mlp", "cnn"])


def _problem(make: object) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    model, x = make()  # type: ignore[operator]
    return model.double().eval(), x.double(), torch.arange(len(x)) % 4


def _vectors(model: nn.Module, n: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((sum(p.numel() for p in model.parameters()), n))


@NETWORKS
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_products_agree_with_curvlinops(make: object, kind: str) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model, x, y = _problem(make)
    peer = {"hessian": curvlinops.HessianLinearOperator, "gauss_newton": curvlinops.GGNLinearOperator}[kind]
    matrix = peer(model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)])
    vectors = _vectors(model)
    expected = (matrix @ torch.from_numpy(vectors)).numpy()
    np.testing.assert_allclose(CurvatureOperator(model, (x, y), kind) @ vectors, expected, rtol=1e-9, atol=1e-11)
    top = np.linalg.eigvalsh((matrix @ torch.eye(len(vectors), dtype=torch.float64)).numpy())[-1]
    assert hessian_top_eigenvalues(model, (x, y), kind=kind, tol=1e-9).values[0] == pytest.approx(top, rel=1e-7)


@NETWORKS
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_factors_agree_with_curvlinops(make: object, sharing: str) -> None:
    """As whole matrices, so that neither library's way of storing factors matters."""
    curvlinops = pytest.importorskip("curvlinops")
    model, x, y = _problem(make)
    matrix = curvlinops.KFACLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)], fisher_type=curvlinops.FisherType.TYPE2,
        kfac_approx=getattr(curvlinops.KFACType, sharing.upper()), separate_weight_and_bias=False,
    )
    n = len(_vectors(model))
    expected = (matrix @ torch.eye(n, dtype=torch.float64)).numpy()
    found, start = np.zeros((n, n)), 0
    for block in kfac_factors(model, (x, y), sharing=sharing).blocks:
        out, n_in = len(block.g), len(block.a) - 1
        # rows of [weight, bias] -> all weights, then the biases
        number = np.hstack([np.arange(out * n_in).reshape(out, n_in), out * n_in + np.arange(out)[:, None]]).ravel()
        found[np.ix_(start + number, start + number)] = np.kron(block.g, block.a)
        start += len(number)
    assert start == n
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@NETWORKS
def test_factors_agree_with_backpack(make: object) -> None:
    """BackPACK sums a convolution's patches over positions one by one, as "expand" does, and its derivatives together,
    as "reduce" does.
    """
    backpack = pytest.importorskip("backpack")
    from backpack.extensions import KFLR

    model, x, y = _problem(make)
    apart, together = (kfac_factors(model, (x, y), sharing=sharing).blocks for sharing in ("expand", "reduce"))
    backpack.extend(model)
    loss = backpack.extend(nn.CrossEntropyLoss())(model(x), y)
    with backpack.backpack(KFLR()):
        loss.backward()
    for one, other in zip(apart, together, strict=True):
        layer = model.get_submodule(one.layer)
        g, a = (factor.numpy() for factor in layer.weight.kflr)  # known up to a factor between them
        np.testing.assert_allclose(np.kron(other.g, one.a[:-1, :-1]), np.kron(g, a), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(other.g, layer.bias.kflr[0].numpy(), rtol=1e-9, atol=1e-12)


@NETWORKS
def test_products_and_diagonals_agree_with_backpack(make: object) -> None:
    backpack = pytest.importorskip("backpack")
    from backpack.extensions import DiagGGNExact
    from backpack.hessianfree.ggnvp import ggn_vector_product
    from backpack.hessianfree.hvp import hessian_vector_product

    model, x, y = _problem(make)
    vector = _vectors(model)[:, 0]
    own = {kind: CurvatureOperator(model, (x, y), kind) for kind in ("hessian", "gauss_newton")}
    diagonal = (own["gauss_newton"] @ np.eye(len(vector))).diagonal()
    backpack.extend(model)
    parameters = list(model.parameters())
    pieces = torch.from_numpy(vector).split([p.numel() for p in parameters])
    direction = [piece.reshape(p.shape) for piece, p in zip(pieces, parameters, strict=True)]
    logits = model(x)
    loss = nn.functional.cross_entropy(logits, y)
    products = {
        "hessian": hessian_vector_product(loss, parameters, direction),
        "gauss_newton": ggn_vector_product(loss, logits, model, direction),
    }
    with backpack.backpack(DiagGGNExact()):
        backpack.extend(nn.CrossEntropyLoss())(model(x), y).backward()
    for kind, pieces in products.items():
        expected = torch.cat([p.detach().flatten() for p in pieces]).numpy()
        np.testing.assert_allclose(own[kind] @ vector, expected, rtol=1e-9, atol=1e-11)
    found = torch.cat([p.diag_ggn_exact.flatten() for p in parameters]).numpy()
    np.testing.assert_allclose(diagonal, found, rtol=1e-9, atol=1e-11)
