"""Axioms, records, errors and comparisons of the estimates."""

from __future__ import annotations

import dataclasses
import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mipprune.errors import BudgetError, ConfigError, DataError
from mipprune.estimate import (
    Estimate,
    Interactions,
    banzhaf,
    exact_table,
    interactions,
    leave_one_out,
    semivalue,
    shapley,
)
from mipprune.game import Game, TableGame
from mipprune.testing import estimate_reference as reference
from mipprune.testing.closed_form_games import AdditiveGame, SymmetricGame, UnanimitySum

numbers = st.floats(-10, 10, allow_subnormal=False)
probabilities = st.floats(0, 1, allow_subnormal=False)
tables = st.integers(1, 5).flatmap(lambda n: hnp.arrays(np.float64, 1 << n, elements=numbers))
# every way to make an estimate of single players: name -> call with a game and p
ESTIMATORS = {
    "shapley exact": lambda game, p: shapley(game, method="exact"),
    "shapley permutation": lambda game, p: shapley(game, method="permutation", n_evals=60),
    "shapley one_toggle": lambda game, p: shapley(game, method="one_toggle", n_evals=60),
    "banzhaf exact": lambda game, p: banzhaf(game, method="exact"),
    "semivalue exact": lambda game, p: semivalue(game, p=p, method="exact"),
    "semivalue one_toggle": lambda game, p: semivalue(game, p=p, method="one_toggle", n_evals=60),
    "leave_one_out": lambda game, p: leave_one_out(game),
}
every_estimator = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS.keys())


def random_game(n: int, seed: int = 0) -> TableGame:
    return TableGame(np.random.default_rng(seed).normal(size=1 << n))


class Spoiled(Game):
    """An additive game with a NaN where three players or fewer are in."""

    @property
    def n_players(self) -> int:
        return 6

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        sizes = self._checked(coalitions).sum(1)
        return np.where(sizes <= 3, np.nan, sizes.astype(np.float64))


# -- axioms ------------------------------------------------------------------------------------------------------------


@given(table=tables)
def test_shapley_is_efficient(table: np.ndarray) -> None:
    for method in ("exact", "permutation"):
        found = shapley(TableGame(table), method=method, n_evals=100)
        assert found.values.sum() == pytest.approx(table[-1] - table[0], abs=1e-11)


@every_estimator
@given(table=tables, other=st.integers(0, 2**31), a=numbers, p=probabilities)
def test_every_estimate_is_linear_in_the_game(estimate, table, other, a, p) -> None:
    second = np.random.default_rng(other).normal(size=len(table))
    left = estimate(TableGame(a * table + second), p).values
    right = a * estimate(TableGame(table), p).values + estimate(TableGame(second), p).values
    np.testing.assert_allclose(left, right, atol=1e-10)


@every_estimator
@given(table=tables, weight=numbers, p=probabilities)
def test_a_player_who_adds_the_same_everywhere_is_worth_that(estimate, table, weight, p) -> None:
    found = estimate(TableGame(np.concatenate([table, table + weight])), p)
    assert found.values[-1] == pytest.approx(weight, abs=1e-12)
    assert found.stderr[-1] == pytest.approx(0, abs=1e-12)


@given(table=tables, seed=st.integers(0, 2**31), p=probabilities)
def test_exact_values_follow_the_names_of_the_players(table: np.ndarray, seed: int, p: float) -> None:
    n = len(table).bit_length() - 1
    order = np.random.default_rng(seed).permutation(n)
    bits = np.arange(len(table))[:, None] >> np.arange(n) & 1
    relabelled = TableGame(table[bits @ (1 << order)])  # its player i is the first game's player order[i]
    for name in ("shapley exact", "banzhaf exact", "semivalue exact", "leave_one_out"):
        first, second = ESTIMATORS[name](TableGame(table), p), ESTIMATORS[name](relabelled, p)
        np.testing.assert_allclose(second.values, first.values[order], atol=1e-11)
    pairs, again = interactions(TableGame(table)).values, interactions(relabelled).values
    np.testing.assert_allclose(again, pairs[np.ix_(order, order)], atol=1e-11)


@given(sizes=hnp.arrays(np.float64, st.integers(3, 7), elements=numbers), p=probabilities)
def test_symmetric_players_are_worth_the_same(sizes: np.ndarray, p: float) -> None:
    game = SymmetricGame(sizes)
    for found in (shapley(game, method="exact"), semivalue(game, p=p), leave_one_out(game)):
        np.testing.assert_allclose(found.values, found.values[0], atol=1e-11)


