"""Estimates in which every sample has coalitions of its own: unbiased, honest, repeatable, and only where they hold."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.errors import BudgetError, ConfigError, DataError
from mipprune.estimate import Estimate, Interactions, PinnedGame, banzhaf, interactions, semivalue, shapley
from mipprune.estimate.density import SHAPLEY, Density
from mipprune.estimate.samplewise import SampleToggleSource, per_sample, sample_orders
from mipprune.estimate.sampling import Clock, Evaluator
from mipprune.game import Game, LayerGame, SampleGame, TableGame
from mipprune.testing.sample_game_contract import SampleGameContract
from mipprune.testing.sample_games import MeanOfTables, mean_of_networks

SAMPLERS: dict[str, Callable[..., Estimate]] = {
    "walk": lambda game, **k: shapley(game, method="sample_permutation", **k),
    "shapley toggle": lambda game, **k: shapley(game, method="sample_one_toggle", **k),
    "banzhaf": lambda game, **k: banzhaf(game, method="sample_one_toggle", **k),
    "semivalue .8": lambda game, **k: semivalue(game, p=0.8, method="sample_one_toggle", **k),
}
EXACT: dict[str, Callable[[Game], Estimate]] = {
    "walk": lambda game: shapley(game, method="exact"),
    "shapley toggle": lambda game: shapley(game, method="exact"),
    "banzhaf": lambda game: banzhaf(game, method="exact"),
    "semivalue .8": lambda game: semivalue(game, p=0.8, method="exact"),
}
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS)
both_ways = pytest.mark.parametrize("antithetic", [True, False])


@functools.cache
def perceptron() -> tuple[mp.UnitGraph, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double().eval()
    for p in model.parameters():
        p.data.mul_(3)
    x = torch.randn(16, 5, dtype=torch.float64)
    data = (x, torch.randint(4, (16,)))
    return mp.trace(model, x), data


def layer_game(value: object = "cross_entropy", **options: object) -> LayerGame:
    """Eight units of a perceptron with large weights on 16 samples, in double precision."""
    graph, data = perceptron()
    return LayerGame(graph, "2", data, value, **options)  # type: ignore[arg-type]


def same(a: Estimate, b: Estimate) -> bool:
    return {**a.to_dict(), "seconds": 0} == {**b.to_dict(), "seconds": 0}


class TestMeanOfTables(SampleGameContract):
    def make_game(self) -> SampleGame:
        return mean_of_networks(5)


class TestLayer(SampleGameContract):
    rtol, atol = 1e-9, 1e-11

    def make_game(self) -> SampleGame:
        return layer_game()


class TestLayerWithoutTheKernel(TestLayer):
    def make_game(self) -> SampleGame:
        return layer_game(fused=False)


class TestLayerByTheWholeSuffix(TestLayer):
    def make_game(self) -> SampleGame:
        return layer_game(fused=False, incremental=False)


class TestLayerInSmallBatches(TestLayer):
    def make_game(self) -> SampleGame:
        return layer_game(fused=False, incremental=False, batch_bytes=1)


class TestPinnedSamples(SampleGameContract):
    def make_game(self) -> SampleGame:
        game = per_sample(PinnedGame(mean_of_networks(7), kept=[2], removed=[5]))
        assert game is not None
        return game


# -- unbiased and honest -----------------------------------------------------------------------------------------------


def study(sampler: str, antithetic: bool, n: int, n_evals: int, repetitions: int) -> tuple[float, float, float]:
    """Coverage of the 95% intervals, ratio of stated to real error, and the largest bias in standard errors."""
    game = mean_of_networks(n, n_samples=4, seed=n)
    truth = EXACT[sampler](game).values
    assert (truth != 0).all()
    found = [SAMPLERS[sampler](game, n_evals=n_evals, seed=s, antithetic=antithetic) for s in range(repetitions)]
    ends = [e.confidence_interval(0.95) for e in found]
    covered = np.mean([(low <= truth) & (truth <= high) for low, high in ends])
    errors = np.array([e.values for e in found]) - truth
    real = np.sqrt((errors**2).mean(0))
    stated = np.sqrt(np.mean([e.stderr**2 for e in found], axis=0))
    bias = np.abs(errors.mean(0)) / (real / np.sqrt(repetitions))
    return float(covered), float((stated / real).mean()), float(bias.max())


@each_sampler
@both_ways
def test_intervals_cover_and_estimates_are_unbiased(sampler: str, antithetic: bool) -> None:
    covered, ratio, bias = study(sampler, antithetic, n=8, n_evals=560, repetitions=240)
    assert 0.92 <= covered <= 0.98
    assert 0.9 <= ratio <= 1.1
    assert bias < 4


@pytest.mark.slow
@each_sampler
@both_ways
def test_intervals_cover_over_many_repetitions(sampler: str, antithetic: bool) -> None:
    covered, ratio, bias = study(sampler, antithetic, n=10, n_evals=1000, repetitions=1000)
    assert 0.93 <= covered <= 0.97
    assert 0.96 <= ratio <= 1.04
    assert bias < 4


@each_sampler
@pytest.mark.parametrize("fused", [True, False])
def test_a_layer_against_its_exact_table(sampler: str, fused: bool) -> None:
    game = layer_game(fused=fused)
    truth = EXACT[sampler](game).values
    found = SAMPLERS[sampler](game, n_evals=4000, seed=1)
    assert np.linalg.norm(truth) > 0.1
    assert (np.abs(found.values - truth) <= 5 * found.stderr + 1e-9).all()
    assert np.linalg.norm(found.values - truth) < 0.05 * np.linalg.norm(truth)


@both_ways
def test_walks_are_efficient(antithetic: bool) -> None:
    for game in (mean_of_networks(6), layer_game()):
        found = shapley(game, method="sample_permutation", n_evals=300, antithetic=antithetic)
        assert found.value_full is not None
        assert found.value_empty is not None
        assert found.values.sum() == pytest.approx(found.value_full - found.value_empty, abs=1e-10)
        assert found.combination(np.ones(game.n_players))[1] == pytest.approx(0, abs=1e-10)


def test_a_sample_of_its_own_order_is_worth_many_shared_orders() -> None:
    game = mean_of_networks(8, n_samples=64)
    truth = shapley(game, method="exact").values

    def error(method: str) -> float:
        found = [shapley(game, method=method, n_evals=400, seed=seed).values for seed in range(20)]
        return float(np.mean((np.array(found) - truth) ** 2))

    assert error("sample_permutation") < error("permutation") / 5


def test_orders_are_uniform_and_independent() -> None:
    orders = sample_orders(5, 0, 60_000, 3)
    count = np.bincount(orders @ [9, 3, 1], minlength=27)
    assert (count > 0).sum() == 6
    np.testing.assert_allclose(count[count > 0] / 60_000, 1 / 6, atol=0.007)  # over 4 standard deviations
    assert (sample_orders(5, 1, 50, 40) != sample_orders(5, 0, 50, 40)).any(axis=1).all()
    first_places = sample_orders(0, 0, 20_000, 16)[:, 0]
    neighbours = np.corrcoef(first_places[1:], first_places[:-1])[0, 1]
    assert abs(neighbours) < 0.03
    assert (np.sort(sample_orders(0, 7, 9, 1)) == 0).all()


@pytest.mark.parametrize("density", [Density(0.5), Density(0.8), SHAPLEY])
def test_masks_have_the_law_of_the_density(density: Density) -> None:
    game = MeanOfTables(np.zeros((8000, 8)))
    source = SampleToggleSource(game, Evaluator(game, 1, Clock(None)), 0, density, antithetic=True)
    for which in (0, 1):
        masks = np.concatenate([source._passes(r)[which] for r in range(5)])
        frequency = np.bincount(masks @ [1, 2, 4], minlength=8) / len(masks)
        sizes = np.array([bin(c).count("1") for c in range(8)])
        np.testing.assert_allclose(frequency, density.weights(3)[sizes], atol=0.011)  # over 4 standard deviations
    one, other = SampleToggleSource(game, Evaluator(game, 1, Clock(None)), 0, Density(0.5), True)._passes(3)
    assert (one != other).all()


# -- repeatable --------------------------------------------------------------------------------------------------------


@each_sampler
def test_the_seed_decides_and_chunks_do_not(sampler: str) -> None:
    game = mean_of_networks(7)
    found = SAMPLERS[sampler](game, n_evals=700, seed=4)
    for batch_size in (1, 33, 10**6):
        assert same(found, SAMPLERS[sampler](game, n_evals=700, seed=4, batch_size=batch_size))
    assert (found.values != SAMPLERS[sampler](game, n_evals=700, seed=5).values).any()
    longer = SAMPLERS[sampler](game, n_evals=40 * found.n_evals, seed=4)  # the first replicates are the same ones
    assert longer.block_sizes[0] > 1
    short = SAMPLERS[sampler](game, n_evals=2 + longer.block_sizes[0] * _cost(found), seed=4)
    np.testing.assert_allclose(short.values, longer.block_means[0], rtol=1e-12)


def _cost(found: Estimate) -> int:
    return (found.n_evals - 2) // int(found.block_sizes.sum())


@both_ways
def test_the_budget_is_kept_and_counted(antithetic: bool) -> None:
    class Counting(MeanOfTables):
        passes = 0

        def walk(self, orders: np.ndarray) -> np.ndarray:
            self.passes += self.n_players
            return super().walk(orders)

        def toggle(self, masks: np.ndarray) -> np.ndarray:
            self.passes += self.n_players + 1
            return super().toggle(masks)

    for sampler in SAMPLERS.values():
        game = Counting(mean_of_networks(6).tables)
        found = sampler(game, n_evals=333, antithetic=antithetic)
        assert found.n_evals == 2 + game.passes <= 333
        assert found.n_evals + _cost(found) > 333


def test_too_small_a_budget() -> None:
    with pytest.raises(BudgetError, match=r"at least 26 .*14 with antithetic=False"):
        shapley(mean_of_networks(6), method="sample_permutation", n_evals=25)
    shapley(mean_of_networks(6), method="sample_permutation", n_evals=26)
    with pytest.raises(ConfigError, match="sample_one_toggle"):
        banzhaf(mean_of_networks(6), method="sample_permutation")


def test_time_limit_and_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    game, walks = mean_of_networks(6), []

    class Walking(MeanOfTables):
        def walk(self, orders: np.ndarray) -> np.ndarray:
            walks.append(1)
            return super().walk(orders)

    monkeypatch.setattr(Clock, "seconds", property(lambda _: float(len(walks))))
    found = shapley(Walking(game.tables), method="sample_permutation", time_limit=13.5, progress=True)
    assert found.termination == "time_limit"
    assert found.n_evals == 2 + 7 * 2 * 6  # chunks of 1, 2 and 4 replicates of two walks; another chunk wasn't finished
    assert len(walks) == 14
    assert "evals" in capsys.readouterr().err


# -- where it holds ----------------------------------------------------------------------------------------------------


def test_auto_takes_samples_where_they_can_walk_alone() -> None:
    game = mean_of_networks(8)
    assert shapley(game).method == "exact"
    assert shapley(game, n_evals=200).method == "sample_permutation"
    assert banzhaf(game, n_evals=200).method == "sample_one_toggle"
    assert semivalue(game, p=0.7, n_evals=200).method == "sample_one_toggle"
    assert semivalue(game, p=1, n_evals=200).method == "exact"
    assert "sample_permutation, 162 evaluations" in str(shapley(game, n_evals=170))
    assert same(shapley(game, n_evals=200), shapley(game, n_evals=200, method="sample_permutation"))
    assert shapley(layer_game(), n_evals=100).method == "sample_permutation"
    assert shapley(TableGame(game.tables[0]), n_evals=200).method == "permutation"


def test_a_callable_value_falls_back_to_shared_coalitions() -> None:
    game = layer_game(lambda out, target: -nn.functional.cross_entropy(out, target))
    assert per_sample(game) is None
    assert shapley(game, n_evals=100).method == "permutation"
    assert banzhaf(game, n_evals=100).method == "one_toggle"
    assert per_sample(PinnedGame(game, kept=[1])) is None
    with pytest.raises(DataError, match="method='permutation'"):
        shapley(game, method="sample_permutation", n_evals=100)
    with pytest.raises(DataError, match="method='one_toggle'"):
        banzhaf(TableGame(np.arange(8.0)), method="sample_one_toggle", n_evals=100)


@each_sampler
def test_pinned_players_stay_where_they_are(sampler: str) -> None:
    for game in (mean_of_networks(9), layer_game()):
        once = PinnedGame(game, kept=[4], removed=[0])
        for pinned in (PinnedGame(game, kept=[1, 4], removed=[0, 6]), PinnedGame(once, kept=[0], removed=[4])):
            truth = EXACT[sampler](pinned).values
            found = SAMPLERS[sampler](pinned, n_evals=4000, seed=1)
            assert found.player_names == pinned.player_names
            assert (np.abs(found.values - truth) <= 5 * found.stderr + 1e-9).all()
            assert np.linalg.norm(found.values - truth) < 0.1 * np.linalg.norm(truth)
        samples = per_sample(pinned)
        assert samples is not None
        both = np.random.default_rng(0).random((7, pinned.n_players)) < 0.5
        np.testing.assert_allclose(samples.sample_values(both).mean(1), pinned.values(both))
        np.testing.assert_allclose(samples.values(both), pinned.values(both))


def test_a_value_that_is_not_finite_names_the_sample_and_the_player() -> None:
    tables = np.array(mean_of_networks(5).tables)

    class Broken(MeanOfTables):
        def walk(self, orders: np.ndarray) -> np.ndarray:
            out = super().walk(orders)
            out[2, 3] = np.nan
            return out

    with pytest.raises(DataError, match=r"sample 2: the value changes by nan with player 3"):
        shapley(Broken(tables), method="sample_permutation", n_evals=100)


def test_one_player() -> None:
    game: SampleGame = MeanOfTables(np.array([[1.0, 3.0], [2.0, 6.0]]))
    for sampler in SAMPLERS.values():
        found = sampler(game, n_evals=50)
        assert found.values == [3.0]
        assert found.stderr == [0.0]


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_pairs_need_a_mask_for_every_sample() -> None:
    with pytest.raises(DataError, match="one per sample, 16, got 15"):
        layer_game().toggle_pairs(np.zeros((15, 8), dtype=bool))


def test_pairs_of_more_active_units_than_fit_a_block() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 90), nn.ReLU(), nn.Linear(90, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    for p in model.parameters():
        p.data.mul_(3)
    x = torch.randn(6, 5)
    x[0] = 0.0
    model[0].bias.data.neg_()
    data = (x, torch.randint(3, (6,)))
    double = LayerGame(mp.trace(model.double(), x.double()), "0", (x.double(), data[1]), fused=False)
    single = LayerGame(mp.trace(model.float(), x), "0", data)
    assert single._chain is not None
    active = (single._chain.activations != 0).sum(1)
    assert (active % 64 != 0).all()
    rng = np.random.default_rng(0)
    masks, orders = rng.random((6, 90)) < 0.5, rng.random((6, 90)).argsort(1)
    for one, other in (
        (single.toggle_pairs(masks), double.toggle_pairs(masks)), (single.toggle(masks), double.toggle(masks)),
        (single.walk(orders), double.walk(orders)),
    ):
        np.testing.assert_allclose(one, other, atol=2e-6 * np.abs(double.sample_values(masks)).max())


PAIR_LAWS = pytest.mark.parametrize(
    ("index", "p"), [("banzhaf", None), ("banzhaf", 0.8), ("shapley", None), ("faithful_shapley", None)]
)


@PAIR_LAWS
@both_ways
def test_sampled_interactions_cover_the_exact_ones(index: str, p: float | None, antithetic: bool) -> None:
    game, pairs = mean_of_networks(6, n_samples=8), np.triu_indices(6, 1)
    truth = interactions(game, index=index, p=p, method="exact").values
    assert (truth[pairs] != 0).all()
    covered, errors = [], []
    for seed in range(200):
        found = interactions(
            game, index=index, p=p, method="sample_sampled", n_evals=1100, seed=seed, antithetic=antithetic
        )
        low, high = found.confidence_interval()
        covered.append(((low <= truth) & (truth <= high))[pairs])
        errors.append((found.values - truth)[pairs])
    assert 0.92 <= np.mean(covered) <= 0.98
    assert (np.abs(np.mean(errors, 0)) < 4.5 * np.std(errors, 0) / np.sqrt(200)).all()


def test_interactions_pick_count_and_repeat() -> None:
    game = mean_of_networks(8)
    found = interactions(game, n_evals=250)
    assert (found.method, found.n_evals, found.exact) == ("sample_sampled", 222, False)  # 2 replicates of 2 masks: 148
    assert interactions(game).method == "exact"
    again = interactions(game, n_evals=250, batch_size=1)
    assert {**again.to_dict(), "seconds": 0} == {**found.to_dict(), "seconds": 0}
    assert (interactions(game, n_evals=250, seed=1).values != found.values).any()
    layer = layer_game()
    assert isinstance(interactions(layer, n_evals=200), Interactions)
    shared = layer_game(lambda out, target: -nn.functional.cross_entropy(out, target))
    assert interactions(shared, n_evals=200).method == "sampled"
    with pytest.raises(DataError, match="method='sampled' works"):
        interactions(shared, n_evals=200, method="sample_sampled")


def test_an_interaction_that_is_not_finite_names_the_players() -> None:
    class Broken(MeanOfTables):
        def toggle_pairs(self, masks: np.ndarray) -> np.ndarray:
            out = super().toggle_pairs(masks)
            out[1, 3] = out[3, 1] = np.inf
            return out

    with pytest.raises(DataError, match=r"players 1 and 3 is inf"):
        interactions(Broken(mean_of_networks(5).tables), method="sample_sampled")
