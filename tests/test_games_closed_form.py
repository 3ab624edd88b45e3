"""Games with formulas: they meet the contract, and formulas, slow references and the exact methods agree."""

from __future__ import annotations

import numpy as np
import pytest

from mipprune.errors import DataError
from mipprune.estimate import PinnedGame, banzhaf, exact_table, interactions, leave_one_out, semivalue, shapley
from mipprune.game import Game, TableGame
from mipprune.testing import estimate_reference as reference
from mipprune.testing.closed_form_games import (
    AdditiveGame,
    AirportGame,
    ClosedFormGame,
    GloveGame,
    SymmetricGame,
    UnanimitySum,
    closed_form_games,
)
from mipprune.testing.game_contract import GameContract

GAMES = closed_form_games()
each_game = pytest.mark.parametrize("game", GAMES.values(), ids=GAMES.keys())
each_p = pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.75, 0.9, 1.0])


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


class TestUnanimity(GameContract):
    def make_game(self) -> Game:
        return UnanimitySum(5, {(0, 1): 1.0, (2, 3, 4): -0.5, (): 2.0})


class TestAdditive(GameContract):
    def make_game(self) -> Game:
        return AdditiveGame([1.0, 2.0, -3.0], 0.5)


class TestSymmetric(GameContract):
    def make_game(self) -> Game:
        return SymmetricGame([0.0, 1.0, 4.0, 9.0])


class TestGlove(GameContract):
    def make_game(self) -> Game:
        return GloveGame(2, 3)


class TestAirport(GameContract):
    def make_game(self) -> Game:
        return AirportGame([3.0, 1.0, 2.0])


class TestTable(GameContract):
    def make_game(self) -> Game:
        return TableGame(np.random.default_rng(0).normal(size=64))


class TestPinned(GameContract):
    def make_game(self) -> Game:
        return PinnedGame(TableGame(np.random.default_rng(0).normal(size=64)), kept=[1], removed=[4])


class _Broken(Game):
    """Breaks one clause of the contract at a time."""

    def __init__(self, fault: str) -> None:
        self.fault, self.calls = fault, 0
        self.inner = UnanimitySum(4, {(0, 1): 1.0, (2,): 0.5})
        self.cache: np.ndarray | None = None

    @property
    def n_players(self) -> int:
        return 4

    @property
    def player_names(self) -> tuple[str, ...]:
        return ("a", "a", "b", "c") if self.fault == "names" else super().player_names

    @property
    def value_full(self) -> float:
        return 99.0 if self.fault == "ends" else super().value_full

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.fault == "unchecked":
            coalitions = np.atleast_2d(coalitions)[:, :4].astype(bool)
        out = self.inner.values(coalitions)
        if self.fault == "float32":
            return out.astype(np.float32)
        if self.fault == "batch" and len(out):
            return out - out.mean()
        if self.fault == "random":
            return out + self.calls
        if self.fault == "nan":
            return np.where(coalitions.all(1), np.nan, out)
        if self.fault == "constant":
            return np.zeros(len(out))
        if self.fault == "writes" and len(coalitions):
            coalitions[0] = True
        if self.fault == "shared":
            if self.cache is None or len(self.cache) != len(out):
                self.cache = out
            return self.cache
        return out


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        ("names", "test_players_are_counted_and_named"),
        ("ends", "test_the_ends"),
        ("unchecked", "test_wrong_coalitions_are_refused"),
        ("float32", "test_values_are_one_finite_float64_per_coalition"),
        ("nan", "test_values_are_one_finite_float64_per_coalition"),
        ("float32", "test_no_coalitions_have_no_values"),
        ("batch", "test_a_value_depends_on_its_row_alone"),
        ("random", "test_it_is_deterministic"),
        ("constant", "test_values_differ_somewhere"),
        ("writes", "test_the_input_is_left_alone"),
        ("shared", "test_a_result_is_the_callers"),
    ],
)
def test_the_contract_sees_a_broken_game(fault: str, test: str) -> None:
    class Contract(GameContract):
        def make_game(self) -> Game:
            return _Broken(fault)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(Contract(), test)()


@each_game
def test_shapley_formula_definition_and_exact_method(game: ClosedFormGame) -> None:
    exact = shapley(game, method="exact")
    close(exact.values, game.shapley())
    close(reference.shapley_by_subsets(game), game.shapley())
    if game.n_players <= 6:
        close(reference.shapley_by_permutations(game), game.shapley())
    assert exact.values.sum() == pytest.approx(exact.value_full - exact.value_empty, abs=1e-12)


