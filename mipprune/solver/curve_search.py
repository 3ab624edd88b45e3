"""How the sizes of one layer are searched: by sorting, by enumeration, as a quadratic, or through an oracle."""

from __future__ import annotations

import dataclasses
import itertools
import time

import joblib
import numpy as np

from ..errors import DataError
from ..surrogates.base import Surrogate
from ..surrogates.quadratic import Quadratic
from .capped_simplex import tangent_bounds
from .cardinality_convex import relax_convex
from .cardinality_exact import TABLE_UNITS, branch_and_bound, quadratic_table, table_minima
from .cardinality_qp import ActiveSet, StalledError
from .cardinality_search import exchange, greedy_paths, kick, screened_exchange
from .parallel import run_jobs

__all__ = ["Found", "FreeUnits", "SizeSearch", "search_sizes"]

#: Largest number of free units whose 2^n masks are evaluated when the surrogate is an oracle.
ORACLE_TABLE_UNITS = 12
#: Sizes per job of an oracle's search; fixed, so that the result doesn't depend on the number of jobs.
CHUNK = 16
KICKS = 3


class FreeUnits:
    """A surrogate as a function of the units that no pin decides: ``drop = constant + f(z)``, ``f(0) = 0``.

    Attributes:
        free: int64, shape (m,): the units that may stay or go.
        constant: drop of removing the pinned units alone.
        linear: float64 (m,) and ``curvature`` float64 (m, m) when ``f`` is a linear or quadratic function, else
            ``None``; the curvature of a linear function is ``None``.
    """

    def __init__(self, surrogate: Surrogate, kept: np.ndarray, removed: np.ndarray) -> None:
        self.surrogate = surrogate
        self.base = removed.astype(np.float64)
        self.free = np.flatnonzero(~(kept | removed))
        self.constant = surrogate.drop(self.base)
        _check_finite(self.constant, int(removed.sum()))
        self.linear: np.ndarray | None = None
        self.curvature: np.ndarray | None = None
        if surrogate.is_linear:
            self.linear = surrogate.linear[self.free]
        elif isinstance(surrogate, Quadratic):
            factor = surrogate.factor[:, self.free]
            self.linear = surrogate.drop_and_gradient(self.base)[1][self.free]
            self.curvature = factor.T @ factor

    def __len__(self) -> int:
        return len(self.free)

    def embed(self, z: np.ndarray) -> np.ndarray:
        """Removal vectors of all units (float64, shape (..., n)) from those of the free ones (shape (..., m))."""
        full = np.broadcast_to(self.base, (*z.shape[:-1], len(self.base))).copy()
        full[..., self.free] = z
        return full

    def values(self, z: np.ndarray) -> np.ndarray:
        """``f`` of every row."""
        return self.surrogate.drops(self.embed(z)) - self.constant

    def value_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = self.surrogate.drop_and_gradient(self.embed(z))
        return value - self.constant, gradient[self.free]


@dataclasses.dataclass(frozen=True)
class SizeSearch:
    """What is asked: removed counts, ascending, and how much work may go into them."""

    wanted: np.ndarray
    largest: int
    max_nodes: int | None
    seed: int
    deadline: float | None
    n_jobs: int | None

    def goes_on(self) -> bool:
        return self.deadline is None or time.time() < self.deadline


class Found:
    """Best mask and value per number of removed free units, bounds for every number, and why the search stopped."""

    def __init__(self, m: int) -> None:
        self.masks: dict[int, np.ndarray] = {}
        self.values: dict[int, float] = {}
        self.bounds = np.full(m + 1, -np.inf)
        self.stopped: str | None = None

    def offer(self, z: np.ndarray, value: float) -> None:
        r = int(z.sum())
        _check_finite(value, r)
        if value < self.values.get(r, np.inf):
            self.masks[r], self.values[r] = z, value


def _check_finite(drop: float, removed: int) -> None:
    if not np.isfinite(drop):
        raise DataError(f"the surrogate's drop is {drop} when {removed} units go: look for NaN or inf in its data")


def search_sizes(units: FreeUnits, search: SizeSearch) -> Found:
    """Search the wanted sizes; a Ctrl-C or the deadline leaves what was found so far, a mask for every size."""
    found = Found(len(units))
    if units.linear is not None and units.curvature is None:
        _by_sorting(units.linear, search, found)
    elif units.linear is not None and units.curvature is not None:
        _as_quadratic(units.linear, units.curvature, search, found)
    else:
        _by_oracle(units, search, found)
    return found


