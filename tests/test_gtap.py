"""GTAP: Dropout-like sampling with honest bands, and the three loops against slow ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mipprune as mp
from mipprune.errors import BudgetError, ConfigError, DataError
from mipprune.estimate import GtapResult, PinnedGame, exact_table, sampling, semivalue
from mipprune.game import Game, TableGame
from mipprune.testing.closed_form_games import AdditiveGame, SymmetricGame, UnanimitySum
from mipprune.testing.estimate_reference import semivalue_by_enumeration
from mipprune.testing.sample_games import mean_of_networks

ALGORITHMS: dict[str, Callable[..., GtapResult]] = {
    "top_n": mp.gtap_top_n,
    "iterated_pruning": mp.gtap_iterated_pruning,
    "iterated_building": mp.gtap_iterated_building,
}
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
tables = st.integers(3, 6).flatmap(
    lambda n: st.lists(st.floats(-1, 1, width=32), min_size=1 << n, max_size=1 << n).map(np.array)
)


def network_game(n: int, seed: int = 1) -> TableGame:
    return exact_table(mean_of_networks(n, 4, seed))


def same(a: GtapResult, b: GtapResult) -> bool:
    def timeless(result: GtapResult) -> dict[str, object]:
        rounds = [{**r.to_dict(), "estimate": {**r.estimate.to_dict(), "seconds": 0}} for r in result.rounds]
        return {**result.to_dict(), "rounds": rounds, "seconds": 0}

    return timeless(a) == timeless(b)


class Counting(UnanimitySum):
    asked = 0

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        self.asked += len(coalitions)
        return super().values(coalitions)


# -- the loops ---------------------------------------------------------------------------------------------------------


def slow_loop(game: Game, algorithm: str, n_keep: int, step: int, p: float | None) -> list[set[int]]:
    """The kept sets of an algorithm, by enumeration in plain sets."""
    n = game.n_players
    kept = set() if algorithm == "iterated_building" else set(range(n))
    path = [set(kept)]
    while len(kept) != n_keep:
        free = sorted(set(range(n)) - kept if algorithm == "iterated_building" else kept)
        fixed = kept if algorithm == "iterated_building" else set()

        class Rest(Game):
            n_players = len(free)  # type: ignore[assignment]
            players, pinned = tuple(free), tuple(fixed)

            def values(self, coalitions: np.ndarray) -> np.ndarray:
                whole = np.zeros((len(coalitions), n), dtype=bool)
                whole[:, list(self.players)] = coalitions
                whole[:, list(self.pinned)] = True
                return game.values(whole)

        index = semivalue_by_enumeration(Rest(), (n_keep - len(fixed)) / len(free) if p is None else p)
        best_first = [free[j] for j in np.argsort(-index, kind="stable")]
        if algorithm == "iterated_building":
            kept |= set(best_first[: min(step, n_keep - len(kept))])
        else:
            many = n - n_keep if algorithm == "top_n" else min(step, len(kept) - n_keep)
            kept -= set(best_first[len(best_first) - many :])
        path.append(set(kept))
    return path


@each_algorithm
@given(table=tables, data=st.data())
@settings(max_examples=25)
def test_exact_loops_take_the_path_of_the_slow_ones(algorithm: str, table: np.ndarray, data: st.DataObject) -> None:
    # distinct values: a tie of the index may fall either way by rounding
    game = TableGame(table + np.random.default_rng(0).random(len(table)))
    n_keep = data.draw(st.integers(1, game.n_players - 1))
    step = data.draw(st.integers(1, 3))
    p = data.draw(st.sampled_from([None, 0.3, 0.9]))
    steps = {"top_n": {}, "iterated_pruning": {"drop": step}, "iterated_building": {"add": step}}[algorithm]
    found = ALGORITHMS[algorithm](game, n_keep, method="exact", p=p, **steps)
    expected = slow_loop(game, algorithm, n_keep, step, p)
    assert [set(np.flatnonzero(row).tolist()) for row in found.path] == expected
    assert found.kept.sum() == n_keep
    np.testing.assert_array_equal(found.path[-1], found.kept)
    np.testing.assert_allclose(found.path_values, game.values(found.path))


@each_algorithm
@given(weights=st.lists(st.integers(-50, 50), min_size=3, max_size=8, unique=True), data=st.data())
@settings(max_examples=25)
def test_an_additive_game_keeps_its_largest_weights(
    algorithm: str, weights: list[int], data: st.DataObject
) -> None:
    n_keep = data.draw(st.integers(1, len(weights) - 1))
    best = set(np.argsort(weights)[::-1][:n_keep].tolist())
    for method in ("one_toggle", "auto"):  # single differences of an additive game have no noise
        found = ALGORITHMS[algorithm](AdditiveGame(weights), n_keep, method=method, n_evals=2000)
        assert set(np.flatnonzero(found.kept).tolist()) == best


@each_algorithm
def test_dropout_finds_clear_differences(algorithm: str) -> None:
    weights = np.repeat([10.0, 0.0], [4, 6])
    found = ALGORITHMS[algorithm](AdditiveGame(weights), 4, seed=2)
    assert found.kept.tolist() == (weights > 0).tolist()
    assert found.rounds[0].estimate.method == "reuse"


def test_rounds_see_that_twins_replace_each_other_and_one_estimate_does_not() -> None:
    """Units 0 and 1 do the same work, worth 1; units 2 and 3 add 0.3 each.  The best two are a twin and another."""
    game = UnanimitySum(4, {(0,): 1.0, (1,): 1.0, (0, 1): -1.0, (2,): 0.3, (3,): 0.29})
    once = mp.gtap_top_n(game, 2, method="exact", p=0.5)
    built = mp.gtap_iterated_building(game, 2, method="exact", p=0.5)
    assert (once.path_values[-1], built.path_values[-1]) == (pytest.approx(1.0), pytest.approx(1.3))
    thinned = mp.gtap_iterated_pruning(game, 2, drop=1, method="exact", p=0.9)
    assert mp.gtap_top_n(game, 2, method="exact", p=0.9).path_values[-1] == pytest.approx(0.59)
    assert thinned.path_values[-1] == pytest.approx(1.3)


def test_the_keep_rate_is_the_target_density_of_every_round() -> None:
    game = network_game(8)
    pruned = mp.gtap_iterated_pruning(game, 2, drop=2, method="exact")
    assert [r.estimate.p for r in pruned.rounds] == [2 / 8, 2 / 6, 2 / 4]
    built = mp.gtap_iterated_building(game, 6, add=2, method="exact")
    assert [r.estimate.p for r in built.rounds] == [6 / 8, 4 / 6, 2 / 4]
    fixed = mp.gtap_iterated_building(game, 6, add=4, p=0.9, method="exact")
    assert [r.estimate.p for r in fixed.rounds] == [0.9, 0.9]
    assert [len(r.chosen) for r in fixed.rounds] == [4, 2]
    roomy = mp.gtap_iterated_building(game, 6, add=2)
    assert [r.estimate.p for r in roomy.rounds] == [6 / 8, 4 / 6, 2 / 4]
    tight = mp.gtap_iterated_building(network_game(12), 2, add=1, n_evals=2 * 200 + 3)
    assert [r.estimate.p for r in tight.rounds] == [41 / 198] * 2  # not 2/12 and 1/11: 41 masks with every unit
    assert len(mp.gtap_iterated_pruning(network_game(12), 2, method="exact").rounds) == 5  # drops of two: at most 8


# -- bands -------------------------------------------------------------------------------------------------------------


@each_algorithm
@pytest.mark.parametrize(
    "method", ["dropout", "one_toggle", pytest.param("sample_one_toggle", marks=pytest.mark.slow)]
)
def test_bands_cover_in_every_round(algorithm: str, method: str) -> None:
    """Against the exact index of the game that the round's pins leave: each round draws anew, so they are honest."""
    game, repetitions = mean_of_networks(8, 4, 1), 220
    table = exact_table(game)
    steps = {"top_n": {}, "iterated_pruning": {"drop": 2}, "iterated_building": {"add": 2}}[algorithm]
    truths: dict[bytes, np.ndarray] = {}
    covered: list[list[float]] = [[], []]
    for seed in range(repetitions):
        found = ALGORITHMS[algorithm](game, 4, p=0.6, method=method, n_evals=1200, seed=seed, **steps)
        for number, (each, kept) in enumerate(zip(found.rounds, found.path)):
            pins = {"kept": kept} if algorithm == "iterated_building" else {"removed": ~kept}
            if kept.tobytes() not in truths:
                truths[kept.tobytes()] = semivalue(PinnedGame(table, **pins), p=0.6, method="exact").values
            truth = truths[kept.tobytes()]
            # a dead unit's marginal never varies: its interval has width 0 and holds the truth up to rounding
            covered[number].append(((each.low - 1e-12 <= truth) & (truth <= each.high + 1e-12)).mean())
    for shares in covered[: 1 if algorithm == "top_n" else 2]:
        assert len(shares) == repetitions
        assert 0.93 <= np.mean(shares) <= 0.97


