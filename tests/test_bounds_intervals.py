"""Networks as piecewise-linear maps compute what the traced network computes, and their ranges hold for every mask."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mipprune as mp
from mipprune.bounds import (
    Affine,
    Gate,
    MaxPool,
    PiecewiseLinear,
    Ranges,
    Relu,
    interval_ranges,
    output_range,
    piecewise_linear,
    value_ranges,
)
from mipprune.bounds.simplify import simplified
from mipprune.errors import TraceError
from mipprune.testing import NETWORKS, masked_model
from mipprune.testing.cases import NetworkCase


def _relu_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3))


def _pooled() -> nn.Module:
    """Average pooling, overlapping and padded max pooling, a strided convolution."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 2, stride=1, bias=False),
        nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2, stride=1, padding=1), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(20, 3),
    )


def _max_pool_1d() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.MaxPool1d(3, stride=2, padding=1), nn.Flatten(),
                         nn.Linear(4 * 4, 6), nn.ReLU(), nn.Linear(6, 3))


CASES = (
    NetworkCase("relu_mlp", _relu_mlp, (6,), (9, 5)),
    NetworkCase("pooled", _pooled, (1, 6, 6), (4, 5)),
    NetworkCase("max_pool_1d", _max_pool_1d, (2, 9), (4, 6)),
    *(case for case in NETWORKS if case.name in {"cnn", "residual_net", "tied"}),
)


class Built:
    """A case, traced, extracted, with inputs and both kinds of ranges."""

    def __init__(self, case: NetworkCase) -> None:
        self.graph = mp.trace(case.build(), case.inputs(1))
        self.network = piecewise_linear(self.graph)
        self.inputs = case.inputs(4).double()
        self.x = self.inputs.flatten(1).numpy()
        self.intervals = interval_ranges(self.network, self.x, self.x)
        self.linear = value_ranges(self.network, self.x, self.x)


BUILT: dict[str, Built] = {}


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def built(request: pytest.FixtureRequest) -> Built:
    return BUILT.setdefault(request.param.name, Built(request.param))


def _masks(n: int, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.ones(n, bool), np.zeros(n, bool), *(rng.random(n) < rng.random() for _ in range(count))]


def _inside(network: PiecewiseLinear, ranges: Ranges, x: np.ndarray, gates: np.ndarray) -> bool:
    return all(
        (value >= low - 1e-9).all() and (value <= high + 1e-9).all()
        for value, low, high in zip(network.values(x, gates), ranges.lower, ranges.upper)
    )


def test_the_extracted_network_is_the_masked_network(built: Built) -> None:
    for kept in _masks(built.network.n_units, 20):
        with torch.no_grad():
            expected = masked_model(built.graph, kept).double()(built.inputs).numpy()
        np.testing.assert_allclose(built.network.output(built.x, kept), expected, atol=1e-10)


def test_ranges_hold_for_every_mask(built: Built) -> None:
    fractional = np.random.default_rng(1).random((20, built.network.n_units))
    for gates in [*_masks(built.network.n_units, 50), *fractional]:
        assert _inside(built.network, built.intervals, built.x, gates)
        assert _inside(built.network, built.linear, built.x, gates)


def test_linear_bounds_are_at_least_as_tight_and_somewhere_tighter(built: Built) -> None:
    widths = [
        sum(float((high - low).sum()) for low, high in zip(ranges.lower, ranges.upper))
        for ranges in (built.intervals, built.linear)
    ]
    for low, high, wide_low, wide_high in zip(
        built.linear.lower, built.linear.upper, built.intervals.lower, built.intervals.upper
    ):
        assert (low >= wide_low - 1e-12).all()
        assert (high <= wide_high + 1e-12).all()
    assert widths[1] < 0.998 * widths[0]


def test_ranges_hold_for_every_input_in_a_box_with_some_gates_fixed(built: Built) -> None:
    rng = np.random.default_rng(2)
    n = built.network.n_units
    keep, remove = np.arange(n) % 4 == 0, np.arange(n) % 4 == 1
    low, high = built.x - 0.05, built.x + 0.05
    found = [f(built.network, low, high, keep, remove) for f in (interval_ranges, value_ranges)]
    for gates in _masks(n, 30, seed=3):
        x = rng.uniform(low, high)
        assert all(_inside(built.network, ranges, x, (gates | keep) & ~remove) for ranges in found)
    free = interval_ranges(built.network, low, high)
    assert (found[0].upper[-1] - found[0].lower[-1]).sum() < (free.upper[-1] - free.lower[-1]).sum()


