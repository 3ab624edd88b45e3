"""K-FAC factors and second-order products against dense matrices and loops on small networks."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.curvature import (
    CurvatureOperator,
    hessian_top_eigenvalues,
    kfac_factors,
    sharpness,
    spectral_radius,
)
from mipprune.curvature.kronecker import output_roots
from mipprune.curvature.probes import Probes, probed_layers
from mipprune.demo import train
from mipprune.testing.cases import NETWORKS, NetworkCase
from mipprune.testing.curvature_reference import dense_curvature, kfac_reference

from .conftest import Digits

SMALL = [case for case in NETWORKS if not case.vocabulary]
small = pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)


def built(case: NetworkCase, n: int = 4) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model, x = case.build().double(), case.inputs(n).double()
    with torch.no_grad():
        classes = model(x).shape[1]
    return model, x, torch.arange(n) % classes


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1]).double().eval()


@small
@pytest.mark.parametrize("sharing", ["reduce", "expand"])
def test_factors_are_what_loops_give(case: NetworkCase, sharing: str) -> None:
    model, x, y = built(case)
    factors = kfac_factors(model, (x, y), sharing=sharing)
    assert factors.n_samples == len(x)
    assert {b.layer for b in factors.blocks} == set(probed_layers(model))
    for block in factors.blocks:
        if case.name == "tied" and block.layer == "2":
            continue  # called twice: its own test
        a, g = kfac_reference(model, block.layer, x, sharing)
        np.testing.assert_allclose(block.a, a if block.a.ndim == 3 else a[0], atol=1e-12)
        np.testing.assert_allclose(block.g, g if block.g.ndim == 3 else g[0], atol=1e-12)
        if block.a.ndim == 2:
            assert block.top_eigenvalue == pytest.approx(np.linalg.eigvalsh(np.kron(a[0], g[0]))[-1], rel=1e-9)


CONVOLUTIONS = [
    nn.Conv1d(3, 4, 3, stride=2, padding=1, padding_mode="circular"),
    nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), bias=False),
    nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="reflect"),
    nn.Conv2d(2, 4, 3, padding="same", dilation=2),
    nn.Conv2d(2, 4, (2, 3), padding="same", padding_mode="replicate"),
    nn.Conv3d(2, 2, 2, padding=(1, 0, 1), groups=2),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_rows_are_what_the_convolution_multiplies(layer: nn.Conv2d) -> None:
    layer = copy.deepcopy(layer).double()
    x = torch.randn(2, layer.in_channels, *[5, 6, 4][: len(layer.kernel_size)], dtype=torch.float64)
    with Probes({"": layer}) as probes:
        out = probes.run(layer, (x,))
        (call,) = probes.calls[""]
        weight = layer.weight.flatten(1)
        if layer.bias is not None:
            weight = torch.cat([weight, layer.bias[:, None]], 1)
        weight = weight.reshape(layer.groups, -1, weight.shape[1])
        rows = torch.einsum("ntgd,god->ntgo", call.rows, weight).flatten(2)
    torch.testing.assert_close(rows, out.movedim(1, -1).reshape(rows.shape))


def test_one_sample_makes_the_blocks_exact() -> None:
    """Block = kron(g, a) in the row-major order of [weight, bias]; and then max <= true <= sum."""
    model = mlp(3, 5, 4, 3)
    x, y = torch.randn(1, 3, dtype=torch.float64), torch.tensor([1])
    whole = dense_curvature(model, x, y, "gauss_newton")
    factors = kfac_factors(model, (x, y))
    start = 0
    for block in factors.blocks:
        layer = model.get_submodule(block.layer)
        out, n_in = layer.weight.shape
        number = torch.cat([torch.arange(out * n_in).reshape(out, n_in), out * n_in + torch.arange(out)[:, None]], 1)
        order = start + number.flatten().numpy()
        np.testing.assert_allclose(np.kron(block.g, block.a), whole[np.ix_(order, order)], atol=1e-13)
        start += number.numel()
    true = np.linalg.eigvalsh(whole)[-1]
    low, high = spectral_radius(factors, "max"), spectral_radius(factors, "sum")
    assert low == max(b.top_eigenvalue for b in factors.blocks)
    assert high == pytest.approx(sum(b.top_eigenvalue for b in factors.blocks))
    assert low < true < high


def test_a_layer_called_twice_counts_both_calls() -> None:
    shared = nn.Linear(3, 3).double()
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(3, 2).double()).eval()
    x = torch.randn(5, 3, dtype=torch.float64)
    y = torch.zeros(5, dtype=torch.long)
    block, _ = kfac_factors(model, (x, y), sharing="expand").blocks
    untied = nn.Sequential(*[copy.deepcopy(m) for m in model]).eval()
    first, second, _ = kfac_factors(untied, (x, y), sharing="expand").blocks
    np.testing.assert_allclose(block.a, first.a + second.a, atol=1e-13)
    np.testing.assert_allclose(block.g, (first.g + second.g) / 2, atol=1e-13)


def test_what_no_block_covers_is_listed() -> None:
    model, x, y = built(NETWORKS[1])
    factors = kfac_factors(model, (x, y), layers=["4", "11"])
    assert [b.layer for b in factors.blocks] == ["4", "11"]
    assert factors.skipped == ("0", "1", "5", "8", "9")
    assert kfac_factors(model, (x, y)).skipped == ("1", "5", "9")


def test_reduce_is_exact_for_a_convolution_whose_outputs_are_averaged() -> None:
    """One sample, equal derivatives at all positions: the whole block, also its top eigenvalue, is exact."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    x, y = torch.randn(1, 2, 6, 6, dtype=torch.float64), torch.tensor([1])
    whole = dense_curvature(model, x, y, "gauss_newton")
    (block,) = kfac_factors(model, (x, y), sharing="reduce").blocks
    np.testing.assert_allclose(np.kron(block.g, block.a), whole, atol=1e-14)
    (other,) = kfac_factors(model, (x, y), sharing="expand").blocks
    assert other.top_eigenvalue < 0.7 * block.top_eigenvalue


