"""The least value of a sum of tables over small sets of variables: elimination of one variable after the other."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["least_sum"]

#: Most entries of a table on the way; beyond it tables are split, which keeps the result a lower bound.
MAX_ENTRIES = 1 << 22

#: Variables in ascending order, and a table with one axis for each: numbers of :mod:`.arithmetic`.
Factor = tuple[tuple[int, ...], Any]


def least_sum(sizes: list[int], factors: list[Factor], arithmetic: Any) -> Any:
    """Lower bound of ``min over x of sum_f table_f[x of its variables]``; but for rounding the minimum, unless split.

    Bucket elimination: the variable whose elimination needs the smallest table goes first.  On a forest of pairs that
    is O(sizes^2) per pair.  Where a table would exceed :data:`MAX_ENTRIES`, the pairs that meet in it are replaced by
    halves of their row and column minima, ``t(a, b) >= min_b t(a, .) / 2 + min_a t(., b) / 2``.

    Args:
        sizes: number of values of every variable.
        factors: the tables; every variable has one at least.
        arithmetic: the class of the tables' numbers.
    """
    rest = set(range(len(sizes)))
    total = arithmetic.of(0.0)
    while rest:
        variable = min(rest, key=lambda v: _entries(_scope(v, factors), sizes))
        scope = _scope(variable, factors)
        if _entries(scope, sizes) > MAX_ENTRIES:
            factors = [part for factor in factors for part in _halves(factor, variable, arithmetic)]
            continue
        bucket = [factor for factor in factors if variable in factor[0]]
        factors = [factor for factor in factors if variable not in factor[0]]
        table = None
        for own, values in bucket:
            spread = values.reshape(*(sizes[v] if v in own else 1 for v in scope))
            table = spread if table is None else table + spread
        left = tuple(v for v in scope if v != variable)
        least = table.least(scope.index(variable))  # type: ignore[union-attr]
        if left:
            factors.append((left, least))
        else:
            total = (total + least).down()
        rest.remove(variable)
    return total


def _scope(variable: int, factors: list[Factor]) -> tuple[int, ...]:
    return tuple(sorted({v for own, _ in factors if variable in own for v in own}))


def _entries(scope: tuple[int, ...], sizes: list[int]) -> int:
    return math.prod(sizes[v] for v in scope)


def _halves(factor: Factor, variable: int, arithmetic: Any) -> list[Factor]:
    scope, table = factor
    if variable not in scope or len(scope) != 2:
        return [factor]
    half = arithmetic.of(0.5)
    return [((scope[1 - axis],), table.least(axis) * half) for axis in (0, 1)]
