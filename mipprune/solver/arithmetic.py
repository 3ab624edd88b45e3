"""Two arithmetics in which a bound can be trusted: float64 with a running error bound, and exact dyadic rationals.

A certificate is checked by one piece of code that runs in either.  Both classes hold arrays and offer the same
operations; :meth:`down` turns a number into a lower bound of itself that further sums keep valid.
"""

from __future__ import annotations

import decimal
import math
from fractions import Fraction
from typing import Any, Self

import numpy as np

__all__ = ["Ball", "Dyadic"]

#: Unit roundoff of float64, and a factor that covers the rounding of the error bounds themselves.
U, SLACK = 2.0**-53, 1.0 + 2.0**-30
#: Added to every radius that isn't zero by construction: underflow.
TINY = 1e-300
#: Digits of the logarithms and exponentials in exact mode.
DIGITS = 30
#: Bits after the point that a quotient or a logarithm is rounded to in exact mode (downwards, so it stays a bound).
GRID = 100


class Ball:
    """Arrays ``mid +- rad``: float64 results and bounds on what rounding may have done to them.

    Every operation adds its own rounding by the standard model ``fl(a op b) = (a op b)(1 + d), |d| <= 2^-53``, sums
    and products of matrices by ``gamma_m = m u / (1 - m u)`` (Higham, Accuracy and Stability, ch. 3), which holds for
    any order of summation.  Logarithms and exponentials are taken to be right to 4 ulp, as numpy's are.
    """

    exact = False

    def __init__(self, mid: Any, rad: Any = 0.0) -> None:
        self.mid = np.asarray(mid, dtype=np.float64)
        self.rad = np.broadcast_to(np.asarray(rad, dtype=np.float64), self.mid.shape)

    @classmethod
    def of(cls, values: Any) -> Self:
        return cls(values)

    @classmethod
    def whole(cls, values: np.ndarray) -> Self:
        """Whole numbers, which may be too large for float64 to hold exactly."""
        mid = np.asarray(values, dtype=np.float64)
        return cls(mid, np.where(np.abs(mid) < 2.0**53, 0.0, np.abs(mid) * U))

    @classmethod
    def join(cls, parts: list[Self]) -> Self:
        """Concatenation along the first axis."""
        return cls(np.concatenate([p.mid for p in parts]), np.concatenate([p.rad for p in parts]))

    def __getitem__(self, which: Any) -> Self:
        return type(self)(self.mid[which], self.rad[which])

    def __add__(self, other: Ball) -> Self:
        mid = self.mid + other.mid
        return type(self)(mid, (self.rad + other.rad + U * np.abs(mid)) * SLACK)

    def __sub__(self, other: Ball) -> Self:
        return self + (-other)

    def __neg__(self) -> Self:
        return type(self)(-self.mid, self.rad)

    def __mul__(self, other: Ball) -> Self:
        mid = self.mid * other.mid
        a, b = np.abs(self.mid), np.abs(other.mid)
        return type(self)(mid, (a * other.rad + self.rad * b + self.rad * other.rad + U * np.abs(mid)) * SLACK + TINY)

    def __matmul__(self, other: Ball) -> Self:
        a, b = np.abs(self.mid), np.abs(other.mid)
        size = a @ b
        spread = a @ other.rad + self.rad @ (b + other.rad)
        gamma = _gamma(self.mid.shape[-1] + 2)
        return type(self)(self.mid @ other.mid, (spread + gamma * (size + spread)) * SLACK + TINY)

    def sum(self, axis: int | None = None) -> Self:
        """The sum over one axis or all."""
        terms = self.mid.size if axis is None else self.mid.shape[axis]
        size, spread = np.abs(self.mid).sum(axis), self.rad.sum(axis)
        gamma = _gamma(terms + 2)
        return type(self)(self.mid.sum(axis), (spread + gamma * (size + spread)) * SLACK)

    def cumsum(self) -> Self:
        """Sums of the first 0, 1, ... entries of a vector: one entry more than there are."""
        pad = np.concatenate([[0.0], self.mid]), np.concatenate([[0.0], self.rad])
        size, spread = np.cumsum(np.abs(pad[0])), np.cumsum(pad[1])
        gamma = _gamma(len(pad[0]) + 2)
        return type(self)(np.cumsum(pad[0]), (spread + gamma * (size + spread)) * SLACK)

    def over(self, divisor: int) -> Self:
        """A quotient by a positive whole number; in exact mode a lower bound of it."""
        mid = self.mid / divisor
        return type(self)(mid, (self.rad / divisor + U * np.abs(mid)) * SLACK + TINY)

    def reshape(self, *shape: int) -> Self:
        return type(self)(self.mid.reshape(*shape), self.rad.reshape(*shape))

    def down(self) -> Self:
        """The lower ends, exactly."""
        return type(self)(np.where(self.rad == 0.0, self.mid, np.nextafter(self.mid - self.rad, -np.inf)))

    def order(self) -> np.ndarray:
        """Indices that sort a vector of exact numbers."""
        return np.argsort(self.mid, kind="stable")

    def least(self, axis: int) -> Self:
        """Minima of the lower ends along an axis."""
        return type(self)(self.down().mid.min(axis))

    def scalar(self) -> Fraction:
        """The lower end of a single number."""
        return Fraction(float(self.down().mid.reshape(())))

    @classmethod
    def logs_above(cls, values: np.ndarray) -> Self:
        """Upper bounds of the logarithms of positive numbers."""
        logs = np.log(values)
        return cls(logs + 8 * U * np.abs(logs) + TINY)

    def logsumexp_above(self) -> Self:
        """Upper bounds of ``log(sum(exp(row)))`` of every row of a matrix."""
        high = self.mid + self.rad * SLACK + U * np.abs(self.mid)
        top = high.max(axis=1)
        # the differences are rounded, towards zero once 4 u are taken off; the last factor covers exp and the sum
        total = np.exp((high - top[:, None]) * (1 - 4 * U)).sum(1) * (1 + _gamma(high.shape[1] + 16))
        logs = np.log(total)
        mid = top + logs
        return type(self)(mid + 16 * U * (np.abs(top) + np.abs(logs)) + TINY)