@given(table=tables, p=probabilities)
def test_exact_methods_match_the_definitions(table: np.ndarray, p: float) -> None:
    game = TableGame(table)
    np.testing.assert_allclose(shapley(game).values, reference.shapley_by_permutations(game), atol=1e-11)
    np.testing.assert_allclose(semivalue(game, p=p).values, reference.semivalue_by_enumeration(game, p), atol=1e-11)
    for index in ("shapley", "banzhaf"):
        found = interactions(game, index=index, method="exact").values
        np.testing.assert_allclose(found, reference.interactions_by_enumeration(game, index), atol=1e-10)
    found = interactions(game, p=p, method="exact").values
    np.testing.assert_allclose(found, reference.interactions_by_enumeration(game, "banzhaf", p), atol=1e-10)


def test_shapley_is_the_mean_of_the_semivalues_over_p() -> None:
    game = random_game(6)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    mean = sum(w / 2 * semivalue(game, p=(x + 1) / 2).values for x, w in zip(nodes, weights))
    np.testing.assert_allclose(mean, shapley(game).values, atol=1e-12)


def test_twenty_players_exactly() -> None:
    game = UnanimitySum(20, {(0, 5): 1.0, (5, 19): 2.0, (3,): -1.0})
    exact = shapley(game, n_evals=1 << 20)
    np.testing.assert_allclose(exact.values, game.shapley(), atol=1e-9)
    assert (exact.method, exact.n_evals) == ("exact", 1 << 20)


# -- what auto picks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "n_evals", "method"),
    [(3, None, "exact"), (14, None, "exact"), (15, None, "permutation"), (15, 1 << 15, "exact"), (6, 63, "permutation"),
     (6, 64, "exact"), (21, 1000, "permutation")],
)
def test_auto_is_exact_where_it_is_affordable(n: int, n_evals: int | None, method: str) -> None:
    found = shapley(AdditiveGame(np.arange(n)), n_evals=n_evals)
    assert found.method == method
    assert found.exact == (method == "exact")
    assert n_evals is None or found.n_evals <= n_evals


def test_auto_picks_toggles_for_semivalues_and_sampling_for_pairs() -> None:
    game = AdditiveGame(np.arange(16))
    assert banzhaf(game).method == semivalue(game, p=0.7, n_evals=900).method == "one_toggle"
    assert semivalue(game, p=0.7).method == "adjusted"  # a proxy pays from 64 evaluations per player on
    assert interactions(game).method == "sampled"
    corner = semivalue(game, p=1)
    assert (corner.method, corner.n_evals, corner.index, corner.p) == ("exact", 17, "semivalue", 1)


# -- records -----------------------------------------------------------------------------------------------------------


@every_estimator
def test_records_go_to_json_and_back(estimate, tmp_path) -> None:
    found = estimate(random_game(4), 0.3)
    found.save(tmp_path / "e.json")
    assert Estimate.load(tmp_path / "e.json") == found
    assert not found.values.flags.writeable
    assert str(found)


def test_interaction_records_go_to_json_and_back(tmp_path) -> None:
    for found in (interactions(random_game(4)), interactions(random_game(4), method="sampled", n_evals=200)):
        found.save(tmp_path / "i.json")
        assert Interactions.load(tmp_path / "i.json") == found
        assert str(found)


def test_interactions_know_their_degrees_of_freedom() -> None:
    assert interactions(random_game(4)).degrees_of_freedom == 0
    assert interactions(random_game(4), method="sampled", n_evals=3 * 22).degrees_of_freedom == 2
    assert interactions(random_game(4), method="sampled", n_evals=64 * 22).degrees_of_freedom == 63


def test_ranking_and_top() -> None:
    found = shapley(AdditiveGame([1.0, 3.0, 1.0, -5.0]))
    assert found.ranking().tolist() == [1, 0, 2, 3]
    assert found.top(2).tolist() == [1, 0]
    assert found.top(0).tolist() == []
    with pytest.raises(ConfigError, match="4 players"):
        found.top(5)


def test_top_pairs() -> None:
    found = interactions(UnanimitySum(4, {(0, 1): 1.0, (2, 3): -3.0, (0, 3): 2.0}))
    assert found.top(3).tolist() == [[2, 3], [0, 3], [0, 1]]
    with pytest.raises(ConfigError, match="6 pairs"):
        found.top(7)


def test_exact_values_have_no_width() -> None:
    found = shapley(random_game(4))
    low, high = found.confidence_interval()
    assert (low == found.values).all()
    assert (high == found.values).all()
    value, stderr = found.difference(0, 1)
    assert value == found.values[0] - found.values[1]
    assert stderr == 0
    assert found.combination(np.ones(4))[1] == 0