def _by_sorting(linear: np.ndarray, search: SizeSearch, found: Found) -> None:
    order = np.argsort(linear, kind="stable")
    found.bounds[:] = np.concatenate([[0.0], np.cumsum(linear[order])])
    for r in search.wanted:
        z = np.zeros(len(linear), dtype=bool)
        z[order[:r]] = True
        found.offer(z, found.bounds[r])


def _from_table(table: np.ndarray, found: Found) -> None:
    for r, (z, value) in enumerate(table_minima(table)):
        found.offer(z, value)
        found.bounds[r] = value


def _as_quadratic(linear: np.ndarray, curvature: np.ndarray, search: SizeSearch, found: Found) -> None:
    if len(linear) <= TABLE_UNITS:
        _from_table(quadratic_table(linear, curvature), found)
        return
    work = _QuadraticWork(linear, curvature, search, found)
    try:
        for part in (work.follow_relaxation, work.exchange_all, work.neighbours, work.kicks, work.close_gaps):
            part()
            if not search.goes_on():
                found.stopped = "time_limit"
                return
    except KeyboardInterrupt:
        found.stopped = "interrupted"


class _QuadraticWork:
    """The parts of a quadratic's search, each of which leaves ``found`` valid wherever it is cut off."""

    def __init__(self, linear: np.ndarray, curvature: np.ndarray, search: SizeSearch, found: Found) -> None:
        self.linear, self.curvature, self.search, self.found = linear, curvature, search, found
        self.half = 0.5 * np.diag(curvature)
        self.relaxed: dict[int, ActiveSet] = {}
        removed, added = greedy_paths(linear, curvature)
        self.starts = {int(r): [removed[r], added[r]] for r in search.wanted}
        for masks in self.starts.values():
            for z in masks:
                found.offer(z, self.value_and_gradient(z.astype(np.float64))[0])
        for z in (np.zeros(len(linear)), np.ones(len(linear))):  # two tangents, should nothing else be reached
            self._bound(z)

    def value_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        turn = self.curvature @ z
        return float(self.linear @ z + 0.5 * z @ turn), self.linear + turn

    def _bound(self, z: np.ndarray) -> None:
        value, gradient = self.value_and_gradient(z)
        np.maximum(self.found.bounds, tangent_bounds(value, gradient, z), out=self.found.bounds)

    def _improve(self, z: np.ndarray) -> None:
        z = exchange(self.linear, self.curvature, z)
        self.found.offer(z, self.value_and_gradient(z.astype(np.float64))[0])

    def follow_relaxation(self) -> None:
        state, stalled = ActiveSet(self.linear, self.curvature), False
        scale = abs(self.value_and_gradient(np.ones(len(self.linear)))[0])
        for r in range(self.search.largest + 1):
            if not self.search.goes_on():
                return
            if not stalled:
                try:
                    state.move_total(r)
                except StalledError:
                    stalled = True
            if stalled:  # slower, but it can't stall
                state.z = relax_convex(
                    self.value_and_gradient, state.z, r, self.found.bounds, tolerance=1e-6 * scale
                )
            self._bound(state.z)
            if r in self.starts:
                z = np.zeros(len(self.linear), dtype=bool)
                z[np.argsort(-state.z, kind="stable")[:r]] = True
                self.starts[r].append(z)
                if self.search.max_nodes != 0 and not stalled:
                    self.relaxed[r] = state.copy()

    def exchange_all(self) -> None:
        for masks in self.starts.values():
            for z in masks:
                if not self.search.goes_on():
                    return
                self._improve(z)

    def neighbours(self) -> None:
        """From the best mask of each size to the next size and on to a local optimum; up the sizes, then down."""
        wanted = self.search.wanted.tolist()
        for sizes in (wanted, wanted[::-1]):
            for r, target in itertools.pairwise(sizes):
                if not self.search.goes_on():
                    return
                self._improve(self._resized(self.found.masks[r], target))

    def _resized(self, z: np.ndarray, target: int) -> np.ndarray:
        z = z.copy()
        gradient = self.linear + self.curvature @ z
        sign = 1.0 if target > z.sum() else -1.0
        while z.sum() != target:
            change = sign * gradient + self.half
            change[z if sign > 0 else ~z] = np.inf
            unit = int(change.argmin())
            z[unit] = sign > 0
            gradient += sign * self.curvature[unit]
        return z

    def kicks(self) -> None:
        rng = np.random.default_rng(self.search.seed)
        for strength in range(2, 2 + KICKS):
            for r in self.search.wanted:
                if not self.search.goes_on():
                    return
                z = self.found.masks[int(r)]
                self._improve(kick(z, self.linear + self.curvature @ z, strength, rng))

    def close_gaps(self) -> None:
        limit, deadline = self.search.max_nodes, self.search.deadline
        for done, (r, relaxed) in enumerate(self.relaxed.items()):
            value = self.found.values[r]
            tolerance = 1e-7 * max(1e-3, abs(value))
            if value - self.found.bounds[r] <= tolerance:
                continue
            now = time.time()  # every size left gets an equal share of the time left
            stop = np.inf if deadline is None else now + (deadline - now) / (len(self.relaxed) - done)
            left = [np.inf if limit is None else limit]

            def goes_on(left: list[float] = left, stop: float = stop) -> bool:
                left[0] -= 2  # a step solves two nodes
                return left[0] >= 0 and time.time() < stop

            result = branch_and_bound(relaxed, self.linear, self.curvature, self.found.masks[r], goes_on, tolerance)
            self.found.offer(result.z, result.value)
            self.found.bounds[r] = max(self.found.bounds[r], result.bound)
            if time.time() >= stop:
                self.found.stopped = "time_limit"


