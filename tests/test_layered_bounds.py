"""The tighter bounds for random masks: their ingredients against written-out matrices, their tails against samples."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.bounds import WeightMasks, layered, random_pruning
from mipprune.bounds.gap import backward_gains, network_and_data
from mipprune.bounds.layered import layered_gap, layered_neuron_gap
from mipprune.bounds.network import Affine, Gate
from mipprune.bounds.norms import node_norms
from mipprune.bounds.validate import measured_gaps, measured_weight_gaps
from mipprune.errors import BudgetError
from mipprune.testing.cases import NetworkCase

from .test_gap_bounds import CASES as GAP_CASES


def _grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, groups=4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(12, 3),
    )


def _even() -> nn.Module:
    """Equal weights on equal inputs: a convolution's taps add up."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 3, bias=False), nn.Flatten())
    for p in model.parameters():
        nn.init.ones_(p)
    return model


CASES = {c.name: c for c in (*GAP_CASES, NetworkCase("grouped", _grouped, (2, 6, 6), (4, 3)))}
EVEN = NetworkCase("even", _even, (1, 6, 6), (1,))
UNTIED = [name for name in CASES if name != "tied"]


def _masks(name: str, n: int = 3) -> tuple[WeightMasks, torch.Tensor]:
    case = EVEN if name == "even" else CASES[name]
    x = case.inputs(n) if name != "even" else torch.ones(n, 1, 6, 6)
    return WeightMasks(case.build(), (x, torch.zeros(n))), x


def _lengths(found: WeightMasks) -> dict[int, np.ndarray]:
    return {value: found._placed(layer, found.values[found.network.node_of(value).sources[0]])
            for value, layer in found.layers.items()}


def _effects(found: WeightMasks, value: int, g: np.ndarray) -> np.ndarray:
    """The vectors ``w B_w g`` of one layer, written out: (size, number of weights)."""
    layer = found.layers[value]
    weight = found.weights[layer.name]
    out = np.zeros((layer.index.shape[0], weight.size))
    for w in range(weight.size):
        alone = np.zeros(weight.size)
        alone[w] = weight.flat[w]
        out[:, w] = layer.matrix(alone) @ g
    return out


@pytest.mark.parametrize("name", ["mlp", "pooled", "grouped", "even"])
def test_what_the_tails_are_told_about_weights_is_true(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the dense input, and for inputs that are off by any e with |e| <= x: random ones and the layer's worst."""
    found, _ = _masks(name, 2)
    told: list[tuple[dict[str, Any], np.ndarray]] = []
    real = layered._tail

    def record(**given: Any) -> np.ndarray:
        told.append((given, real(**given)))
        return told[-1][1]

    monkeypatch.setattr(layered, "_tail", record)
    keep = 0.7
    layered_gap(found.network, found.layers, found.weights, _lengths(found), keep, 2.0)
    rng = np.random.default_rng(0)
    x, before = np.zeros(2), 0
    for (value, _), (given, after) in zip(found.layers.items(), told, strict=True):
        node = found.network.node_of(value)
        assert isinstance(node, Affine)
        for between in range(before + 1, value):  # chains: what is carried from one layer to the next
            x = x * node_norms(found.network.node_of(between))[0]
        matrix, h = node.matrices[0].toarray(), found.values[node.sources[0]]
        worst = np.linalg.svd(matrix)[2][0]
        single = np.eye(len(worst))[np.square(matrix).sum(0).argmax()]
        for k, which in itertools.product(range(2), range(5)):
            e = (worst, -worst, single, h[k], rng.normal(size=len(worst)))[which]
            e = e * (x[k] / max(float(np.linalg.norm(e)), 1e-300))
            effects = _effects(found, value, h[k] + e)
            assert np.linalg.norm(matrix @ e) <= given["fixed"][k % len(given["fixed"])] * (1 + 1e-9)
            variance = (1 - keep) / keep * (effects**2).sum()
            norm = np.linalg.norm(effects, 2)
            assert math.sqrt(variance) <= given["noise"][k] * (1 + 1e-9)
            assert norm / keep <= given["spread"][k] * (1 + 1e-9)
            assert np.linalg.norm(effects, axis=0).max() * max(1.0, 1 / keep - 1) <= given["longest"][k] * (1 + 1e-9)
            if not before:  # the first layer: nothing is lost but in a convolution's spread
                assert math.sqrt(variance) == pytest.approx(given["noise"][k])
                assert norm / keep == pytest.approx(given["spread"][k]) or name not in ("mlp", "even")
        x, before = after, value


@pytest.mark.parametrize("name", UNTIED)
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_without_a_tail_the_mean_square_over_masks_is_bounded(name: str, keep: float) -> None:
    """At probability 1 the recursion is Minkowski's inequality alone; for one layer it is an equation."""
    found, x = _masks(name)
    bound = layered_gap(found.network, found.layers, found.weights, _lengths(found), keep, 0.0)
    rng = np.random.default_rng(0)
    drawn = ({n: np.where(rng.random(w.shape) < keep, w, 0.0) / keep for n, w in found.weights.items()}
             for _ in range(300))
    real = np.sqrt((measured_weight_gaps(found.graph, x, drawn) ** 2).mean(0))
    assert (real <= bound * 1.02).all()
    alone = nn.Sequential(nn.Conv1d(2, 2, 2, padding=1), nn.Flatten()).eval()
    one = WeightMasks(alone, (torch.randn(2, 2, 4), torch.zeros(2)))
    weight = one.weights["0.weight"]
    total = np.zeros(2)
    for bits in itertools.product((False, True), repeat=weight.size):
        mask = np.array(bits).reshape(weight.shape)
        chance = keep ** mask.sum() * (1 - keep) ** (~mask).sum()
        total += chance * measured_weight_gaps(one.graph, torch.as_tensor(one.values[0]).reshape(2, 2, 4),
                                               [{"0.weight": np.where(mask, weight, 0.0) / keep}])[0] ** 2
    exact = layered_gap(one.network, one.layers, one.weights, _lengths(one), keep, 0.0)
    np.testing.assert_allclose(exact, np.sqrt(total), rtol=1e-9)


@pytest.mark.parametrize("stacked", [False, True])
def test_one_hidden_layer_has_exact_moments_for_units(stacked: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3)).eval(), torch.randn(5, 4)
    graph, network, flat = network_and_data(model, (x, torch.zeros(5)))
    keep = np.random.default_rng(0).uniform(0.1, 0.9, 7)
    bound = layered_neuron_gap(network, backward_gains(network)[0], network.values(flat), keep, 0.0, stacked)
    masks = np.array(list(itertools.product((False, True), repeat=7)))
    chance = np.where(masks, keep, 1 - keep).prod(1)
    squares = chance @ measured_gaps(graph, x, masks) ** 2
    np.testing.assert_allclose(bound, np.sqrt(squares.mean() if stacked else squares), rtol=1e-9)