def test_intervals_are_students() -> None:
    blocks = np.array([[1.0], [2.0], [4.0]])
    found = Estimate(
        np.array([7 / 3]), np.array([0.5]), "shapley", None, "permutation", 9, 0, 0.0, 0.0, ("a",), blocks, np.ones(3)
    )
    assert found.degrees_of_freedom == 2
    low, high = found.confidence_interval(0.95)
    assert (high - low)[0] / 2 / 0.5 == pytest.approx(4.302652729911275)  # t quantile .975 with 2 degrees, from tables
    with pytest.raises(ConfigError, match="level"):
        found.confidence_interval(95)


def test_malformed_records_are_refused() -> None:
    good = shapley(random_game(3))
    with pytest.raises(DataError, match="shapes"):
        dataclasses.replace(good, stderr=np.zeros(4))
    with pytest.raises(DataError, match="termination"):
        dataclasses.replace(good, termination="tired")
    with pytest.raises(DataError, match="symmetric"):
        dataclasses.replace(interactions(random_game(2)), values=np.array([[0.0, 1.0], [2.0, 0.0]]))


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: shapley(AdditiveGame(np.ones(21)), method="exact"), BudgetError, "at most 20 players.*'permutation'"),
        (lambda: exact_table(AdditiveGame(np.ones(21))), BudgetError, "at most 20"),
        (lambda: interactions(AdditiveGame(np.ones(21)), method="exact"), BudgetError, "'sampled'"),
        (lambda: shapley(random_game(5), method="exact", n_evals=31), BudgetError, "needs 32"),
        (lambda: shapley(random_game(5), method="permutation", n_evals=17), BudgetError, r"at least 18.*\(10 with"),
        (lambda: banzhaf(random_game(5), method="one_toggle", n_evals=25), BudgetError, r"at least 26.*\(14 with"),
        (lambda: interactions(random_game(4), method="sampled", n_evals=43), BudgetError, r"at least 44.*\(22 with"),
        (lambda: semivalue(random_game(4), p=1.0, n_evals=4), BudgetError, "needs 5"),
        (lambda: shapley(random_game(4), n_evals=0), BudgetError, "n_evals=0"),
        (lambda: shapley(random_game(4), time_limit=0), BudgetError, "time_limit=0"),
        (lambda: shapley(random_game(4), batch_size=0), BudgetError, "batch_size=0"),
        (lambda: shapley(random_game(4), method="guess"), ConfigError, "'guess'.*permutation"),
        (lambda: banzhaf(random_game(4), method="permutation"), ConfigError, "one_toggle"),
        (lambda: semivalue(random_game(4), p=1.5), ConfigError, "p=1.5"),
        (lambda: semivalue(random_game(4), p=math.nan), ConfigError, "p=nan"),
        (lambda: shapley(random_game(4), seed=-1), ConfigError, "seed=-1"),
        (lambda: interactions(random_game(4), index="owen"), ConfigError, "'owen'.*faithful_shapley"),
        (lambda: interactions(random_game(4), index="shapley", p=0.5), ConfigError, "no p"),
        (lambda: shapley(TableGame(np.ones(1))), DataError, "no players"),
        (lambda: leave_one_out(TableGame(np.ones(1))), DataError, "no players"),
        (lambda: shapley(Spoiled(), method="exact"), DataError, "value is nan with 6 of 6 players out"),
        (lambda: semivalue(Spoiled(), p=0.5, method="one_toggle"), DataError, "nan"),
        (lambda: interactions(Spoiled()), DataError, "pin the players"),
    ],
)
def test_errors_name_the_thing_and_the_fix(call, error, text) -> None:
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("bad", [np.zeros((3, 1)), np.zeros(2), 0.0])
def test_a_game_that_returns_another_shape_is_refused(bad) -> None:
    class Wrong(AdditiveGame):
        def values(self, coalitions: np.ndarray) -> np.ndarray:
            return bad

    with pytest.raises(DataError, match="shape"):
        leave_one_out(Wrong([1.0, 2.0]))


def test_the_smallest_budgets_named_in_errors_do_work() -> None:
    assert shapley(random_game(5), method="permutation", n_evals=18).n_evals == 18
    assert shapley(random_game(5), method="permutation", n_evals=10, antithetic=False).n_evals == 10
    assert banzhaf(random_game(5), method="one_toggle", n_evals=26).n_evals == 26
    assert banzhaf(random_game(5), method="one_toggle", n_evals=14, antithetic=False).n_evals == 14
    assert interactions(random_game(4), method="sampled", n_evals=44).n_evals == 44
    assert interactions(random_game(4), method="sampled", n_evals=22, antithetic=False).n_evals == 22