@pytest.mark.parametrize("method", ["exact", "monte_carlo", "sketch"])
def test_factors_do_not_depend_on_the_batch_size(method: str) -> None:
    model, x, y = built(NETWORKS[1], 7)
    whole, parts = (kfac_factors(model, (x, y), method=method, n_draws=2, batch_size=b, seed=3) for b in (256, 3))
    for a, b in zip(whole.blocks, parts.blocks, strict=True):
        np.testing.assert_allclose(a.a, b.a, atol=1e-13)
        np.testing.assert_allclose(a.g, b.g, atol=1e-13)


def test_sampled_roots_have_the_right_second_moment() -> None:
    logits = torch.tensor([[0.3, -1.2, 2.0, 0.0]], dtype=torch.float64)
    p = torch.softmax(logits[0], 0)
    b = (torch.diag(p) - torch.outer(p, p)).numpy()
    exact = sum(r.T @ r for r in output_roots(logits, "exact", torch.zeros(1, 0))).numpy()
    np.testing.assert_allclose(exact, b, atol=1e-15)
    n = 4000
    draws = torch.from_numpy(np.random.default_rng(0).random((n, 1)))
    for method in ("monte_carlo", "sketch"):
        (roots,) = output_roots(logits.expand(n, 4), method, draws)
        products = torch.einsum("ni,nj->nij", roots, roots).numpy()
        error = products.std(0) / np.sqrt(n)
        assert (np.abs(products.mean(0) - b) < 4.5 * error + 1e-12).all()
        assert error.max() < 0.01


def test_sampled_factors_come_to_the_exact_ones() -> None:
    model, x, y = built(NETWORKS[0], 40)
    exact = kfac_factors(model, (x, y))
    for method in ("monte_carlo", "sketch"):
        found = kfac_factors(model, (x, y), method=method, n_draws=200, seed=1)
        for a, b in zip(exact.blocks, found.blocks, strict=True):
            np.testing.assert_array_equal(a.a, b.a)
            assert np.linalg.norm(a.g - b.g) < 0.06 * np.linalg.norm(a.g)
            assert not np.array_equal(a.g, b.g)


def check_by_differences(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    direction = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    product = CurvatureOperator(model, (x, y)) @ direction.numpy()
    weights, slopes, h = list(model.parameters()), [], 1e-6
    start = nn.utils.parameters_to_vector(weights).detach()
    for sign in (1, -1):
        nn.utils.vector_to_parameters(start + sign * h * direction, weights)
        grads = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), weights)
        slopes.append(torch.cat([g.flatten() for g in grads]))
    expected = ((slopes[0] - slopes[1]) / (2 * h)).numpy()
    np.testing.assert_allclose(product, expected, atol=1e-6 * np.abs(expected).max())


@small
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_products_agree_with_the_dense_matrix(case: NetworkCase, kind: str) -> None:
    model, x, y = built(case, 3)
    n = sum(p.numel() for p in model.parameters())
    if n > 700 and kind == "gauss_newton":
        pytest.skip("the dense matrix takes too long; the Hessian is checked by differences")
    if n > 700:
        return check_by_differences(model, x, y)
    dense = dense_curvature(model, x, y, kind)
    vectors = np.random.default_rng(0).standard_normal((n, 3))
    matrix = CurvatureOperator(model, (x, y), kind, batch_size=2)
    np.testing.assert_allclose(matrix @ vectors, dense @ vectors, atol=1e-11)
    size = torch.cat([p.detach().flatten() for p in model.parameters()]).abs().numpy()
    relative = CurvatureOperator(model, (x, y), kind, relative=True)
    np.testing.assert_allclose(relative @ vectors, size[:, None] * (dense @ (size[:, None] * vectors)), atol=1e-11)


