"""The best masks of one layer for every size, with a proved bound at each: half of the decoupled road."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence

import joblib
import numpy as np

from ..errors import BudgetError, InfeasibleError, SolverError
from ..records import Record, frozen_array
from ..surrogates.base import Surrogate
from .curve_search import FreeUnits, SizeSearch, search_sizes
from .parallel import run_jobs
from .problem import _as_mask
from .solution import TERMINATIONS

__all__ = ["LADDER", "SizeCurve", "size_curve", "size_curves"]

#: Up to this many sizes all are searched; of more, about half as many, evenly spread.
LADDER = 256


@dataclasses.dataclass(frozen=True, eq=False)
class SizeCurve(Record):
    """Best masks found for a range of sizes, and lower bounds for *all* sizes between the fewest and the most.

    Attributes:
        counts: int64, shape (K,): the kept counts that were searched, from most to fewest.
        masks: bool, shape (K, n): kept masks; row i keeps ``counts[i]`` units.
        upper: float64, shape (K,): the surrogate's drop of each mask, evaluated in float64.
        fewest: smallest kept count that the pins and ``min_keep`` allow.
        all_lower: float64, shape (most - fewest + 1,): entry j bounds the drop of every allowed mask that keeps
            ``fewest + j`` units, searched or not, as far as float64 is exact.
        termination: ``"optimal"`` if every searched size is proved, ``"iteration_limit"`` if the search ended with
            gaps, else ``"time_limit"`` or ``"interrupted"``.
        seconds: wall-clock time.
    """

    counts: np.ndarray
    masks: np.ndarray
    upper: np.ndarray
    fewest: int
    all_lower: np.ndarray
    termination: str
    seconds: float

    def __post_init__(self) -> None:
        for name, dtype in (("counts", np.int64), ("masks", bool), ("upper", float), ("all_lower", float)):
            object.__setattr__(self, name, frozen_array(getattr(self, name), dtype))
        counts, masks = self.counts, self.masks
        if counts.ndim != 1 or len(counts) == 0 or (np.diff(counts) >= 0).any():
            raise ValueError("counts: expected a falling sequence of at least one size")
        if masks.ndim != 2 or (masks.sum(1) != counts).any() or self.upper.shape != counts.shape:
            raise ValueError("masks and upper: expected one row per size, keeping as many units as counts says")
        if counts[-1] < self.fewest or counts[0] > self.most:
            raise ValueError(f"counts must lie in {self.fewest}..{self.most}")
        if self.termination not in TERMINATIONS:
            raise ValueError(f"termination must be one of {TERMINATIONS}, got {self.termination!r}")

    @property
    def n_units(self) -> int:
        """Units of the layer."""
        return self.masks.shape[1]

    @property
    def most(self) -> int:
        """Largest kept count that the pins allow."""
        return self.fewest + len(self.all_lower) - 1

    @property
    def lower(self) -> np.ndarray:
        """Proved lower bounds at the searched sizes: float64, shape (K,)."""
        return self.all_lower[self.counts - self.fewest]

    @property
    def gaps(self) -> np.ndarray:
        """``upper - lower``, never below 0: float64, shape (K,)."""
        return np.maximum(self.upper - self.lower, 0.0)

    @property
    def proved(self) -> np.ndarray:
        """bool, shape (K,): no mask of that size is better, by the rule of :attr:`Solution.proved`."""
        return self.gaps <= 1e-6 * np.maximum(1e-3, np.abs(self.upper))

    def mask(self, count: int) -> np.ndarray:
        """The kept mask of a searched size, bool of shape (n,).  ``KeyError`` on a size that was skipped."""
        found = np.flatnonzero(self.counts == count)
        if len(found) == 0:
            raise KeyError(f"size {count} was not searched; sizes are {self.counts.tolist()}")
        return self.masks[found[0]]

    def __str__(self) -> str:
        scale = float(np.abs(self.upper).max()) or 1.0
        return (
            f"sizes {self.counts[0]}..{self.counts[-1]} of {self.n_units} units, {int(self.proved.sum())} of "
            f"{len(self.counts)} proved, mean gap {self.gaps.mean() / scale:.2%} of the largest drop; "
            f"stopped: {self.termination}, {self.seconds:.2f} s"
        )


def size_curve(
    surrogate: Surrogate,
    sizes: Sequence[int] | np.ndarray | None = None,
    *,
    min_keep: int = 0,
    keep: np.ndarray | None = None,
    remove: np.ndarray | None = None,
    max_nodes: int | None = 16,
    n_jobs: int | None = 1,
    seed: int = 0,
    time_limit: float | None = None,
) -> SizeCurve:
    """For every kept count, the mask with the smallest drop that could be found, and a bound on all others.

    *Linear* surrogates are solved exactly by sorting.  *Quadratics* start from both greedy paths and from the rounded
    relaxation, and walk to a local optimum of single exchanges, also from the neighbouring sizes and from seeded
    kicks; the bounds come from the relaxation, followed exactly in the count.  Any *other* convex surrogate is relaxed
    by projected gradients, rounded, and improved by exchanges that the gradient ranks and exact values decide.  Up to
    20 free units of a quadratic (12 of another surrogate) the 2^n masks are enumerated, so the curve is exact.

    Measured on one thread, Gauss-Newton of a digits network: n = 128, all sizes, 0.8 s; n = 512, 129 sizes, 3.7 s; a
    quarter of that (n = 128) to two fifths without branch and bound, at twice the gap.

    Args:
        sizes: kept counts to search; by default all that are allowed when they are at most 256, else 129 evenly
            spread ones with both ends.  The lower bounds always cover all sizes.
        min_keep: fewest units to keep (never more than there are).
        keep, remove: unit numbers or boolean masks that must stay or go.
        max_nodes: nodes of branch and bound spent on every size of a quadratic that has a gap; ``None``: until it is
            closed or the time is up.  About 4,000 nodes a second at n = 128.
        n_jobs: processes for surrogates that are neither linear nor quadratic (joblib); results don't depend on it.
        seed: of the kicks.
        time_limit: seconds; Ctrl-C and a limit keep the masks and bounds found so far.

    Raises:
        InfeasibleError: the pins leave less than ``min_keep`` units.
        BudgetError: a size outside the allowed range, or contradicting pins.
        DataError: a drop that isn't finite.
        SolverError: a mask lies below a proved bound, so that the surrogate isn't convex.
    """
    started = time.perf_counter()
    n = surrogate.n_units
    kept, removed = _as_mask(keep, n, "keep"), _as_mask(remove, n, "remove")
    if kept.shape != (n,) or removed.shape != (n,):
        raise ValueError(f"keep and remove: expected masks of {n} units, got shapes {kept.shape}, {removed.shape}")
    if (kept & removed).any():
        raise BudgetError(f"units {np.flatnonzero(kept & removed).tolist()} must both stay and go")
    fewest, most = max(min(int(min_keep), n), int(kept.sum())), n - int(removed.sum())
    if fewest > most:
        raise InfeasibleError(
            f"the layer must keep {fewest} units but only {most} may stay", requirement="min_keep", nearest=most
        )
    counts = _ladder(sizes, fewest, most)
    units = FreeUnits(surrogate, kept, removed)
    search = SizeSearch(
        wanted=most - counts,  # in removed units, from none on
        largest=most - fewest,
        max_nodes=max_nodes,
        seed=seed,
        deadline=None if time_limit is None else time.time() + time_limit,
        n_jobs=n_jobs,
    )
    found = search_sizes(units, search)
    removals = np.array([units.embed(found.masks[r]) for r in search.wanted])
    upper = np.array([surrogate.drop(z) for z in removals])
    lower = (found.bounds + units.constant)[: search.largest + 1][::-1].copy()
    at = counts - fewest
    scale = np.abs(upper).max()
    if (lower[at] > upper + 1e-7 * max(scale, 1e-12)).any():
        raise SolverError(f"{type(surrogate).__name__}: a mask's drop lies below a tangent, so the drop isn't convex")
    rounding = upper - lower[at] <= 1e-13 * scale  # also what is above: both are the same number, summed twice
    lower[at] = np.where(rounding, upper, lower[at])
    curve = SizeCurve(
        counts=counts,
        masks=removals < 0.5,
        upper=upper,
        fewest=fewest,
        all_lower=lower,
        termination="iteration_limit" if found.stopped is None else found.stopped,
        seconds=time.perf_counter() - started,
    )
    return dataclasses.replace(curve, termination="optimal") if curve.proved.all() else curve


def size_curves(
    surrogates: Sequence[Surrogate], sizes: Sequence[Sequence[int] | np.ndarray | None] | None = None, *,
    min_keep: int | Sequence[int] = 0, keep: Sequence[np.ndarray | None] | None = None,
    remove: Sequence[np.ndarray | None] | None = None, n_jobs: int | None = 1, time_limit: float | None = None,
    max_nodes: int | None = 16, seed: int = 0,
) -> list[SizeCurve]:
    """:func:`size_curve` of every layer, ``n_jobs`` layers at a time; the curves don't depend on ``n_jobs``.

    Runs on joblib, so under ``joblib.parallel_config(backend="dask")`` or ``"ray"`` on a cluster that is there.
    ``min_keep`` is one number for all layers or one per layer, ``sizes``, ``keep`` and ``remove`` have an entry per
    layer, and ``time_limit`` holds for each layer.  After Ctrl-C the layers that were not reached get the masks and
    bounds of a search without time.
    """
    none = [None] * len(surrogates)
    lows = np.broadcast_to(np.asarray(min_keep), (len(surrogates),)).tolist()
    settings = list(zip(sizes or none, lows, keep or none, remove or none, strict=True))
    search = functools.partial(size_curve, max_nodes=max_nodes, seed=seed)
    jobs = [
        joblib.delayed(search)(surrogate, counts, min_keep=low, keep=stay, remove=go, time_limit=time_limit)
        for surrogate, (counts, low, stay, go) in zip(surrogates, settings, strict=True)
    ]
    curves: list[SizeCurve] = []
    try:
        for curve in run_jobs(jobs, n_jobs):
            curves.append(curve)
            if curve.termination == "interrupted":  # the layer caught it; the next ones must not start
                break
    except KeyboardInterrupt:
        pass
    for surrogate, (counts, low, stay, go) in zip(surrogates[len(curves) :], settings[len(curves) :]):
        quick = search(surrogate, counts, min_keep=low, keep=stay, remove=go, time_limit=0.0)
        curves.append(dataclasses.replace(quick, termination="interrupted"))
    return curves


def _ladder(sizes: Sequence[int] | np.ndarray | None, fewest: int, most: int) -> np.ndarray:
    """Kept counts to search, falling, without repeats."""
    if sizes is None:
        if most - fewest < LADDER:
            return np.arange(most, fewest - 1, -1)
        return np.unique(np.linspace(fewest, most, LADDER // 2 + 1).round().astype(np.int64))[::-1]
    counts = np.unique(np.asarray(sizes, dtype=np.int64))[::-1]
    if len(counts) == 0:
        raise BudgetError("sizes: no size was given")
    outside = counts[(counts < fewest) | (counts > most)]
    if len(outside):
        raise BudgetError(f"sizes: {outside.tolist()} lie outside {fewest}..{most}, what the pins and min_keep allow")
    return counts