def test_bands_reach_across_the_cut_where_units_are_alike_and_not_where_the_index_is_exact() -> None:
    alike = mp.gtap_top_n(SymmetricGame([0.0, 0.4, 1.0, 1.1, 2.0, 2.5, 3.1]), 3, seed=1)
    assert alike.rounds[0].undecided >= 2
    low, high = alike.rounds[0].estimate.confidence_interval(alike.level)
    np.testing.assert_array_equal(alike.rounds[0].low, low)
    np.testing.assert_array_equal(alike.rounds[0].high, high)
    assert mp.gtap_top_n(network_game(6), 3, method="exact").rounds[0].undecided == 0
    for seed in range(10):
        one = mp.gtap_top_n(network_game(8), 3, p=0.5, n_evals=300, seed=seed).rounds[0]
        worst_first = np.sort(one.estimate.values)
        cut = (worst_first[4] + worst_first[5]) / 2
        assert one.undecided == sum(low < cut < high for low, high in zip(one.low, one.high)) > 0
    wide, narrow = (mp.gtap_top_n(network_game(6), 3, level=level, n_evals=500).rounds[0] for level in (0.99, 0.5))
    assert (wide.high - wide.low > narrow.high - narrow.low).all()


# -- budgets, clocks, records ------------------------------------------------------------------------------------------