@pytest.mark.parametrize("sizes", [(2, 2), (5, 6, 4)])
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_lanczos_finds_the_largest_eigenvalues(sizes: tuple[int, ...], kind: str) -> None:
    model = mlp(*sizes, act=nn.Tanh)
    x, y = torch.randn(9, sizes[0], dtype=torch.float64), torch.arange(9) % sizes[-1]
    expected = np.linalg.eigvalsh(dense_curvature(model, x, y, kind))[::-1][:3]
    found = hessian_top_eigenvalues(model, (x, y), 3, kind=kind, tol=1e-9)
    np.testing.assert_allclose(found.values, expected, rtol=1e-7)
    assert found.residuals.max() < 1e-6
    assert found.n_products > 3
    assert type(found).from_dict(found.to_dict()) == found


def test_float32_models_are_measured_in_float64() -> None:
    model = mlp(5, 6, 4).float()
    x, y = torch.randn(9, 5), torch.arange(9) % 4
    found = hessian_top_eigenvalues(model, (x, y), tol=1e-9).values[0]
    double = copy.deepcopy(model).double()
    assert found == pytest.approx(np.linalg.eigvalsh(dense_curvature(double, x.double(), y))[-1], rel=1e-9)
    assert next(model.parameters()).dtype == torch.float32


def test_relative_sharpness_ignores_rescaling_through_a_relu() -> None:
    model = mlp(4, 6, 5, 3)
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    before = sharpness(model, (x, y), tol=1e-9)
    with torch.no_grad():
        factor = torch.linspace(0.1, 3.0, 6, dtype=torch.float64)
        model[0].weight *= factor[:, None]
        model[0].bias *= factor
        model[2].weight /= factor
    after = sharpness(model, (x, y), tol=1e-9)
    assert after.relative == pytest.approx(before.relative, rel=1e-7)
    assert after.top_eigenvalue > 1.5 * before.top_eigenvalue
    norm = sum(float((p.detach() ** 2).sum()) for p in model.parameters())
    assert after.norm_scaled == pytest.approx(after.top_eigenvalue * norm)
    assert after.kfac_sum == pytest.approx(spectral_radius(kfac_factors(model, (x, y))))
    assert after.n_weights == sum(p.numel() for p in model.parameters())


def test_errors_say_what_to_do() -> None:
    model, x, y = built(NETWORKS[0])
    data = (x, y)
    with pytest.raises(mp.errors.ModelStateError, match="eval"):
        kfac_factors(model.train(), data)
    with pytest.raises(mp.errors.ModelStateError, match="eval"):
        hessian_top_eigenvalues(model, data)
    model.eval()
    with pytest.raises(mp.errors.ConfigError, match="monte_carlo"):
        kfac_factors(model, data, method="empirical")
    with pytest.raises(mp.errors.UnknownLayerError, match="Linear or Conv"):
        kfac_factors(model, data, layers=["1"])
    with pytest.raises(mp.errors.ConfigError, match="aggregate"):
        spectral_radius(kfac_factors(model, data), "mean")
    with pytest.raises(mp.errors.ConfigError, match="number of weights"):
        hessian_top_eigenvalues(model, data, 0)
    with pytest.raises(mp.errors.ConfigError, match="gauss_newton"):
        hessian_top_eigenvalues(model, data, kind="fisher")
    with pytest.raises(mp.errors.DataError, match="classes"):
        hessian_top_eigenvalues(model, (x, y + 10))
    with pytest.raises(mp.errors.DataError, match="empty"):
        kfac_factors(model, (x[:0], y[:0]))
    with pytest.raises(mp.errors.DataError, match=r"shape \(N, C\)"):
        kfac_factors(nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (2, 3))).double().eval(), data)
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    with pytest.raises(mp.errors.ModelStateError, match=r"'0\.weight' holds NaN or infinite"):
        kfac_factors(model, data)
    with torch.no_grad():
        model[0].weight[0, 0] = 0.0
    with pytest.raises(mp.errors.ModelStateError, match="aren't finite"):
        kfac_factors(model, (1e200 * x, y))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_sum_is_near_the_true_eigenvalue_on_digits(seed: int, digits_flat: Digits) -> None:
    x, y = digits_flat.train
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    for epochs in (2, 6):
        model = train(model, x, y, epochs, seed)
        true = hessian_top_eigenvalues(model, (x[:400], y[:400]), tol=1e-3).values[0]
        factors = kfac_factors(model, (x[:400], y[:400]))
        assert abs(spectral_radius(factors) / true - 1) < 0.25
        assert spectral_radius(factors, "max") < 0.8 * true
