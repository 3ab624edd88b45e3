"""How little removing units can cost after a refit: a lower bound over all choices, for every number of units."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from .positive import above_largest, factor, inverse, solve_factored

__all__ = ["Regression", "least_errors", "single_errors"]

#: Shares of the units kept that the tangents are made at, one after another; they hold at all others too.  The first
#: steps settle the gates, after which one step of alternation follows the relaxation's optimum from share to share.
SHARES = (0.8, 0.8, 0.8, 0.6, 0.4, 0.2)
#: Multiplications that the relaxation may take; wider layers get fewer tangents.
MOST_WORK = 2e10
#: Least gate: the relaxation divides by them.
LEAST_GATE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Regression:
    """Least squares of m outputs on the inputs of n units, b inputs each, unit after unit.

    Attributes:
        precision: float64 (n b, n b): that block of the inverse covariance of all inputs, positive definite; so inputs
            of other units may exist, and are refitted too.
        weight: float64 (m, n b): the outputs are ``weight @ inputs``, in units whose squared error counts.
        covariance: the inverse of ``precision`` where it's known already.
    """

    precision: np.ndarray
    weight: np.ndarray
    covariance: np.ndarray | None = None


def least_errors(regressions: Sequence[Regression], n_units: int) -> np.ndarray:
    """Entry r: no r of the units can leave with a smaller sum of the regressions' squared errors: float64 (n + 1,).

    With P the precision, S = P^-1 and w the weight, a regression that keeps the units K has the error

        e(K) = min over V that is zero outside K of tr (w - V) S (w - V)'.

    The largest of three bounds (our derivations), for every r:

    * **One unit**: e only grows when more units leave, so it is at least the r-th smallest of the single units' errors.
    * **Rank**: V x has rank kb at most, so e is at least the sum of the smallest m - kb eigenvalues of w S w'.
    * **Perspective** (Frangioni and Gentile 2006; for sparse regression Dong, Chen and Linderoth 2015): with
      D_u = P_uu^-1 / l, l the largest eigenvalue of P scaled to unit diagonal blocks, P <= l diag(P_uu) and so
      D <= S.  For gates z in {0, 1} and V_u = 0 where z_u = 0, ``tr V_u D_u V_u'`` is ``tr V_u D_u V_u' / z_u``, and
      with that in its place the error is convex in V and z together.  The least over V,

          F(z) = tr w S w' - tr w S (S + D (1/z - 1))^-1 S w',

      is convex with ``dF/dz_u = -tr Y_u' D_u Y_u / z_u^2``, Y the minimiser V'; every tangent of the sum over all
      regressions bounds all masks, and over masks of k units its least is a sum of k smallest slopes.  Where inputs are
      independent D = S, and the bound is exact.

    O((n b)^3) per regression and tangent, of which there are at most ``len(SHARES)``.
    """
    kept = np.arange(n_units, -1, -1)
    best = np.zeros(n_units + 1)
    if not regressions:
        return best
    single = np.zeros(n_units)
    for one in regressions:
        single += single_errors(one.precision, one.weight, np.arange(len(one.precision)).reshape(n_units, -1))
    best[1:] = np.sort(single)
    with contextlib.suppress(np.linalg.LinAlgError):  # too nearly dependent inputs leave the first bound
        relaxed = [_Relaxation(one, n_units) for one in regressions]
        best = np.maximum(best, sum(one.rank_bounds()[kept] for one in relaxed))
        for value, slope in _tangents(relaxed, n_units):
            best = np.maximum(best, value + np.concatenate([[0.0], np.cumsum(np.sort(slope))])[kept])
    return np.maximum.accumulate(best)


def single_errors(precision: np.ndarray, weight: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The error of each unit's removal alone, ``tr w_u P_uu^-1 w_u'``: (n,).

    Args:
        precision: float64 (D, D), inverse covariance of the inputs.
        weight: float64 (m, D).
        columns: int (n, b), the units' inputs.
    """
    blocks = precision[columns[:, :, None], columns[:, None, :]]  # (n, b, b)
    own = weight[:, columns].transpose(1, 2, 0)  # (n, b, m)
    return np.einsum("ubm,ubm->u", own, np.linalg.solve(blocks, own))


def _tangents(relaxed: Sequence[_Relaxation], n_units: int) -> Iterator[tuple[float, np.ndarray]]:
    """Value at z = 0 and slopes of tangents of F, near its least points over the gates of a given sum."""
    affordable = int(MOST_WORK / sum(len(one.covariance) ** 3 for one in relaxed))
    gates = np.ones(n_units)
    for share in SHARES[:affordable]:
        count = max(1.0, share * n_units)
        gates = np.clip(gates * count / gates.sum(), LEAST_GATE, 1.0)
        values, squares = zip(*(one.at(gates) for one in relaxed), strict=True)
        slope = -sum(squares) / gates**2
        yield sum(values) - float(slope @ gates), slope
        gates = _share_out(np.sqrt(sum(squares)), count)


class _Relaxation:
    """One regression's part of the rank and perspective bounds.

    Raises:
        numpy.linalg.LinAlgError: the precision isn't positive definite in double precision.
    """

    def __init__(self, given: Regression, n_units: int) -> None:
        self.weight = given.weight
        self.n, self.b = n_units, len(given.precision) // n_units
        self.covariance = inverse(given.precision) if given.covariance is None else given.covariance
        at = np.arange(self.n)
        alone = np.linalg.inv(given.precision.reshape(self.n, self.b, self.n, self.b)[at, :, at])
        root = np.linalg.cholesky(alone)  # root' P_uu root = 1
        scaled = (root.mT @ given.precision.reshape(self.n, self.b, -1)).reshape(-1, self.n, self.b)
        scaled = (scaled.swapaxes(0, 1) @ root).swapaxes(0, 1).reshape(given.precision.shape)
        self.blocks = alone / above_largest(scaled)
        self.across = self.covariance @ self.weight.T
        self.total = float((self.weight.T * self.across).sum())

    def rank_bounds(self) -> np.ndarray:
        """Entry k: what k units must leave unexplained, float64 (n + 1,)."""
        least = np.sort(np.linalg.eigvalsh(self.weight @ self.across))
        tails = np.concatenate([[0.0], np.cumsum(np.maximum(least, 0.0))])
        return tails[np.maximum(len(least) - self.b * np.arange(self.n + 1), 0)]

    def at(self, gates: np.ndarray) -> tuple[float, np.ndarray]:
        """F at these gates, and ``tr Y_u' D_u Y_u`` of every unit."""
        system = self.covariance.copy()
        view = system.reshape(self.n, self.b, self.n, self.b)
        at = np.arange(self.n)
        view[at, :, at] += self.blocks * (1 / gates - 1)[:, None, None]
        best = solve_factored(factor(system), self.across)
        parts = best.reshape(self.n, self.b, -1)
        return self.total - float((self.across * best).sum()), (parts * (self.blocks @ parts)).sum((1, 2))


def _share_out(roots: np.ndarray, count: float) -> np.ndarray:
    """Gates in proportion to ``roots``, at most 1, of sum ``count``: the best ones for a fixed V."""
    order = np.sort(roots)[::-1]
    rest = np.cumsum(order[::-1])[::-1]  # of the units from here on
    full = np.arange(len(order))
    fits = order * (count - full) <= rest  # where the largest of the rest needs no more than 1
    first = int(np.argmax(fits & (full < count)))
    return np.clip(roots * (count - first) / max(rest[first], 1e-300), LEAST_GATE, 1.0)
