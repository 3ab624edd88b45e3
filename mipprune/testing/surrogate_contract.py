"""What every surrogate promises, as tests to inherit."""

from __future__ import annotations

import abc

import numpy as np

from ..surrogates import Surrogate

__all__ = ["SurrogateContract"]


class SurrogateContract(abc.ABC):
    """Inherit as ``TestMine(SurrogateContract)``, implement :meth:`surrogates`, and pytest runs the checks.

    A solver relies on all of them: on tangents that lie below the terms most of all.
    """

    @abc.abstractmethod
    def surrogates(self) -> list[Surrogate]:
        """A few surrogates of different sizes."""

    def points(self, surrogate: Surrogate) -> np.ndarray:
        """Removal vectors of ``surrogate`` inside the box, and masks: float64 of shape (M, n)."""
        rng = np.random.default_rng(0)
        inside = rng.random((6, surrogate.n_units))
        return np.concatenate([inside, np.round(inside)])

    def test_nothing_removed_costs_nothing(self) -> None:
        for surrogate in self.surrogates():
            assert abs(surrogate.drop(np.zeros(surrogate.n_units))) < 1e-12

    def test_linear_part_and_terms_add_up(self) -> None:
        for surrogate in self.surrogates():
            points = self.points(surrogate)
            for z, drop in zip(points, surrogate.drops(points), strict=True):
                values, gradients = surrogate.terms(z)
                assert values.shape == (surrogate.n_terms,)
                assert gradients.shape == (surrogate.n_terms, surrogate.n_units)
                np.testing.assert_allclose(surrogate.linear @ z + values.sum(), drop, atol=1e-10)
                np.testing.assert_allclose(surrogate.drop(z), drop, atol=1e-12)
                value, gradient = surrogate.drop_and_gradient(z)
                np.testing.assert_allclose(value, drop, atol=1e-10)
                np.testing.assert_allclose(gradient, surrogate.linear + gradients.sum(0), atol=1e-10)

    def test_gradients_are_derivatives(self) -> None:
        step = 1e-5
        for surrogate in self.surrogates():
            for z in self.points(surrogate)[:3]:
                gradients = surrogate.terms(z)[1]
                for unit, direction in enumerate(step * np.eye(surrogate.n_units)):
                    ahead, behind = surrogate.terms(z + direction)[0], surrogate.terms(z - direction)[0]
                    np.testing.assert_allclose(gradients[:, unit], (ahead - behind) / (2 * step), atol=1e-6)

    def test_tangents_lie_below_the_terms(self) -> None:
        for surrogate in self.surrogates():
            points = self.points(surrogate)
            for z in points:
                values, gradients = surrogate.terms(z)
                for other in points:
                    below = values + gradients @ (other - z)
                    assert (surrogate.terms(other)[0] >= below - 1e-9 * (1 + np.abs(below))).all()

    def test_linear_means_no_terms(self) -> None:
        for surrogate in self.surrogates():
            assert surrogate.is_linear == (surrogate.n_terms == 0)

    def test_round_trip(self) -> None:
        for surrogate in self.surrogates():
            again = Surrogate.from_dict(surrogate.to_dict())
            assert again == surrogate
            points = self.points(surrogate)
            np.testing.assert_array_equal(again.drops(points), surrogate.drops(points))
