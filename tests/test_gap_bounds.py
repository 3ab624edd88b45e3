"""Bounds on the gap between pruned and dense network hold for every mask, on inputs seen and unseen."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mipprune as mp
from mipprune.bounds import NeuronGap, neuron_gap, neuron_gap_on_ball, piecewise_linear, sum_bound, validate_neurons
from mipprune.bounds.norms import convolution_norm, matrix_norm, node_norms
from mipprune.bounds.tails import bernstein
from mipprune.bounds.validate import measured_gaps
from mipprune.errors import BudgetError, DataError
from mipprune.surrogates import GapNorm, Surrogate, WorstRow
from mipprune.testing import NETWORKS, SurrogateContract, masked_model
from mipprune.testing.cases import NetworkCase


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 4))


def _pooled() -> nn.Module:
    """Overlapping max pooling, strides, average pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(5, 6, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )


CASES = (
    NetworkCase("mlp", _mlp, (8,), (20, 12)),
    NetworkCase("pooled", _pooled, (1, 9, 9), (5, 6)),
    *(case for case in NETWORKS if case.name in {"cnn", "residual_net", "tied"}),
)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def _data(case: NetworkCase, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return case.inputs(n), torch.zeros(n, dtype=torch.long)


def _check(case: NetworkCase, n_masks: int) -> None:
    found = validate_neurons(case.build(), _data(case), keep=0.7, delta=0.1, n_masks=n_masks, seed=1)
    print(case.name, found)
    assert found.violations == 0
    assert found.lowest_coverage >= 0.9
    assert found.loose_linear < 30  # sound and useless is no bound either
    assert found.loose_quadratic < 30
    assert mp.bounds.Validation.from_dict(found.to_dict()) == found


@pytest.mark.slow
@each_case
def test_no_mask_breaks_the_bounds(case: NetworkCase) -> None:
    _check(case, 1000)


@each_case
def test_a_few_masks_do_not_break_the_bounds(case: NetworkCase) -> None:
    _check(case, 60)


@each_case
def test_network_with_layers_computes_the_network(case: NetworkCase) -> None:
    model, (x, _) = case.build(), _data(case)
    graph = mp.trace(model, x[:1])
    network = piecewise_linear(graph, joined=False)
    kept = np.random.default_rng(0).random(graph.n_units) < 0.6
    want = masked_model(graph, kept).double()(x.double()).detach().numpy()
    np.testing.assert_allclose(network.output(x.flatten(1).numpy(), kept), want, atol=1e-9)
    layers = [n.layer for n in network.nodes if getattr(n, "layer", None) is not None]
    known = {id(model.get_parameter(layer.name)) for layer in layers}  # tied weights have several names
    assert known == {id(p) for p in model.parameters() if p.ndim > 1}
    for node in network.nodes:
        if getattr(node, "layer", None) is not None:
            weight = model.get_parameter(node.layer.name).detach().double().numpy()
            np.testing.assert_allclose(node.layer.matrix(weight).toarray(), node.matrices[0].toarray(), atol=1e-12)


@each_case
def test_norms_are_upper_bounds_and_close(case: NetworkCase) -> None:
    for node in piecewise_linear(mp.trace(case.build(), _data(case)[0][:1]), joined=False).nodes:
        if getattr(node, "layer", None) is not None:
            true = np.linalg.norm(node.matrices[0].toarray(), 2)
            for limit in (0, 1200):
                assert true <= node_norms(node, limit)[0]
            assert node_norms(node, 1200)[0] <= true * (1 + 1e-8)


def test_one_hidden_layer_has_an_exact_quadratic_bound() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3)).eval()
    x = torch.randn(7, 5)
    gap = neuron_gap(model, (x, torch.zeros(7)))
    masks = np.random.default_rng(0).random((50, 9)) < 0.5
    real = measured_gaps(mp.trace(model, x[:1]), x, masks)
    np.testing.assert_allclose(gap.quadratic(masks), np.sqrt((real**2).mean(1)), rtol=1e-5, atol=1e-6)
    alone = measured_gaps(mp.trace(model, x[:1]), x, ~np.eye(9, dtype=bool))
    np.testing.assert_allclose(gap.coefficients.T, alone, rtol=1e-9, atol=1e-12)  # one unit alone: T1 is exact too


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), widths=st.lists(st.integers(2, 6), min_size=2, max_size=4))
def test_bounds_hold_on_random_networks(seed: int, widths: list[int]) -> None:
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        parts += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*parts, nn.Linear(widths[-1], 2)).eval()
    x = 3 * torch.randn(4, widths[0])
    found = validate_neurons(model, (x, torch.zeros(4)), keep=0.5, n_masks=64, seed=seed)
    assert found.violations == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c.name in {"mlp", "cnn", "residual_net"}], ids=lambda c: c.name)
