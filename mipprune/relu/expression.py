"""Affine expressions in the columns of a program under construction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Self

import numpy as np
import scipy.sparse as sp

from ..solver import MipBuilder

__all__ = ["Entry", "Expression"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One affine expression: ``values @ x[columns] + constant``."""

    columns: np.ndarray
    values: np.ndarray
    constant: float

    @classmethod
    def of(cls, constant: float, columns: Iterable[int] = (), values: Iterable[float] = ()) -> Self:
        return cls(np.array([*columns], dtype=np.int64), np.array([*values], dtype=np.float64), float(constant))

    @property
    def is_constant(self) -> bool:
        return len(self.columns) == 0

    def add_row(
        self, builder: MipBuilder, columns: Iterable[int], values: Iterable[float], *, lower: float = -np.inf,
        upper: float = np.inf,
    ) -> None:
        """The row ``lower <= values @ x[columns] - expression <= upper``."""
        together = np.concatenate([np.array([*columns], dtype=np.int64), self.columns])
        builder.add_row(together, np.concatenate([np.array([*values], dtype=np.float64), -self.values]),
                        lower=lower + self.constant, upper=upper + self.constant)


@dataclasses.dataclass(frozen=True)
class Expression:
    """A vector of affine expressions: ``matrix @ x + constant``; ``matrix`` has as many columns as are needed."""

    matrix: sp.csr_array
    constant: np.ndarray

    @classmethod
    def fixed(cls, constant: np.ndarray) -> Self:
        return cls(sp.csr_array((len(constant), 0)), constant)

    @classmethod
    def stacked(cls, entries: list[Entry], width: int) -> Self:
        """One entry below the other, over ``width`` columns."""
        ends = np.cumsum([0, *(len(e.columns) for e in entries)])
        empty = np.zeros(0)
        data = np.concatenate([empty, *(e.values for e in entries)])
        columns = np.concatenate([empty.astype(np.int64), *(e.columns for e in entries)])
        matrix = sp.csr_array((data, columns, ends), shape=(len(entries), width))
        return cls(matrix, np.array([e.constant for e in entries]))

    def entry(self, i: int) -> Entry:
        span = slice(self.matrix.indptr[i], self.matrix.indptr[i + 1])
        return Entry(self.matrix.indices[span].astype(np.int64), self.matrix.data[span], float(self.constant[i]))

    def widened(self, width: int) -> sp.csr_array:
        """The matrix with zero columns up to ``width``."""
        m = self.matrix
        return sp.csr_array((m.data, m.indices, m.indptr), shape=(m.shape[0], width))

    def at(self, x: np.ndarray) -> np.ndarray:
        """Its value at a solution ``x`` of the whole program."""
        return np.asarray(self.matrix @ x[: self.matrix.shape[1]] + self.constant)
