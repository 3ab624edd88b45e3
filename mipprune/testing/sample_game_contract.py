"""What every game must do whose samples walk alone: inherit from :class:`SampleGameContract` in a test file."""

from __future__ import annotations

import abc

import numpy as np

from ..game.base import SampleGame
from .game_contract import GameContract

__all__ = ["SampleGameContract"]


class SampleGameContract(GameContract):
    """Conformance tests of :class:`~mipprune.game.base.SampleGame`, for pytest; all by definition, so keep n small."""

    @abc.abstractmethod
    def make_game(self) -> SampleGame:
        """A game with 2 to about 10 players, a few samples, and finite values."""

    def _drawn(self, game: SampleGame) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(2)
        shape = (game.n_samples, game.n_players)
        return rng.random(shape).argsort(axis=1), rng.random(shape) < 0.6

    def test_the_value_is_the_mean_over_samples(self) -> None:
        game = self.make_game()
        coalitions = self._coalitions(game)
        alone = game.sample_values(coalitions)
        assert alone.dtype == np.float64
        assert alone.shape == (len(coalitions), game.n_samples)
        self._same(alone.mean(axis=1), game.values(coalitions), "the mean of sample_values is not values")

    def test_a_walk_gives_every_samples_marginals_along_its_own_order(self) -> None:
        game = self.make_game()
        orders, _ = self._drawn(game)
        found = game.walk(orders)
        assert found.dtype == np.float64
        assert found.shape == orders.shape
        for k, order in enumerate(orders):
            steps = np.tri(game.n_players + 1, game.n_players, -1, dtype=bool)  # row t: the first t of the order
            coalitions = np.empty_like(steps)
            coalitions[:, order] = steps
            self._same(found[k, order], np.diff(game.sample_values(coalitions)[:, k]), f"walk of sample {k}")

    def test_toggles_are_differences_around_every_samples_own_mask(self) -> None:
        game = self.make_game()
        _, masks = self._drawn(game)
        found = game.toggle(masks)
        assert found.dtype == np.float64
        assert found.shape == masks.shape
        eye = np.eye(game.n_players, dtype=bool)
        for k, mask in enumerate(masks):
            inside, outside = (game.sample_values(c)[:, k] for c in (mask | eye, mask & ~eye))
            self._same(found[k], inside - outside, f"toggles of sample {k}")

    def test_pairs_are_mean_second_differences(self) -> None:
        game = self.make_game()
        _, masks = self._drawn(game)
        n = game.n_players
        found = game.toggle_pairs(masks)
        assert found.dtype == np.float64
        assert found.shape == (n, n)
        assert (found == found.T).all()
        assert not np.diag(found).any()
        left, right = np.triu_indices(n, 1)
        i, j = np.eye(n, dtype=bool)[left], np.eye(n, dtype=bool)[right]
        mean = np.zeros(len(left))
        for k, mask in enumerate(masks):
            rest = mask & ~i & ~j
            four = (game.sample_values(c)[:, k] for c in (rest | i | j, rest | i, rest | j, rest))
            both, one, other, none = four
            mean += (both - one - other + none) / game.n_samples
        self._same(found[left, right], mean, "toggle_pairs")