def test_budget_row_holds_on_data_and_on_the_ball(case: NetworkCase) -> None:
    model, (x, y) = case.build(), _data(case)
    graph = mp.trace(model, x[:1])
    gap = neuron_gap(graph, (x, y))
    limit = 0.3 * gap.deterministic(np.zeros(graph.n_units, dtype=bool)).worst
    solution = mp.solve(mp.Problem.minimize_units(WorstRow(gap.coefficients), limit), solver="scip", time_limit=20)
    assert not solution.kept.all()
    assert measured_gaps(graph, x, solution.kept[None]).max() <= limit * (1 + 1e-9)
    rms = mp.solve(mp.Problem.minimize_units(GapNorm(gap.factors), 0.5 * limit), solver="scip", time_limit=20)
    assert math.sqrt((measured_gaps(graph, x, rms.kept[None]) ** 2).mean()) <= 0.5 * limit * (1 + 1e-6)
    radius = 2.0
    ball = neuron_gap_on_ball(graph, x[:1], radius)
    limit = 0.1 * float(ball.coefficients.sum())
    solution = mp.solve(mp.Problem.minimize_units(WorstRow(ball.coefficients), limit), solver="scip", time_limit=20)
    assert not solution.kept.all()
    many = torch.randn(10_000, *x.shape[1:], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    many *= radius / many.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
    assert measured_gaps(graph, many, solution.kept[None]).max() <= limit


def test_kept_predictions_and_loss() -> None:
    torch.manual_seed(1)
    model, x = _mlp().eval(), 4 * torch.randn(12, 8)
    y = model(x).argmax(1)
    graph = mp.trace(model, x[:1])
    gap = neuron_gap(graph, (x, y))
    surrogate = WorstRow(math.sqrt(2) * gap.coefficients / gap.margins[:, None])
    solution = mp.solve(mp.Problem.minimize_units(surrogate, 0.999), solver="scip", time_limit=20)
    bound = gap.deterministic(solution.kept)
    assert bound.prediction_kept(gap.margins).all()
    pruned = graph.program.run((x,), torch.tensor(solution.kept).float())
    assert (pruned.argmax(1) == y).all()
    for seed in range(20):
        kept = np.random.default_rng(seed).random(graph.n_units) < 0.8
        bound = gap.deterministic(kept)
        pruned = graph.program.run((x,), torch.from_numpy(kept).float())
        sure = torch.from_numpy(bound.prediction_kept(gap.margins))
        assert (pruned.argmax(1) == y)[sure].all()
        rise = nn.functional.cross_entropy(pruned, y, reduction="none")
        rise = rise - nn.functional.cross_entropy(model(x), y, reduction="none")
        assert (rise.detach().numpy() <= bound.loss_increase() + 1e-5).all()


@pytest.mark.parametrize("tail", ["hoeffding", "bernstein", "chernoff", "best"])
def test_tails_cover(tail: str) -> None:
    rng = np.random.default_rng(0)
    for delta in (0.5, 0.05):
        c, q = rng.exponential(size=30), rng.uniform(0, 0.6, 30)
        sums = (rng.random((40_000, 30)) < q) @ c
        assert (sums <= sum_bound(c, q, delta, tail)).mean() >= 1 - delta
        assert sum_bound(c, q, delta, tail) <= 3 * np.quantile(sums, 1 - delta)
        assert sum_bound(c, q, delta) <= sum_bound(c, q, delta, tail)
    assert sum_bound(np.zeros(3), np.full(3, 0.5), 0.1, tail) == pytest.approx(0.0)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6), side=st.integers(2, 6), kernel=st.integers(1, 4), padding=st.integers(0, 3),
    dilation=st.integers(1, 2), stride=st.integers(1, 2),
)
def test_norm_by_fourier_transform_bounds_the_convolution(
    seed: int, side: int, kernel: int, padding: int, dilation: int, stride: int
) -> None:
    reach = dilation * (kernel - 1)
    if reach + 1 > side + 2 * padding:
        return
    torch.manual_seed(seed)
    conv = nn.Conv2d(2, 3, kernel, stride, padding, dilation, bias=False).double()
    basis = torch.eye(2 * side * side, dtype=torch.float64).reshape(-1, 2, side, side)
    true = float(torch.linalg.matrix_norm(conv(basis).detach().flatten(1), 2))
    bound = convolution_norm(conv.weight.detach().numpy(), (side, side), (padding, padding), (dilation, dilation))
    assert true <= bound


