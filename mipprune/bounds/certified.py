"""The cheapest mask that provably changes the prediction of no more than a given number of samples."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import scipy.sparse as sp
from scipy.optimize import Bounds, LinearConstraint, milp

from ..errors import BudgetError, InfeasibleError
from ..records import Record, frozen_array
from .gap import NeuronGap

__all__ = ["CertifiedChoice", "certified_predictions"]

_EDGE = 1e-6  # rows stay below 1 by this much, so that strict inequalities survive the solver's tolerance


@dataclasses.dataclass(frozen=True, eq=False)
class CertifiedChoice(Record):
    """What :func:`certified_predictions` found.

    Attributes:
        kept: bool (n,).
        certified: bool (N,), samples whose predicted class the mask can't have changed (T7, checked on the mask).
        cost: of ``kept``; ``bound``: no mask of the program costs less.
        proved: ``cost`` is within 1e-6 of ``bound`` (relative).
        termination: what the solver said.
    """

    kept: np.ndarray
    certified: np.ndarray
    cost: float
    bound: float
    proved: bool
    termination: str


def certified_predictions(
    gap: NeuronGap, violations: int, *, costs: np.ndarray | None = None, time_limit: float | None = None,
) -> CertifiedChoice:
    """The cheapest mask that keeps, provably by T1 and T7, the predicted class of all but ``violations`` samples.

    A binary v per sample beside the removal vector z: ``sqrt 2 c_k @ z <= margin_k (1 - 1e-6) + M_k v_k`` with ``M_k =
    sqrt 2 sum c_k`` (nothing is larger, so the program is exact) and ``sum v <= violations``, by HiGHS.  Ours.  What it
    returns is checked in float64; where the solver's tolerance on a v let a row slip, units go back until it is met.
    With no violations it is :class:`mipprune.surrogates.WorstRow` in the solver layer, which takes other budgets too.

    Args:
        violations: alpha N, samples that may be left without proof.
        costs: float64 (n,), at least 0; one per unit by default.
        time_limit: seconds; the best mask found by then is returned, all units where there is none.

    Raises:
        InfeasibleError: more samples than ``violations`` are ties of the dense network, or only a ball is given.
        BudgetError: arguments out of range.
    """
    n_samples, n = gap.coefficients.shape
    if not len(gap.margins):
        raise InfeasibleError("a gap over a ball has no predictions to keep", requirement="violations")
    if not 0 <= violations <= n_samples:
        raise BudgetError(f"violations: expected a number from 0 to {n_samples}, got {violations}")
    price = np.ones(n) if costs is None else np.asarray(costs, dtype=np.float64)
    if price.shape != (n,) or not np.isfinite(price).all() or (price < 0).any():
        raise BudgetError(f"costs: expected {n} finite numbers of at least 0")
    ties = int((gap.margins <= 0).sum())
    if ties > violations:
        raise InfeasibleError(f"{ties} samples are ties: no mask is proved to keep their class",
                              requirement="violations", nearest=float(ties))
    rows = math.sqrt(2.0) * gap.coefficients
    finite = np.minimum(gap.margins, rows.sum(1) + 1.0)  # one output alone has infinite margins
    scale = np.where(finite > 0, finite, 1.0)[:, None]  # rows end at 1
    most = (rows / scale).sum(1)
    left = sp.csr_array(sp.hstack([sp.csr_array(rows / scale), sp.diags_array(-most)]))
    room = np.where(finite > 0, 1.0 - _EDGE, 0.0)
    upper = np.ones(n + n_samples)
    lower = np.concatenate([np.zeros(n), (finite <= 0).astype(np.float64)])
    total = LinearConstraint(np.concatenate([np.zeros(n), np.ones(n_samples)])[None], ub=violations)
    options = {} if time_limit is None else {"time_limit": time_limit}
    found = milp(
        np.concatenate([-price, np.zeros(n_samples)]), integrality=np.ones(n + n_samples),
        bounds=Bounds(lower, upper), constraints=[LinearConstraint(left, ub=room), total], options=options,
    )
    removed = np.zeros(n, dtype=bool) if found.x is None else found.x[:n] > 0.5
    while True:
        bound = gap.deterministic(~removed)
        certified = bound.prediction_kept(gap.margins)
        if certified.sum() >= n_samples - violations or not removed.any():
            break
        missing = np.where(removed, (rows / scale)[~certified].sum(0), -1.0)
        removed[int(missing.argmax())] = False
    cost = float(price[~removed].sum())
    dual = found.mip_dual_bound
    least = 0.0 if dual is None or not math.isfinite(dual) else max(0.0, float(price.sum() + dual))
    return CertifiedChoice(
        kept=frozen_array(~removed, bool), certified=frozen_array(certified, bool), cost=cost, bound=min(least, cost),
        proved=bool(found.status == 0 and cost - least <= 1e-6 * max(1.0, cost)), termination=str(found.message),
    )