@each_game
@each_p
def test_semivalue_formula_definition_and_exact_method(game: ClosedFormGame, p: float) -> None:
    close(semivalue(game, p=p, method="exact").values, game.semivalue(p))
    close(reference.semivalue_by_enumeration(game, p), game.semivalue(p))


@each_game
def test_banzhaf_is_the_semivalue_at_one_half(game: ClosedFormGame) -> None:
    exact = banzhaf(game, method="exact")
    close(exact.values, game.semivalue(0.5))
    assert (exact.index, exact.p) == ("banzhaf", 0.5)


@each_game
def test_leave_one_out_is_the_limit_of_the_semivalues(game: ClosedFormGame) -> None:
    loo = leave_one_out(game)
    close(loo.values, game.semivalue(1.0))
    near = semivalue(game, p=1 - 1e-9, method="exact").values if game.n_players > 1 else loo.values
    np.testing.assert_allclose(near, loo.values, atol=1e-6)
    assert (loo.method, loo.n_evals, loo.value_empty) == ("exact", game.n_players + 1, None)
    assert loo.value_full == game.value_full


@pytest.mark.parametrize("name", ["one unanimity game", "sum of unanimity games", "pairs"])
@pytest.mark.parametrize(("index", "p"), [("shapley", None), ("banzhaf", None), ("banzhaf", 0.8), ("banzhaf", 1.0)])
def test_interactions_formula_definition_and_exact_method(name: str, index: str, p: float | None) -> None:
    game = GAMES[name]
    assert isinstance(game, UnanimitySum)
    formula = game.pair_interactions(index, 0.5 if p is None else p)
    exact = interactions(game, index=index, p=p, method="exact")
    close(exact.values, formula)
    close(reference.interactions_by_enumeration(game, index, 0.5 if p is None else p), formula)
    assert exact.p == (None if index == "shapley" else p or 0.5)
    assert exact.n_evals == 2**game.n_players


@pytest.mark.parametrize("p", [0.5, 0.75])
def test_banzhaf_interactions_are_the_pairs_of_the_quadratic_fit(p: float) -> None:
    game = GAMES["sum of unanimity games"]
    np.testing.assert_allclose(interactions(game, p=p).values, reference.degree_two_fit(game, p), atol=1e-9)


@pytest.mark.parametrize("name", ["sum of unanimity games", "glove 1-2", "airport"])
def test_faithful_shapley_interactions_are_the_constrained_fit(name: str) -> None:
    game = GAMES[name]
    found = interactions(game, index="faithful_shapley", method="exact").values
    np.testing.assert_allclose(found, reference.faithful_shapley_by_least_squares(game), atol=1e-9)


@each_game
def test_exact_table_holds_every_value(game: ClosedFormGame) -> None:
    table = exact_table(game, batch_size=7)
    coalitions = np.random.default_rng(0).random((30, game.n_players)) < 0.5
    assert (table.values(coalitions) == game.values(coalitions)).all()
    assert table.player_names == game.player_names


def test_pinned_game_is_the_game_of_the_rest() -> None:
    game = TableGame(np.random.default_rng(1).normal(size=32))
    pinned = PinnedGame(game, kept=[3], removed=np.array([False, True, False, False, False]))
    assert pinned.free.tolist() == [0, 2, 4]
    assert pinned.player_names == ("0", "2", "4")
    assert pinned.value(np.array([True, False, True])) == game.value(np.array([True, False, False, True, True]))
    full = np.array([True, False, True, True, True])
    for position, player in enumerate(pinned.free):
        without = full.copy()
        without[player] = False
        assert leave_one_out(pinned).values[position] == game.value(full) - game.value(without)


def test_pinning_a_dummy_changes_nothing_for_the_others() -> None:
    game = AdditiveGame([1.0, 0.0, 2.0])
    assert shapley(PinnedGame(game, removed=[1])).values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("kept", "removed", "text"),
    [
        ([0], [0], "both kept and removed"),
        ([0, 1], [2], "no game left"),
        ([3], [], "0..2"),
        ([-1], [], "0..2"),
        (np.zeros(2, bool), [], "shape"),
        ([0.5], [], "player numbers"),
    ],
)
def test_bad_pins_are_refused(kept: list[int], removed: list[int], text: str) -> None:
    with pytest.raises(DataError, match=text):
        PinnedGame(AdditiveGame([1.0, 2.0, 3.0]), kept, removed)
