"""Keep probabilities under a chance constraint on the gap, rounded at random to a mask that is checked."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.optimize import linprog

from ..errors import BudgetError, InfeasibleError
from ..records import Record, frozen_array
from .gap import NeuronGap
from .tails import probability

__all__ = ["ChanceChoice", "chance_constrained"]


@dataclasses.dataclass(frozen=True, eq=False)
class ChanceChoice(Record):
    """What :func:`chance_constrained` found.

    Attributes:
        keep: float64 (n,), probabilities; units drawn with them meet ``eps`` with probability 1 - ``delta``.
        expected: expected cost of a drawn mask, the least that Hoeffding's bound allows.
        eps, delta: what was asked for.
        bound: the largest of the rows' Hoeffding bounds at ``keep``: at most ``eps``.
        kept: bool (n,), a mask that was drawn; its bound by T1, ``value``, is at most ``eps`` for certain.
        cost: the cost of ``kept``.
        drawn, met: masks drawn, and how many of them had a bound by T1 of at most ``eps``.
    """

    keep: np.ndarray
    expected: float
    eps: float
    delta: float
    bound: float
    kept: np.ndarray
    value: float
    cost: float
    drawn: int
    met: int


def chance_constrained(
    gap: NeuronGap, eps: float, delta: float = 0.05, *, over: str = "rms", costs: np.ndarray | None = None,
    draws: int = 100, seed: int = 0,
) -> ChanceChoice:
    """Keep probabilities p of the least expected cost whose gap stays within ``eps`` with probability 1 - ``delta``
    by T5's Hoeffding bound, and the cheapest of ``draws`` masks drawn with them that T1 proves to be within ``eps``.

    For rows c of T1: minimise ``costs @ p`` over ``0 <= p <= 1`` subject to ``c @ (1 - p) + |c| sqrt(log(1 / delta) /
    2) <= eps``.  The second term doesn't depend on p, so it is a linear program (HiGHS): exact, in no need of binaries.
    Ours, in the spirit of 2105.10065.  A basic solution has at most as many fractional p as there are rows, so that
    with one row the choice is all but a mask, and the tail is paid for spread that isn't there: for a mask alone, solve
    :class:`mipprune.surrogates.WorstRow` with the same ``eps``, which is never worse.  Probabilities are worth their
    price where masks are to be drawn again and again.

    Args:
        over: ``"rms"``: one row for the root mean square gap of the data; ``"worst"``: one row for all samples at once;
            ``"samples"``: a row for each sample, each of which holds with probability 1 - ``delta``.
        costs: float64 (n,), at least 0; one per unit by default, so that the expected number of units is least.
        draws: masks to draw, at least 1; O(draws x rows x n).
        seed: of the draws.

    Raises:
        InfeasibleError: ``eps`` is below the tail of a row, so that even ``p = 1`` doesn't meet it; or no drawn mask
            met it (which has probability at most ``delta ** draws`` with one row).
        BudgetError: arguments out of range.
    """
    delta = probability("delta", delta)
    if not (eps >= 0 and math.isfinite(eps)):
        raise BudgetError(f"eps: expected a number of at least 0, got {eps}")
    if draws < 1:
        raise BudgetError(f"draws: expected at least 1, got {draws}")
    rows = {"rms": gap.rms_coefficients[None], "worst": gap.worst_coefficients[None], "samples": gap.coefficients}
    if over not in rows:
        raise BudgetError(f"over must be one of {', '.join(rows)}, got {over!r}")
    c = rows[over]
    n = c.shape[1]
    price = np.ones(n) if costs is None else np.asarray(costs, dtype=np.float64)
    if price.shape != (n,) or not np.isfinite(price).all() or (price < 0).any():
        raise BudgetError(f"costs: expected {n} finite numbers of at least 0")
    tails = np.linalg.norm(c, axis=1) * math.sqrt(math.log(1 / delta) / 2)
    if tails.max() > eps:
        raise InfeasibleError(
            f"eps={eps}: the tail alone is {tails.max():.3g}; raise eps or delta, or bound a mask with WorstRow",
            requirement="eps", nearest=float(tails.max()),
        )
    found = linprog(-price, A_ub=c, b_ub=eps - tails, bounds=(0.0, 1.0), method="highs")  # over q = 1 - p
    if not found.success:
        raise InfeasibleError(f"eps={eps}: the linear program ended with {found.message}", requirement="eps")
    q = np.clip(found.x, 0.0, 1.0)
    used = c @ q
    over_used = used > eps - tails
    if over_used.any():  # the solver's tolerance: shrunk back, so that the rows hold as computed
        q *= float(((eps - tails)[over_used] / used[over_used]).min()) * (1 - 1e-12)
    removed = np.random.default_rng(seed).random((draws, n)) < q
    values = (removed.astype(np.float64) @ c.T).max(1)
    prices = np.where(values <= eps, (~removed).astype(np.float64) @ price, math.inf)
    best = int(prices.argmin())
    if not math.isfinite(prices[best]):
        raise InfeasibleError(f"eps={eps}: none of {draws} drawn masks meets it; draw more", requirement="eps",
                              nearest=float(values.min()))
    return ChanceChoice(
        keep=frozen_array(1 - q), expected=float(price @ (1 - q)), eps=float(eps), delta=float(delta),
        bound=float((c @ q + tails).max()), kept=frozen_array(~removed[best], bool), value=float(values[best]),
        cost=float(prices[best]), drawn=draws, met=int((values <= eps).sum()),
    )
