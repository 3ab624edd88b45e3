"""What every game must do: inherit from :class:`GameContract` in a test file and say how to make the game."""

from __future__ import annotations

import abc

import numpy as np
import pytest

from ..errors import DataError
from ..game.base import Game

__all__ = ["GameContract"]


class GameContract(abc.ABC):
    """Conformance tests of :class:`~mipprune.game.base.Game`, for pytest.

    Usage::

        class TestMyGame(GameContract):
            def make_game(self) -> Game:
                return MyGame(...)

    Attributes:
        rtol, atol: how far two evaluations of one coalition may be apart (float32 networks: about 1e-4 and 1e-5).
        n_coalitions: random coalitions that are looked at.
    """

    rtol = 1e-9
    atol = 1e-12
    n_coalitions = 24

    @abc.abstractmethod
    def make_game(self) -> Game:
        """A game with 2 players or more, and finite values."""

    def _coalitions(self, game: Game) -> np.ndarray:
        n = game.n_players
        rng = np.random.default_rng(0)
        random = rng.random((self.n_coalitions, n)) < rng.random((self.n_coalitions, 1))
        return np.concatenate([np.zeros((1, n), dtype=bool), np.ones((1, n), dtype=bool), random])

    def _same(self, a: np.ndarray | float, b: np.ndarray | float, why: str) -> None:
        np.testing.assert_allclose(a, b, rtol=self.rtol, atol=self.atol, err_msg=why)

    def test_players_are_counted_and_named(self) -> None:
        game = self.make_game()
        assert isinstance(game.n_players, int)
        assert game.n_players >= 2
        names = game.player_names
        assert isinstance(names, tuple)
        assert all(isinstance(name, str) for name in names)
        assert len(names) == len(set(names)) == game.n_players, "one distinct name per player"

    def test_values_are_one_finite_float64_per_coalition(self) -> None:
        game = self.make_game()
        coalitions = self._coalitions(game)
        values = game.values(coalitions)
        assert values.dtype == np.float64
        assert values.shape == (len(coalitions),)
        assert np.isfinite(values).all()

    def test_no_coalitions_have_no_values(self) -> None:
        game = self.make_game()
        values = game.values(np.zeros((0, game.n_players), dtype=bool))
        assert values.shape == (0,)
        assert values.dtype == np.float64

    def test_a_value_depends_on_its_row_alone(self) -> None:
        game = self.make_game()
        coalitions = self._coalitions(game)
        values = game.values(coalitions)
        order = np.random.default_rng(1).permutation(len(coalitions))
        self._same(game.values(coalitions[order]), values[order], "the order of the coalitions changed their values")
        for row in range(0, len(coalitions), 5):
            alone = game.values(coalitions[row : row + 1])
            self._same(alone, values[row : row + 1], "a coalition alone has another value than in a batch")
        twice = game.values(np.concatenate([coalitions, coalitions]))
        self._same(twice, np.concatenate([values, values]), "a larger batch changed the values")

    def test_it_is_deterministic(self) -> None:
        game = self.make_game()
        coalitions = self._coalitions(game)
        first = game.values(coalitions)
        self._same(game.values(coalitions), first, "a second call gave other values")
        self._same(self.make_game().values(coalitions), first, "a game made anew has other values")

    def test_values_differ_somewhere(self) -> None:
        game = self.make_game()
        assert np.ptp(game.values(self._coalitions(game))) > self.atol, "a constant game tests nothing"

    def test_the_ends(self) -> None:
        game = self.make_game()
        empty, full = game.values(self._coalitions(game)[:2])
        self._same(game.value_empty, empty, "value_empty is not the value of the empty coalition")
        self._same(game.value_full, full, "value_full is not the value of the full coalition")
        self._same(game.value(np.ones(game.n_players, dtype=bool)), full, "value() differs from values()")

    def test_the_input_is_left_alone(self) -> None:
        game = self.make_game()
        coalitions = self._coalitions(game)
        before = coalitions.copy()
        game.values(coalitions)
        assert (coalitions == before).all()
        coalitions.setflags(write=False)
        game.values(coalitions)
        strided = np.repeat(before, 2, axis=0)[::2]
        self._same(game.values(strided), game.values(before), "a strided array gave other values")

    def test_a_result_is_the_callers(self) -> None:
        game = self.make_game()
        coalitions = self._coalitions(game)
        values = game.values(coalitions)
        kept = values.copy()
        if values.flags.writeable:
            values[:] = 0.0
        self._same(game.values(coalitions), kept, "writing to a result changed the game")

    def test_wrong_coalitions_are_refused(self) -> None:
        game = self.make_game()
        n = game.n_players
        for wrong in (
            np.zeros((2, n + 1), dtype=bool), np.zeros(n, dtype=bool), np.zeros((2, n)), np.zeros((2, n), dtype=int),
        ):
            with pytest.raises(DataError, match=str(n)):  # the text says what was expected
                game.values(wrong)