@each_algorithm
@pytest.mark.parametrize("method", ["dropout", "one_toggle", "auto"])
@pytest.mark.parametrize("n_evals", [350, 1001])
def test_the_budget_is_of_the_whole_run(algorithm: str, method: str, n_evals: int) -> None:
    game = Counting(7, {(0, 1): 1.0, (2, 3, 4): -1.0, (5,): 2.0, (6,): 0.5})
    found = ALGORITHMS[algorithm](game, 3, method=method, n_evals=n_evals)
    assert found.n_evals == game.asked <= n_evals


@each_algorithm
def test_seed_decides_and_batch_size_does_not(algorithm: str) -> None:
    game = network_game(7)
    first = ALGORITHMS[algorithm](game, 3, n_evals=900, seed=5)
    assert same(first, ALGORITHMS[algorithm](game, 3, n_evals=900, seed=5, batch_size=11))
    assert not same(first, ALGORITHMS[algorithm](game, 3, n_evals=900, seed=6))
    assert len({r.estimate.seed for r in first.rounds}) == len(first.rounds)  # rounds don't share their randomness


@each_algorithm
def test_a_result_goes_to_json_and_back_and_prints(algorithm: str) -> None:
    found = ALGORITHMS[algorithm](network_game(6), 2, n_evals=600)
    assert GtapResult.from_dict(found.to_dict()) == found
    lines = str(found).splitlines()
    assert len(lines) == 3 + len(found.rounds)
    assert f"{algorithm}: 2 of 6 units" in lines[0]
    assert len({len(line) for line in lines[1:]}) == 1
    with pytest.raises(ValueError, match="read-only"):
        found.kept[0] = True


