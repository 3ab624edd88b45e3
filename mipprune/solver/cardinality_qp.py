"""Relaxations of convex quadratics under a cardinality, followed in the count.

The set is ``{z in [0, 1]^n : sum z = r}``: r of n units are removed, fractions allowed.
"""

from __future__ import annotations

import contextlib
from typing import Self

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs

__all__ = ["HELD", "ActiveSet", "StalledError"]

#: Added to the curvature's diagonal, relative to its largest entry: makes the minimiser unique where units are twins.
RIDGE = 1e-9
#: Added to the linear part, relative to the largest entry, times a random number in [0, 1) per unit.
TIE_BREAK = 1e-10
_LOW, _FREE, _HIGH, HELD = -1, 0, 1, 2  # status of a unit


class StalledError(Exception):
    """The active set ran in circles or met a singular matrix; the last point stays, and its tangent is valid."""


class ActiveSet:
    """Minimiser of ``linear @ z + 1/2 z @ curvature @ z`` over ``{0 <= z <= 1, sum z = total}``, as it moves.

    With ``group`` every group of units has a sum of its own.

    The minimiser is a piecewise linear function of the total, and of the value at which one unit is held: between two
    breaks the free units follow a linear system, and at a break one unit meets a bound or leaves it (parametric
    active sets; our form for sums).  Starting at the total 0, where the minimiser is 0, the whole curve
    of relaxations costs one factorisation of the free units' block per break; measured about 3.5 breaks per unit.
    Ridge and tie-breaking perturb the problem by some 1e-9 of its scale: take bounds from a tangent of the true one.

    Attributes:
        z: float64, shape (n,); the minimiser.
        gradient: float64, shape (n,), at ``z``.
        group: int64, shape (n,), in [0, G): which sum a unit belongs to.
        multiplier: float64, shape (G,), of the sums.
        total: ``sum z``.
    """

    def __init__(self, linear: np.ndarray, curvature: np.ndarray, group: np.ndarray | None = None) -> None:
        n = len(linear)
        self.group = np.zeros(n, dtype=np.int64) if group is None else group
        groups = int(self.group.max(initial=0)) + 1
        self.member = (self.group[:, None] == np.arange(groups)).astype(np.float64)
        steepest = float(np.abs(linear).max(initial=0.0))
        scale = max(float(np.diag(curvature).max(initial=0.0)), 1e-3 * steepest) or 1.0
        self.curvature = _with_ridge(curvature, linear)
        # twins would reach their bounds together, and the active sets could run in circles
        self.linear = linear + TIE_BREAK * max(scale, steepest) * np.random.default_rng(0).random(n)
        self.z = np.zeros(n)
        self.gradient = self.linear.copy()
        self.multiplier = np.full(groups, -np.inf)
        self.status = np.full(n, _LOW, dtype=np.int8)

    @classmethod
    def near(
        cls, z: np.ndarray, gradient: np.ndarray, curvature: np.ndarray, held: np.ndarray | None = None,
        group: np.ndarray | None = None,
    ) -> Self:
        """The minimiser of the quadratic that has this gradient and curvature at ``z``, sought from ``z``.

        ``z`` (shape (n,), in the box) is the minimiser for some other gradient, and the two gradients' difference is a
        tilt.  Numerical trouble leaves a point on the way.  Units in ``held`` (bool, (n,)) stay where they are.
        """
        state = cls(gradient, curvature, group)
        state.z = np.where(z < 1e-7, 0.0, np.where(z > 1.0 - 1e-7, 1.0, z))
        state.status = np.where(state.z <= 0.0, _LOW, np.where(state.z >= 1.0, _HIGH, _FREE)).astype(np.int8)
        if held is not None:
            state.status[held] = HELD
        moved = z - state.z
        for g in range(len(state.multiplier)):
            here = state.group == g
            free, low = here & (state.status == _FREE), here & (state.status == _LOW)
            state.z[free] += moved[here].sum() / max(1, free.sum())
            state.multiplier[g] = gradient[free].mean() if free.any() else gradient[low].min(initial=0.0)
        price = state.multiplier[state.group]
        bent = np.where(state.status == _LOW, np.maximum(gradient, price), np.minimum(gradient, price))
        bent = np.where(state.status == _FREE, price, np.where(state.held, gradient, bent))
        state.linear = bent - state.curvature @ state.z
        with contextlib.suppress(StalledError):
            state.tilt(gradient - bent)
        return state

    def copy(self) -> Self:
        """A state that moves on its own; the matrices are shared."""
        twin = object.__new__(type(self))
        twin.linear, twin.curvature, twin.group, twin.member = self.linear, self.curvature, self.group, self.member
        twin.multiplier = self.multiplier
        twin.z, twin.gradient, twin.status = self.z.copy(), self.gradient.copy(), self.status.copy()
        return twin

    @property
    def total(self) -> float:
        return float(self.z.sum())

    @property
    def value(self) -> float:
        """Objective at ``z``, of the perturbed problem."""
        return float(0.5 * (self.linear + self.gradient) @ self.z)

    @property
    def held(self) -> np.ndarray:
        """bool, shape (n,): units that :meth:`hold` has fixed."""
        return self.status == HELD

    @property
    def excess(self) -> np.ndarray:
        """The gradient less the multiplier of each unit's sum, shape (n,): near 0 where a unit is about to move."""
        return self.gradient - (self.multiplier[self.group] if len(self.multiplier) > 1 else self.multiplier[0])

    def move_total(self, total: int) -> None:
        """Follow the minimiser up to the larger sum ``total`` of a single group.

        Raises:
            StalledError: numerical trouble; ``z`` is then the last point reached.
        """
        self._refresh()
        self._follow(total - self.total, np.zeros(len(self.z)), np.ones(1))

    def hold(self, unit: int, at: int) -> None:
        """Follow the minimiser while ``z[unit]`` moves to ``at`` (0 or 1); the unit stays there for good.

        Raises:
            StalledError: the other units can't make up for it, or numerical trouble.
        """
        distance = at - self.z[unit]
        sign = 1.0 if distance > 0 else -1.0
        self.status[unit] = HELD
        self._refresh()
        self._follow(abs(distance), sign * self.curvature[unit], -sign * self.member[unit], unit, sign)
        self.z[unit] = at

    def tilt(self, change: np.ndarray) -> None:
        """Follow the minimiser while ``change`` (shape (n,)) is added to the linear part.

        Raises:
            StalledError: numerical trouble; the linear part has changed all the same.
        """
        self._refresh()
        self.linear = self.linear + change
        self._follow(1.0, change, np.zeros(len(self.multiplier)))
        self._refresh()

    def bend(self, curvature: np.ndarray) -> None:
        """Put another positive semidefinite curvature in, and such a linear part that ``z`` remains the minimiser."""
        self._refresh()
        self.curvature = _with_ridge(curvature, self.linear)
        self.linear = self.gradient - self.curvature @ self.z

    def stiffness(self, limit: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """The free units nearest to 1/2, at most ``limit``, and the curvature that each feels when it is moved alone.

        The other free units follow, their sums making up for it.  With ``P`` the inverse of the free block and ``u``
        its row sums, a unit's curvature is ``1 / (P_ii - u_i^2 / sum u)``; with several sums, ``E`` their members,
        ``1 / (P - P E (E' P E)^-1 E' P)_ii``.
        """
        free = np.flatnonzero(self.status == _FREE)
        near = np.argsort(np.abs(self.z[free] - 0.5), kind="stable")[:limit]
        factor, fault = dpotrf(self.curvature[free[:, None], free], lower=1)
        if fault or len(free) < 2:
            return free[near], np.diag(self.curvature)[free[near]].copy()
        member = self.member[free]
        member = member[:, member.any(0)]
        right = np.zeros((len(free), len(near)))
        right[near, np.arange(len(near))] = 1.0
        solved, _ = dpotrs(factor, np.concatenate([right, member], axis=1), lower=1)
        own, sums = solved[near, np.arange(len(near))], solved[:, len(near):]
        if sums.shape[1] == 1:
            give = own - sums[near, 0] ** 2 / sums.sum()
        else:
            give = own - (sums[near] * np.linalg.solve(member.T @ sums, sums[near].T).T).sum(1)
        # a unit that is alone in its sum can't move
        return free[near], 1.0 / np.maximum(give, 1e-300)

    def _refresh(self) -> None:
        self.gradient = self.linear + self.curvature @ self.z  # drops the rounding of the steps before

    def _follow(
        self, distance: float, force: np.ndarray, rise: np.ndarray, driver: int | None = None, sign: float = 0.0
    ) -> None:
        """Follow the minimiser for ``distance``; per unit of it the gradient is pushed by ``force`` (what the driver's
        own move or a tilt adds), the free units' sums change by ``rise`` (G,), and the driver moves by ``sign``.
        """
        groups = len(rise)
        for _ in range(10 * len(self.z) + 100):
            if distance <= 1e-13:
                return
            free = np.flatnonzero(self.status == _FREE)
            if groups > 1 or len(free) == 0:
                there = self.member[free].any(0)
                stuck = np.flatnonzero(~there & (rise != 0)) if len(free) else np.arange(groups)
                if len(stuck):
                    released = [self._release_one(g, float(rise[g])) for g in stuck.tolist()]
                    if not any(released):
                        return  # nothing can move, and nothing has to
                    continue
            factor, fault = dpotrf(self.curvature[free[:, None], free], lower=1)
            if fault:
                break
            columns = self.curvature[:, free]
            right = np.empty((len(free), groups + 1))
            right[:, :groups] = self.member[free]
            right[:, groups] = -force[free]
            solved, _ = dpotrs(factor, right, lower=1)
            if groups == 1:
                slope = (rise - solved[:, 1].sum()) / solved[:, 0].sum()
                step = slope[0] * solved[:, 0] + solved[:, 1]
            else:
                sums, slope = self.member[free].T @ solved, np.zeros(groups)
                slope[there] = np.linalg.solve(sums[there][:, :groups][:, there], (rise - sums[:, groups])[there])
                step = solved[:, :groups] @ slope + solved[:, groups]
            turn = columns @ step + force
            distance -= self._step(distance, free, step, turn, slope, driver, sign)
        else:
            raise StalledError("too many breaks")
        raise StalledError("singular block")

    def _step(
        self, distance: float, free: np.ndarray, step: np.ndarray, turn: np.ndarray, slope: np.ndarray,
        driver: int | None, sign: float,
    ) -> float:
        """Move until the next break, at most ``distance``; returns how far."""
        at = self.z[free]
        room = np.full(len(free), np.inf)
        up, down = step > 1e-14, step < -1e-14
        room[up] = (1.0 - at[up]) / step[up]
        room[down] = at[down] / -step[down]
        blocked = int(room.argmin())
        # the multiplier of a bound is gradient - multiplier: positive at 0, negative at 1, and 0 where it lets go
        side = self.status.astype(np.float64)
        side[np.abs(self.status) != 1] = 0.0
        own = slope[self.group] if len(slope) > 1 else slope[0]
        closing = side * (turn - own)
        eager = closing > 1e-14 * np.abs(own)
        wait = np.full(len(self.z), np.inf)
        wait[eager] = -side[eager] * self.excess[eager] / closing[eager]
        leaving = int(wait.argmin())
        length = min(distance, max(min(room[blocked], wait[leaving]), 0.0))
        self.z[free] = at + length * step
        self.gradient += length * turn
        self.multiplier = self.multiplier + length * slope
        if driver is not None:
            self.z[driver] += sign * length
        if length < distance or min(room[blocked], wait[leaving]) <= distance:
            if room[blocked] <= wait[leaving]:
                unit = free[blocked]
                self.status[unit] = _HIGH if step[blocked] > 0 else _LOW
                self.z[unit] = 1.0 if step[blocked] > 0 else 0.0
            else:
                self.status[leaving] = _FREE
        return length

    def _release_one(self, group: int, rise: float) -> bool:
        """No unit of a group is free: its multiplier jumps until the first unit at a bound lets go.

        ``False`` if there is none and none need to.
        """
        side = _HIGH if rise < 0 else _LOW
        pool = np.flatnonzero((self.status == side) & (self.group == group))
        if len(pool) == 0:
            if rise == 0:
                return False
            raise StalledError("no unit is left to move")
        sign = 1.0 if side == _LOW else -1.0
        unit = int(pool[(sign * self.gradient[pool]).argmin()])
        self.status[unit] = _FREE
        self.multiplier = np.where(np.arange(len(self.multiplier)) == group, self.gradient[unit], self.multiplier)
        return True


def _with_ridge(curvature: np.ndarray, linear: np.ndarray) -> np.ndarray:
    steepest = float(np.abs(linear).max(initial=0.0))
    scale = max(float(np.diag(curvature).max(initial=0.0)), 1e-3 * steepest) or 1.0
    return curvature + RIDGE * scale * np.eye(len(linear))