def _by_oracle(units: FreeUnits, search: SizeSearch, found: Found) -> None:
    m = len(units)
    if m <= ORACLE_TABLE_UNITS:
        masks = (np.arange(1 << m)[:, None] >> np.arange(m) & 1).astype(np.float64)
        _from_table(units.values(masks), found)
        return
    _rank_once(units, search, found)
    chunks = [search.wanted[at : at + CHUNK] for at in range(0, len(search.wanted), CHUNK)]
    jobs = (joblib.delayed(_oracle_chunk)(units, search, chunk) for chunk in chunks)
    try:
        for part in run_jobs(jobs, search.n_jobs, ordered=False):
            np.maximum(found.bounds, part.bounds, out=found.bounds)
            for r, z in part.masks.items():
                found.offer(z, part.values[r])
            found.stopped = found.stopped or part.stopped
            if part.stopped == "interrupted":  # the chunk caught it; the next ones must not start
                break
    except KeyboardInterrupt:
        found.stopped = "interrupted"


def _rank_once(units: FreeUnits, search: SizeSearch, found: Found) -> None:
    """A mask and a bound for every size from a single gradient, so that a time limit never finds empty hands."""
    half = np.full(len(units), 0.5)
    value, gradient = units.value_and_gradient(half)
    np.maximum(found.bounds, tangent_bounds(value, gradient, half), out=found.bounds)
    order = np.argsort(gradient, kind="stable")
    masks = np.zeros((len(search.wanted), len(units)), dtype=bool)
    for row, r in zip(masks, search.wanted):
        row[order[:r]] = True
    for z, value in zip(masks, units.values(masks.astype(np.float64))):
        found.offer(z, float(value))


def _oracle_chunk(units: FreeUnits, search: SizeSearch, sizes: np.ndarray) -> Found:
    """Relax, round and improve a run of neighbouring sizes."""
    found, m = Found(len(units)), len(units)
    try:
        point = np.full(m, float(sizes[0]) / m)
        scale = abs(units.value_and_gradient(np.ones(m))[0])
        for r in sizes.tolist():
            if not search.goes_on():
                found.stopped = "time_limit"
                break
            point = relax_convex(
                units.value_and_gradient, point, r, found.bounds, tolerance=1e-5 * scale, goes_on=search.goes_on
            )
            starts = [np.zeros(m, dtype=bool)]
            starts[0][np.argsort(-point, kind="stable")[:r]] = True
            before = [size for size in found.masks if size < r]
            if before:  # the size before, and the units that the gradient lets go next
                z = found.masks[max(before)].copy()
                gradient = units.value_and_gradient(z.astype(np.float64))[1]
                gradient[z] = np.inf
                z[np.argsort(gradient, kind="stable")[: r - max(before)]] = True
                starts.append(z)
            for z in starts:
                found.offer(*screened_exchange(units.value_and_gradient, units.values, z, goes_on=search.goes_on))
    except KeyboardInterrupt:
        found.stopped = "interrupted"
    return found