class Stopping(Game):
    """Raises Ctrl-C at its n-th call; a call takes a second by the clock of the estimators, if that is patched."""

    n_players = 6  # type: ignore[assignment]

    def __init__(self, interrupt_at: int | None = None, slow_from: int = 0) -> None:
        self.inner, self.calls, self.interrupt_at, self.slow_from = network_game(6), 0, interrupt_at, slow_from

    def perf_counter(self) -> float:
        return float(max(0, self.calls - self.slow_from))

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        return self.inner.values(coalitions)


@pytest.mark.parametrize("algorithm", ["iterated_pruning", "iterated_building"])
def test_ctrl_c_ends_with_what_is_known(algorithm: str) -> None:
    calls = Stopping()
    whole = ALGORITHMS[algorithm](calls, 3, n_evals=900, batch_size=32)
    early = 0
    for at in range(2, calls.calls):
        try:
            found = ALGORITHMS[algorithm](Stopping(interrupt_at=at), 3, n_evals=900, batch_size=32)
        except KeyboardInterrupt:
            early = at  # before the first round had an estimate
            continue
        assert found.termination == "interrupted"
        assert found.kept.sum() == 3
        assert found.path.tolist()[: len(found.path) - 1] == whole.path.tolist()[: len(found.path) - 1]
        assert sum(len(r.chosen) for r in found.rounds) == 3
        assert "interrupted" in str(found)
    assert early < calls.calls / 3


def test_a_time_limit_is_shared_by_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    game = Stopping()
    monkeypatch.setattr(sampling, "time", game)
    found = mp.gtap_iterated_pruning(game, 3, drop=1, time_limit=60.0, batch_size=16)
    assert found.termination == "time_limit"
    assert found.kept.sum() == 3
    assert [r.estimate.termination for r in found.rounds] == ["time_limit"] * 3
    assert [r.estimate.seconds for r in found.rounds] == pytest.approx([20, 20, 20], abs=2)
    assert game.calls <= 65


def test_a_game_that_becomes_slow_ends_with_the_last_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    game = Stopping(slow_from=40)
    monkeypatch.setattr(sampling, "time", game)
    found = mp.gtap_iterated_building(game, 3, add=1, time_limit=1.5, n_evals=1200, batch_size=16)
    assert found.termination == "time_limit"
    assert found.kept.sum() == 3
    assert [len(r.chosen) for r in found.rounds] == [1, 2]
    with pytest.raises(BudgetError, match="time limit"):
        mp.gtap_top_n(game, 3, time_limit=1.5, batch_size=1)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"n_keep": 0}, ConfigError, r"1\.\.5"),
        ({"n_keep": 6}, ConfigError, r"1\.\.5"),
        ({"n_keep": 2.0}, ConfigError, "n_keep"),
        ({"p": 1.0}, ConfigError, "keep rate"),
        ({"level": 95}, ConfigError, "0.95"),
        ({"method": "nonsense"}, ConfigError, "nonsense"),
        ({"n_evals": 5}, BudgetError, "shared by 1 round"),
        ({"n_evals": 0}, BudgetError, "n_evals=0"),
        ({"time_limit": -1.0}, BudgetError, "time_limit"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"method": "sample_one_toggle"}, DataError, "SampleGame"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        mp.gtap_top_n(network_game(6), **{"n_keep": 3, **options})
    for name, algorithm in (("drop", mp.gtap_iterated_pruning), ("add", mp.gtap_iterated_building)):
        with pytest.raises(ConfigError, match=name):
            algorithm(network_game(6), 3, **{name: 0})


def test_samples_draw_masks_of_their_own_between_pins() -> None:
    game = mean_of_networks(9, 5, 2)
    found = mp.gtap_iterated_building(game, 4, add=2, method="auto", n_evals=250)
    assert {r.estimate.method for r in found.rounds} == {"sample_one_toggle"}
