"""Sampled estimates: unbiased, honest about their errors, repeatable, and interruptible."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mipprune.errors import BudgetError
from mipprune.estimate import Estimate, banzhaf, interactions, leave_one_out, semivalue, shapley
from mipprune.estimate.blocks import MAX_BLOCKS, BlockSums, mean_and_stderr
from mipprune.estimate.density import FAITHFUL, SHAPLEY, Density
from mipprune.estimate.designs import PermutationDesign, ToggleDesign, uniforms
from mipprune.estimate.sampling import Clock
from mipprune.game import Game, TableGame
from mipprune.testing.closed_form_games import UnanimitySum

SAMPLERS: dict[str, Callable[..., Estimate]] = {
    "permutation": lambda game, **k: shapley(game, method="permutation", **k),
    "shapley one_toggle": lambda game, **k: shapley(game, method="one_toggle", **k),
    "banzhaf": lambda game, **k: banzhaf(game, method="one_toggle", **k),
    "semivalue .8": lambda game, **k: semivalue(game, p=0.8, method="one_toggle", **k),
    "regression": lambda game, **k: shapley(game, method="regression", **k),
    "shapley adjusted": lambda game, **k: shapley(game, method="adjusted", **k),
    "reuse": lambda game, **k: banzhaf(game, method="reuse", **k),
    "reuse .7": lambda game, **k: semivalue(game, p=0.7, method="reuse", **k),
    "adjusted .3": lambda game, **k: semivalue(game, p=0.3, method="adjusted", **k),
}
EXACT: dict[str, Callable[[Game], Estimate]] = {
    "permutation": shapley, "shapley one_toggle": shapley, "banzhaf": banzhaf,
    "semivalue .8": lambda game: semivalue(game, p=0.8),
    "regression": shapley, "shapley adjusted": shapley, "reuse": banzhaf,
    "reuse .7": lambda game: semivalue(game, p=0.7), "adjusted .3": lambda game: semivalue(game, p=0.3),
}
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS)
both_ways = pytest.mark.parametrize("antithetic", [True, False])


def network_game(n: int, seed: int = 0) -> TableGame:
    """The cross-entropy of a random little ReLU layer on one sample: smooth, not monotone, with interactions."""
    rng = np.random.default_rng(seed)
    bits = (np.arange(1 << n)[:, None] >> np.arange(n) & 1).astype(float)
    logits = np.maximum(bits @ rng.normal(size=(n, 6)) * 1.5 / np.sqrt(n), 0) @ rng.normal(size=(6, 3))
    return TableGame(logits[:, 0] - np.log(np.exp(logits).sum(1)))


def same(a: Estimate, b: Estimate) -> bool:
    return {**a.to_dict(), "seconds": 0} == {**b.to_dict(), "seconds": 0}


# -- unbiased and honest -----------------------------------------------------------------------------------------------


def study(sampler: str, antithetic: bool, n: int, n_evals: int, repetitions: int) -> tuple[float, float, float]:
    """Coverage of the 95% intervals, ratio of stated to real error, and the largest bias in standard errors."""
    game = network_game(n, seed=n)
    truth = EXACT[sampler](game).values
    found = [
        SAMPLERS[sampler](game, n_evals=n_evals, seed=seed, antithetic=antithetic) for seed in range(repetitions)
    ]
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
    covered, ratio, bias = study(sampler, antithetic, n=8, n_evals=800, repetitions=200)
    assert 0.92 <= covered <= 0.98
    assert 0.9 <= ratio <= 1.1
    assert bias < 4


@pytest.mark.slow
@each_sampler
@both_ways
@pytest.mark.parametrize(("n", "n_evals"), [(6, 1500), (10, 3000)])
def test_intervals_cover_over_many_repetitions(sampler: str, antithetic: bool, n: int, n_evals: int) -> None:
    covered, ratio, bias = study(sampler, antithetic, n, n_evals, repetitions=1500)
    assert 0.93 <= covered <= 0.97
    assert 0.96 <= ratio <= 1.04
    assert bias < 4


@each_sampler
def test_standard_errors_of_differences_are_paired(sampler: str) -> None:
    game = network_game(8, seed=1)
    found = [SAMPLERS[sampler](game, n_evals=800, seed=seed) for seed in range(200)]
    i, j = np.triu_indices(8, 1)
    weights = np.random.default_rng(0).normal(size=(3, 8))
    real = np.std([e.values[i] - e.values[j] for e in found], axis=0)
    stated = np.sqrt(np.mean([e.difference(i, j)[1] ** 2 for e in found], axis=0))
    assert np.median(stated / real) == pytest.approx(1, abs=0.1)
    assert (np.abs(stated / real - 1) < 0.3).all()
    real = np.std([weights @ e.values for e in found], axis=0)
    stated = np.sqrt(np.mean([e.combination(weights)[1] ** 2 for e in found], axis=0))
    assert (np.abs(stated / real - 1) < 0.3).all()


def test_differences_agree_with_combinations_and_single_errors() -> None:
    found = SAMPLERS["permutation"](network_game(5), n_evals=500)
    np.testing.assert_allclose(found.combination(np.eye(5))[1], found.stderr, rtol=1e-12)
    order = found.ranking()
    value, stderr = found.difference(order[:2, None], order[2:])
    assert value.shape == stderr.shape == (2, 3)
    assert (value >= 0).all()
    one = found.combination(np.eye(5)[order[1]] - np.eye(5)[order[4]])
    assert (value[1, 2], stderr[1, 2]) == (pytest.approx(one[0]), pytest.approx(one[1]))
    assert found.combination(np.ones(5))[1] == pytest.approx(0, abs=1e-12)  # the sum is known: efficiency


@both_ways
@pytest.mark.parametrize(("index", "p"), [("banzhaf", 0.5), ("banzhaf", 0.8), ("shapley", None),
                                          ("faithful_shapley", None)])
def test_sampled_interactions_cover_the_exact_ones(index: str, p: float | None, antithetic: bool) -> None:
    game = network_game(6, seed=2)
    truth = interactions(game, index=index, p=p, method="exact").values
    pairs = np.triu_indices(6, 1)
    covered, errors = [], []
    for seed in range(200):
        found = interactions(
            game, index=index, p=p, method="sampled", n_evals=1500, seed=seed, antithetic=antithetic
        )
        low, high = found.confidence_interval()
        covered.append(((low <= truth) & (truth <= high))[pairs])
        errors.append((found.values - truth)[pairs])
        assert (found.values == found.values.T).all()
    assert 0.92 <= np.mean(covered) <= 0.98
    assert (np.abs(np.mean(errors, 0)) < 4.5 * np.std(errors, 0) / np.sqrt(200)).all()


@pytest.mark.parametrize("density", [Density(0.5), Density(0.8), Density(0.3), SHAPLEY, FAITHFUL])
def test_both_masks_of_a_pair_have_the_law_of_the_density(density: Density) -> None:
    masks = ToggleDesign(4, 0, density, antithetic=True).draw(0, 40_000)
    for which in (0, 1):
        code = masks[:, which] @ (1 << np.arange(4))
        frequency = np.bincount(code, minlength=16) / len(masks)
        sizes = np.array([bin(c).count("1") for c in range(16)])
        np.testing.assert_allclose(frequency, density.weights(4)[sizes], atol=0.011)  # over 4 standard deviations
    if density.p in (None, 0.5):
        assert (masks[:, 0] == ~masks[:, 1]).all()


@given(n=st.integers(0, 40), p=st.floats(0, 1))
def test_the_weights_of_a_density_are_probabilities(n: int, p: float) -> None:
    counts = np.array([float(np.prod([(n - k) / (k + 1) for k in range(s)])) for s in range(n + 1)])
    for density in (Density(p), SHAPLEY, FAITHFUL):
        assert counts @ density.weights(n) == pytest.approx(1, rel=1e-10)


def test_antithetic_orders_help_where_units_are_redundant() -> None:
    game = network_game(10, seed=4)
    errors = {
        a: np.mean([shapley(game, method="permutation", n_evals=500, seed=s, antithetic=a).stderr for s in range(20)])
        for a in (True, False)
    }
    assert errors[True] < 0.95 * errors[False]


def test_toggles_near_one_are_leave_one_out() -> None:
    game = network_game(8)
    found = semivalue(game, p=1 - 1e-6, method="one_toggle", n_evals=600)
    np.testing.assert_allclose(found.values, leave_one_out(game).values, atol=1e-12)
    at_one = semivalue(game, p=1.0, method="one_toggle", n_evals=100)
    np.testing.assert_allclose(at_one.values, leave_one_out(game).values, atol=1e-12)


# -- repeatable --------------------------------------------------------------------------------------------------------


@each_sampler
@both_ways
def test_seed_decides_and_batch_size_does_not(sampler: str, antithetic: bool) -> None:
    game = network_game(7)
    first = SAMPLERS[sampler](game, n_evals=3000, seed=5, antithetic=antithetic)
    for batch_size in (1, 13, 64, 100_000):
        again = SAMPLERS[sampler](game, n_evals=3000, seed=5, antithetic=antithetic, batch_size=batch_size)
        assert same(first, again)
    assert not same(first, SAMPLERS[sampler](game, n_evals=3000, seed=6, antithetic=antithetic))


def test_interactions_do_not_depend_on_the_batch_size() -> None:
    game = network_game(6)
    first = interactions(game, method="sampled", n_evals=2000, seed=1)
    again = interactions(game, method="sampled", n_evals=2000, seed=1, batch_size=7)
    assert (first.values == again.values).all()
    assert (first.stderr == again.stderr).all()


def test_a_design_is_a_function_of_seed_and_number() -> None:
    whole = uniforms(3, 0, 10, 6)
    np.testing.assert_array_equal(whole, np.concatenate([uniforms(3, 0, 4, 6), uniforms(3, 4, 6, 6)]))
    np.testing.assert_array_equal(whole.ravel(), np.random.default_rng(3).random(60))
    for design in (PermutationDesign(6, 1, 0.0, 1.0, True), ToggleDesign(6, 1, SHAPLEY, True)):
        np.testing.assert_array_equal(design.draw(0, 9)[4:], design.draw(4, 5))


def test_orders_are_uniform_and_pairs_are_reverses() -> None:
    position = PermutationDesign(3, 0, 0.0, 1.0, True).draw(0, 12_000)
    assert (position[:, 0] + position[:, 1] == 2).all()
    counts = np.unique(position[:, 0] @ [9, 3, 1], return_counts=True)[1]
    assert len(counts) == 6
    assert (np.abs(counts - 2000) < 170).all()  # four standard deviations


def test_every_order_is_efficient_and_costs_what_it_says() -> None:
    game = network_game(6)
    design = PermutationDesign(6, 0, game.value_empty, game.value_full, True)
    draw = design.draw(0, 20)
    coalitions = design.coalitions(draw)
    assert coalitions.shape == (20 * design.cost, 6)
    vectors = design.vectors(draw, game.values(coalitions).reshape(20, -1))
    np.testing.assert_allclose(vectors.sum(1), game.value_full - game.value_empty, atol=1e-12)


@pytest.mark.parametrize("sampler", [*SAMPLERS, "interactions"])
def test_the_stated_evaluations_are_the_ones_made(sampler: str) -> None:
    class Counting(UnanimitySum):
        asked = 0

        def values(self, coalitions: np.ndarray) -> np.ndarray:
            self.asked += len(coalitions)
            return super().values(coalitions)

    game = Counting(6, {(0, 1): 1.0, (3,): 2.0})
    call = SAMPLERS.get(sampler, lambda game, **k: interactions(game, method="sampled", **k))
    found = call(game, n_evals=1000)
    assert found.n_evals == game.asked <= 1000
    assert found.n_evals > 1000 - 2 * 22


# -- blocks ------------------------------------------------------------------------------------------------------------


@given(n=st.integers(2, 700), split=st.integers(1, 50))
def test_blocks_hold_all_replicates_in_order(n: int, split: int) -> None:
    vectors = np.random.default_rng(n).normal(size=(n, 2))
    blocks = BlockSums.empty(2)
    for at in range(0, n, split):
        blocks = blocks.added(vectors[at : at + split])
    sizes = blocks.sizes
    assert sizes.sum() == n
    assert 2 <= len(sizes) <= MAX_BLOCKS
    assert n < 2 * MAX_BLOCKS or len(sizes) > MAX_BLOCKS // 2
    assert len(set(sizes[:-1])) <= 1
    parts = np.split(vectors, np.cumsum(sizes)[:-1])
    np.testing.assert_allclose(blocks.means, [part.mean(0) for part in parts], atol=1e-12)
    np.testing.assert_allclose(mean_and_stderr(blocks.means, sizes)[0], vectors.mean(0), atol=1e-12)


def test_standard_error_of_unequal_blocks_is_unbiased() -> None:
    sizes = np.array([4, 4, 4, 1])
    means = np.random.default_rng(0).normal(size=(4, 50_000)) / np.sqrt(sizes)[:, None]
    assert (mean_and_stderr(means, sizes)[1] ** 2).mean() * 13 == pytest.approx(1, abs=0.02)


# -- stopping early ----------------------------------------------------------------------------------------------------


class Stopping(Game):
    """A network game that raises Ctrl-C at its n-th call, or moves a clock by a second a call."""

    def __init__(self, interrupt_at: int | None = None, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
        self.inner, self.calls, self.interrupt_at = network_game(6), 0, interrupt_at
        if monkeypatch is not None:
            monkeypatch.setattr(Clock, "seconds", property(lambda _: float(self.calls)))

    @property
    def n_players(self) -> int:
        return 6

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        return self.inner.values(coalitions)


@each_sampler
def test_ctrl_c_returns_what_was_gathered(sampler: str) -> None:
    found = SAMPLERS[sampler](Stopping(interrupt_at=20), n_evals=2000, batch_size=64)
    assert found.termination == "interrupted"
    assert 0 < found.n_evals < 2000
    assert found.method == "adjusted" or same(  # whose proxy takes a share of the budget
        found, _completed(SAMPLERS[sampler](network_game(6), n_evals=found.n_evals), "interrupted")
    )


def test_the_first_chunks_are_small_so_that_an_early_stop_finds_something() -> None:
    found = shapley(Stopping(interrupt_at=4), method="permutation", n_evals=2000)
    assert found.n_evals == 2 + (1 + 2) * 10


def _completed(estimate: Estimate, termination: str) -> Estimate:
    return Estimate.from_dict({**estimate.to_dict(), "termination": termination})


def test_ctrl_c_before_two_replicates_is_ctrl_c() -> None:
    for call in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            shapley(Stopping(interrupt_at=call), method="permutation", n_evals=2000)
    with pytest.raises(KeyboardInterrupt):
        shapley(Stopping(interrupt_at=2), method="exact", batch_size=8)


@each_sampler
@pytest.mark.parametrize("n_evals", [None, 2500])
def test_time_limit_returns_what_was_gathered(
    sampler: str, n_evals: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    game = Stopping(monkeypatch=monkeypatch)
    found = SAMPLERS[sampler](game, time_limit=20.5, n_evals=n_evals, batch_size=64)
    assert found.termination == "time_limit"
    assert game.calls == 21
    assert found.method == "adjusted" or same(  # whose proxy takes a share of the budget
        found, _completed(SAMPLERS[sampler](network_game(6), n_evals=found.n_evals), "time_limit")
    )


def test_too_short_a_time_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BudgetError, match=r"1 replicate\(s\) of 10 evaluations"):
        shapley(Stopping(monkeypatch=monkeypatch), method="permutation", time_limit=1.5)
    with pytest.raises(BudgetError, match="'permutation'"):
        shapley(Stopping(monkeypatch=monkeypatch), method="exact", time_limit=3, batch_size=4)


def test_auto_samples_when_the_table_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    game = Stopping(monkeypatch=monkeypatch)
    found = shapley(game, time_limit=12, batch_size=4)
    assert (found.method, found.termination) == ("permutation", "time_limit")
    assert game.calls == 13
    roomy = shapley(Stopping(monkeypatch=monkeypatch), time_limit=17, batch_size=4)
    assert roomy.method == "exact"
    pairs = interactions(Stopping(monkeypatch=monkeypatch), time_limit=15, batch_size=4, antithetic=False)
    assert (pairs.method, pairs.termination) == ("sampled", "time_limit")


def test_one_player_needs_no_sampling() -> None:
    for sampler in SAMPLERS.values():
        found = sampler(TableGame(np.array([1.0, 3.0])), n_evals=50)
        assert found.values == [2.0]
        assert found.stderr == [0.0]
        assert found.n_evals <= 50
    assert shapley(TableGame(np.array([1.0, 3.0])), method="permutation", time_limit=5).n_evals == 2


def test_progress_counts_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    shapley(network_game(5), method="permutation", n_evals=300, progress=True)
    assert "evals" in capsys.readouterr().err
