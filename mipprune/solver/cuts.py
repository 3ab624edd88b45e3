"""Tangent cuts: what a convex term is at least, as linear rows."""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np
import scipy.sparse as sp

from ..records import frozen_array
from .formulate import Formulation
from .linear import LinearMip

__all__ = ["Cuts", "append_cuts", "tangents"]

#: Coefficients below this fraction of a cut's largest are taken out, and what they could contribute is given away.
TINY = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Cuts:
    """Rows ``theta[term] + coefficients @ kept >= lower``, in the units of a formulation.

    Attributes:
        term: int64, shape (M,).
        coefficients: float64, shape (M, n).
        lower: float64, shape (M,).
    """

    term: np.ndarray
    coefficients: np.ndarray
    lower: np.ndarray

    def __len__(self) -> int:
        return len(self.term)

    def __getitem__(self, which: np.ndarray | slice) -> Self:
        return dataclasses.replace(
            self, term=self.term[which], coefficients=self.coefficients[which], lower=self.lower[which]
        )

    def violation(self, formulation: Formulation, x: np.ndarray) -> np.ndarray:
        """By how much each row is broken at the point ``x``: shape (M,), negative where there is slack."""
        return self.lower - x[formulation.theta[self.term]] - self.coefficients @ x[formulation.kept]

    @classmethod
    def none(cls, formulation: Formulation) -> Self:
        """No cut at all."""
        return cls(np.zeros(0, np.int64), np.zeros((0, len(formulation.kept))), np.zeros(0))

    @classmethod
    def join(cls, parts: list[Self]) -> Self:
        """All rows of ``parts`` (at least one)."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(cls)))


def tangents(formulation: Formulation, z: np.ndarray) -> Cuts:
    """The tangent of every convex term at the removal vector ``z`` (shape (n,), in the box): B rows.

    A convex function lies above its tangents, ``term(z') >= term(z) + gradient @ (z' - z)``, so the rows hold for every
    mask.  Costs one evaluation of the terms.
    """
    mip, unit = formulation.mip, formulation.drop_unit
    values, gradients = formulation.problem.surrogate.terms(z)
    gradients = gradients / unit
    # theta - gradient @ z' >= value - gradient @ z, with z' = 1 - kept
    lower = values / unit + (gradients * (1.0 - z)).sum(1)
    low, high = mip.lower[formulation.kept], mip.upper[formulation.kept]
    tiny = np.abs(gradients) <= TINY * np.abs(gradients).max(axis=1, keepdims=True, initial=0.0)
    given = np.where(tiny, gradients, 0.0)
    lower -= np.maximum(given * low, given * high).sum(1)
    return Cuts(np.arange(len(values)), np.where(tiny, 0.0, gradients), lower)


def append_cuts(formulation: Formulation, cuts: Cuts, forbidden: np.ndarray | None = None) -> LinearMip:
    """The formulation's MIP with ``cuts`` and no-good rows for ``forbidden`` masks (bool, (F, n)) as further rows."""
    mip = formulation.mip
    masks = np.zeros((0, len(formulation.kept)), dtype=bool) if forbidden is None else forbidden
    count = len(cuts) + len(masks)
    coefficients = np.concatenate([cuts.coefficients, np.where(masks, -1.0, 1.0)])
    row, unit = np.nonzero(coefficients)
    rows = np.concatenate([row, np.arange(len(cuts))])
    columns = np.concatenate([formulation.kept[unit], formulation.theta[cuts.term]])
    values = np.concatenate([coefficients[row, unit], np.ones(len(cuts))])
    added = sp.coo_array((values, (rows, columns)), shape=(count, mip.n_columns))
    matrix = sp.csr_array(sp.vstack([mip.matrix, added]))
    return dataclasses.replace(
        mip,
        indptr=frozen_array(matrix.indptr, np.int64),
        indices=frozen_array(matrix.indices, np.int64),
        values=frozen_array(matrix.data),
        row_lower=frozen_array(np.concatenate([mip.row_lower, cuts.lower, 1.0 - masks.sum(1)])),
        row_upper=frozen_array(np.append(mip.row_upper, np.full(count, np.inf))),
    )