def test_with_all_gates_fixed_the_ranges_are_the_values(built: Built) -> None:
    kept = np.arange(built.network.n_units) % 3 > 0
    for ranges in (f(built.network, built.x, built.x, kept, ~kept) for f in (interval_ranges, value_ranges)):
        for value, low, high in zip(built.network.values(built.x, kept), ranges.lower, ranges.upper):
            np.testing.assert_allclose(low, value, atol=1e-9)
            np.testing.assert_allclose(high, value, atol=1e-9)


def test_ranges_of_combinations_of_outputs(built: Built) -> None:
    rows = np.array([[1.0, -1.0, 0.0], [0.5, 2.0, -1.0]])
    rows = np.pad(rows, ((0, 0), (0, built.network.sizes[-1] - 3)))
    low, high = output_range(built.network, built.linear, rows)
    apart = [built.linear.lower[-1], built.linear.upper[-1]]
    assert (high - low <= (apart[1] - apart[0]) @ abs(rows).T + 1e-9).all()
    assert (high - low).sum() < 0.99 * ((apart[1] - apart[0]) @ abs(rows).T).sum()
    for kept in _masks(built.network.n_units, 100):
        values = built.network.output(built.x, kept) @ rows.T
        assert (values >= low - 1e-9).all()
        assert (values <= high + 1e-9).all()


def test_results_do_not_depend_on_the_batch(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mipprune.bounds.linear._NUMBERS", 500)  # a few rows of one sample at a time
    again = value_ranges(built.network, built.x, built.x)
    for low, high, low_again, high_again in zip(built.linear.lower, built.linear.upper, again.lower, again.upper):
        np.testing.assert_allclose(low_again, low, atol=1e-12)
        np.testing.assert_allclose(high_again, high, atol=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_random_networks(seed: int) -> None:
    """Gates anywhere (on the input, twice, shared by layers), pooling of signed values, sums of several values."""
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> sp.csr_array:
        return sp.csr_array(rng.normal(size=shape) * (rng.random(shape) < 0.8))

    network = PiecewiseLinear(4, 5, (
        Gate(0, rng.integers(-1, 5, 4)),
        Affine((1,), (matrix(6, 4),), rng.normal(size=6)),
        Relu(2, 6),
        Gate(3, rng.integers(-1, 5, 6)),
        MaxPool(2, rng.integers(0, 6, (5, 2))),
        Gate(5, rng.integers(-1, 5, 5)),
        Affine((4, 6), (matrix(5, 6), matrix(5, 5)), rng.normal(size=5)),
        Relu(7, 5),
        MaxPool(8, np.concatenate([rng.integers(0, 5, (4, 2)), np.full((4, 1), -1)], axis=1)),
        Affine((9, 4), (matrix(3, 4), matrix(3, 6)), rng.normal(size=3)),
    ))  # fmt: skip
    x = rng.normal(size=(3, 4))
    smaller = simplified(network)
    for ranges in (interval_ranges(network, x, x + 0.1), value_ranges(network, x, x + 0.1)):
        for _ in range(20):
            gates = (rng.random(5) < 0.5).astype(float) if rng.random() < 0.7 else rng.random(5)
            inputs = x + 0.1 * rng.random(x.shape)
            assert _inside(network, ranges, inputs, gates)
            np.testing.assert_allclose(smaller.output(inputs, gates), network.output(inputs, gates), atol=1e-9)


def test_gates_move_to_the_units_and_affine_maps_join() -> None:
    network = BUILT.setdefault("pooled", Built(CASES[1])).network
    for value, node in enumerate(network.nodes, start=1):
        if isinstance(node, Gate):
            assert isinstance(network.node_of(value - 1), Relu)
    assert [type(node) for node in network.nodes] == [Affine, Relu, Gate, Affine, Relu, Gate, MaxPool, Affine]


def test_an_operation_without_a_rule_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(TraceError, match=r"module '1' \(Tanh\).*aten.tanh"):
        piecewise_linear(mp.trace(model, torch.zeros(1, 3)))

    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(y * y)

    with pytest.raises(TraceError, match=r"aten\.mul"):
        piecewise_linear(mp.trace(Squares(), torch.zeros(1, 3)))
    pool = nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.MaxPool1d(2, ceil_mode=True), nn.Conv1d(2, 2, 1))
    with pytest.raises(TraceError, match="ceil_mode"):
        piecewise_linear(mp.trace(pool, torch.zeros(1, 1, 6)))