@pytest.mark.parametrize("stacked", [False, True])
def test_the_spread_of_units_is_the_norm_of_what_they_contribute(stacked: bool) -> None:
    """Also with a unit that is certain to stay and one that is certain to go: these add nothing."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3)).eval(), torch.randn(5, 4)
    _, network, flat = network_and_data(model, (x, torch.zeros(5)))
    values = network.values(flat)
    gate = next(i for i, node in enumerate(network.nodes) if isinstance(node, Gate))
    matrix, h = network.nodes[gate + 1].matrices[0], values[gate]
    keep = np.array([1.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    _, spread = layered._contributions(matrix, network.nodes[gate], h, keep, stacked)
    vectors = [(matrix.toarray() * row)[:, 2:] for row in h]
    norms = [np.linalg.norm(np.concatenate(vectors), 2) / math.sqrt(5)] if stacked else [
        np.linalg.norm(v, 2) for v in vectors]
    np.testing.assert_allclose(spread, norms, rtol=1e-8)


def test_a_unit_that_is_read_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)
            self.c.load_state_dict(self.b.state_dict())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(x))
            return self.b(x) + self.c(x)

    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(3, 4)
    _, network, flat = network_and_data(model, (x, torch.zeros(3)))
    values, gains = network.values(flat), backward_gains(network)[0]
    low, high = (layered_neuron_gap(network, gains, values, np.full(6, 0.5), t, False) for t in (0.0, 2.0))
    hidden, weight = torch.relu(model.a(x)).detach().double().numpy(), model.b.weight.detach().double().numpy()
    norms = [np.linalg.norm(weight * h, 2) for h in hidden]
    np.testing.assert_allclose((high - low) / 2, 2 * np.array(norms), rtol=1e-6)


def test_tails_solve_their_equations() -> None:
    fixed, noise, spread, longest, lg = (np.array([value]) for value in (0.7, 1.3, 0.9, 0.2, 3.0))
    convex, hilbert = layered._tails(fixed, noise, spread, longest, 3.0)
    t = convex - np.hypot(fixed, noise)
    assert t**2 / (2 * spread**2) == pytest.approx(lg)
    t = hilbert - fixed
    assert math.log(2) - t**2 / (2 * noise**2 + 2 * longest * t / 3) == pytest.approx(-lg)
    assert layered._tail(fixed, noise, spread, longest, 3.0) == min(convex, hilbert)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99])
def test_each_of_the_tails_covers(keep: float) -> None:
    """Vectors times independent coins; from many small terms to one that carries everything."""
    rng = np.random.default_rng(0)
    for scale in (np.ones(40), 0.5 ** np.arange(40)):
        vectors, fixed = rng.normal(size=(6, 40)) * scale, rng.normal(size=6)
        coins = (rng.random((20_000, 40)) < keep) / keep - 1
        lengths = np.linalg.norm(fixed + coins @ vectors.T, axis=1)
        norm = float(np.linalg.norm(vectors, 2))
        for delta in (0.3, 0.05, 0.01):
            bounds = layered._tails(
                np.linalg.norm(fixed), math.sqrt((1 - keep) / keep * (vectors**2).sum()), norm / keep,
                max(1, 1 / keep - 1) * np.linalg.norm(vectors, axis=0).max(), math.log(1 / delta),
            )
            for bound in bounds:
                assert (lengths <= bound).mean() >= 1 - delta
            assert min(bounds) <= 6 * np.quantile(lengths, 1 - delta)


@pytest.mark.parametrize("name", list(CASES))
def test_a_few_draws_stay_within(name: str) -> None:
    found, x = _masks(name)
    data, rng = (x, torch.zeros(len(x))), np.random.default_rng(1)
    units = random_pruning(found.graph, data, keep=0.6, delta=0.2)
    real = measured_gaps(found.graph, x, rng.random((200, found.graph.n_units)) < 0.6)
    weights = random_pruning(found.graph, data, keep=0.6, delta=0.2, what="weights")
    drawn = measured_weight_gaps(found.graph, x, (
        {n: np.where(rng.random(w.shape) < 0.6, w, 0.0) / 0.6 for n, w in found.weights.items()} for _ in range(60)))
    for bound, gaps in ((units, real), (weights, drawn)):
        assert ((gaps <= bound.values).mean(0) >= 0.8).all()
        assert (np.sqrt((gaps**2).mean(1)) <= bound.rms).mean() >= 0.8
        assert (gaps.max(1) <= bound.worst).mean() >= 0.8
    plain = mp.bounds.neuron_gap(found.graph, data).random(0.6, 0.2)
    assert (units.values <= plain.values).all()
    assert units.rms <= plain.rms
    assert units.rms <= plain.rms


def test_many_units_are_bounded_more_tightly_than_by_their_lengths() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 4)).eval(), torch.randn(20, 8)
    data, masks = (x, torch.zeros(20)), np.random.default_rng(0).random((400, 96)) < 0.5
    bound, plain = random_pruning(model, data, keep=0.5), mp.bounds.neuron_gap(model, data).random(0.5, 0.05)
    real = measured_gaps(mp.trace(model, x[:1]), x, masks)
    assert bound.rms < 0.6 * plain.rms
    assert np.quantile(np.sqrt((real**2).mean(1)), 0.95) <= bound.rms
    assert np.median(bound.values / np.quantile(real, 0.95, axis=0)) < 2.5


def test_layers_that_share_a_weight_are_bounded_by_products() -> None:
    """There a mask meets an input that depends on it: the recursion doesn't hold, and isn't asked."""
    found, _ = _masks("tied")
    assert len(found.weights) < len(found.layers)
    assert found.rescaled(0.8, 0.1).terms
    assert not _masks("mlp")[0].rescaled(0.8, 0.1).terms


@pytest.mark.parametrize("what", ["neurons", "weights"])
def test_masks_that_are_certain_cost_nothing(what: str) -> None:
    found, x = _masks("cnn")
    bound = random_pruning(found.graph, (x, torch.zeros(len(x))), keep=1.0, what=what)
    assert bound.worst == bound.rms == 0.0


def test_units_may_have_probabilities_of_their_own() -> None:
    found, x = _masks("mlp")
    data, n = (x, torch.zeros(len(x))), found.graph.n_units
    keep = np.ones(n)
    keep[20:] = 0.5
    assert 0 < random_pruning(found.graph, data, keep=keep).rms < random_pruning(found.graph, data, keep=0.5).rms
    for bad, text in ((np.ones(n + 1), "one per unit"), (np.full(n, 1.2), "from 0 to 1"), (math.nan, "from 0 to 1")):
        with pytest.raises(BudgetError, match=text):
            random_pruning(found.graph, data, keep=bad)
    with pytest.raises(BudgetError, match="one keep probability"):
        random_pruning(found.graph, data, keep=keep, what="weights")
    with pytest.raises(BudgetError, match="'neurons' or 'weights'"):
        random_pruning(found.graph, data, keep=0.5, what="heads")