def test_the_torus_is_larger_than_the_image() -> None:
    """On a torus of the image's own side the two outer taps of [1, 0, -1] would cancel."""
    kernel = np.array([[[1.0, 0.0, -1.0]]])
    layer = nn.functional.conv1d(torch.eye(2)[:, None], torch.tensor(kernel).float(), padding=2).flatten(1).numpy()
    assert np.linalg.norm(layer, 2) <= convolution_norm(kernel, (2,), (2,), (1,))


def test_matrix_norms() -> None:
    rng = np.random.default_rng(0)
    for shape in ((4, 9), (9, 4), (1, 5)):
        matrix = sp.csr_array(rng.normal(size=shape))
        true = np.linalg.norm(matrix.toarray(), 2)
        assert true <= matrix_norm(matrix) <= true * (1 + 1e-8)
        assert true <= matrix_norm(matrix, exact_limit=0)
    assert matrix_norm(sp.csr_array((3, 3))) == 0.0


def test_what_makes_no_sense_is_refused() -> None:
    gap = NeuronGap(np.ones((2, 3)), (), np.zeros(0), {"a": (0, 3)})
    with pytest.raises(BudgetError, match="delta"):
        gap.random(0.5, 1.0)
    with pytest.raises(BudgetError, match="keep"):
        gap.random(1.5, 0.1)
    with pytest.raises(BudgetError, match="tail"):
        gap.random(0.5, 0.1, "chebyshev")
    with pytest.raises(DataError, match="mask of 3"):
        gap.deterministic(np.ones(4, dtype=bool))
    with pytest.raises(DataError, match="ball"):
        gap.quadratic(np.ones((1, 3), dtype=bool))
    with pytest.raises(ValueError, match="rows"):
        WorstRow(-np.ones((1, 2)))
    with pytest.raises(ValueError, match="factors"):
        GapNorm(())
    assert NeuronGap.from_dict(gap.to_dict()) == gap


class TestGapSurrogates(SurrogateContract):
    def surrogates(self) -> list[Surrogate]:
        rng = np.random.default_rng(0)
        return [WorstRow(rng.random((5, 4))), WorstRow(rng.random((1, 3))),
                GapNorm((rng.normal(size=(3, 6)), rng.normal(size=(2, 6))))]


def test_bernstein_solves_its_equation() -> None:
    for variance, largest, lg in ((2.0, 0.5, 3.0), (0.0, 1.0, 2.0), (5.0, 0.0, 1.0)):
        t = bernstein(variance, largest, lg)
        assert t**2 / (2 * variance + 2 * largest * t / 3) == pytest.approx(lg)