class Dyadic:
    """Arrays of exact numbers ``ints / 2**shift`` with ``ints`` Python integers: what float64 data are, and stay.

    Sums and products are exact.  Quotients are rounded down, logarithms outwards, to :data:`GRID` bits.  Logarithms and
    exponentials are those of :mod:`decimal`, correctly rounded, one unit in the last of :data:`DIGITS` digits added.
    """

    exact = True

    def __init__(self, ints: Any, shift: int) -> None:
        self.ints = np.asarray(ints, dtype=object)
        self.shift = shift

    @classmethod
    def of(cls, values: Any) -> Self:
        mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float64))
        if not np.isfinite(mantissa).all():
            raise ValueError("a number that isn't finite has no exact value")
        whole = np.ldexp(mantissa, 53).astype(np.int64)
        exponent = np.where(whole == 0, 0, exponent - 53).astype(np.int64)
        lowest = min(int(exponent.min(initial=0)), 0)
        shifts = (exponent - lowest).astype(object)
        return cls(whole.astype(object) * (np.asarray(2, dtype=object) ** shifts), -lowest)

    @classmethod
    def whole(cls, values: np.ndarray) -> Self:
        return cls(np.asarray(values).astype(object), 0)

    @classmethod
    def join(cls, parts: list[Self]) -> Self:
        shift = max(p.shift for p in parts)
        return cls(np.concatenate([p.ints * (1 << (shift - p.shift)) for p in parts]), shift)

    def __getitem__(self, which: Any) -> Self:
        return type(self)(self.ints[which], self.shift)

    def _aligned(self, other: Dyadic) -> tuple[np.ndarray, np.ndarray, int]:
        shift = max(self.shift, other.shift)
        a = self.ints if self.shift == shift else self.ints * (1 << (shift - self.shift))
        b = other.ints if other.shift == shift else other.ints * (1 << (shift - other.shift))
        return a, b, shift

    def __add__(self, other: Dyadic) -> Self:
        a, b, shift = self._aligned(other)
        return type(self)(a + b, shift)

    def __sub__(self, other: Dyadic) -> Self:
        return self + (-other)

    def __neg__(self) -> Self:
        return type(self)(-self.ints, self.shift)

    def __mul__(self, other: Dyadic) -> Self:
        return type(self)(self.ints * other.ints, self.shift + other.shift)

    def __matmul__(self, other: Dyadic) -> Self:
        if self.ints.shape[-1] == 0:
            return type(self)((np.zeros(self.ints.shape, int) @ np.zeros(other.ints.shape, int)).astype(object), 0)
        return type(self)(np.dot(self.ints, other.ints), self.shift + other.shift)

    def sum(self, axis: int | None = None) -> Self:
        return type(self)(self.ints.sum(axis=axis, initial=0), self.shift)

    def cumsum(self) -> Self:
        return type(self)(np.concatenate([np.zeros(1, dtype=object), self.ints.cumsum()]), self.shift)

    def over(self, divisor: int) -> Self:
        return type(self)(self.ints * (1 << GRID) // divisor, self.shift + GRID)

    def reshape(self, *shape: int) -> Self:
        return type(self)(self.ints.reshape(*shape), self.shift)

    def down(self) -> Self:
        """The numbers, rounded down to a grid so fine that it doesn't matter, which keeps the integers short."""
        if self.shift <= 2 * GRID:
            return self
        return type(self)(self.ints // (1 << (self.shift - 2 * GRID)), 2 * GRID)

    def order(self) -> np.ndarray:
        return np.array(sorted(range(len(self.ints)), key=self.ints.__getitem__), dtype=np.int64)

    def least(self, axis: int) -> Self:
        return type(self)(self.ints.min(axis=axis), self.shift)

    def scalar(self) -> Fraction:
        return Fraction(int(self.ints.reshape(())[()]), 1 << self.shift)

    @classmethod
    def logs_above(cls, values: np.ndarray) -> Self:
        context = decimal.Context(prec=DIGITS)
        flat = [_above(context.next_plus(context.ln(decimal.Decimal(v)))) for v in np.ravel(values).tolist()]
        return cls(_objects(flat).reshape(np.shape(values)), GRID)

    def logsumexp_above(self) -> Self:
        up = decimal.Context(prec=DIGITS, rounding=decimal.ROUND_CEILING)
        scale = decimal.Decimal(1 << self.shift)
        logs = []
        for row in self.ints.tolist():
            total = decimal.Decimal(0)
            for value in row:
                total = up.add(total, up.next_plus(up.exp(up.divide(decimal.Decimal(value), scale))))
            logs.append(_above(up.next_plus(up.ln(total))))
        return type(self)(_objects(logs), GRID)


def _gamma(terms: int) -> float:
    return terms * U / (1.0 - terms * U)


def _above(value: decimal.Decimal) -> int:
    """The number times ``2**GRID``, rounded up."""
    return math.ceil(Fraction(value) * (1 << GRID))


def _objects(values: list[int]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out
