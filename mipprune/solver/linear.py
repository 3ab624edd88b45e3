"""A mixed-integer linear program as plain arrays, and the builder that every formulation uses."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp

from ..records import Record, frozen_array

__all__ = ["LinearMip", "MipBuilder"]


@dataclasses.dataclass(frozen=True, eq=False)
class LinearMip(Record):
    """``min c x + constant``, ``row_lower <= A x <= row_upper``, ``lower <= x <= upper``, ``x_i`` integer where told.

    ``A`` is stored in CSR form: ``indptr`` (R+1,), ``indices`` and ``values`` (nnz,).  Columns are float64 of shape
    (N,), rows of shape (R,).  Infinite bounds are ``+-inf``.
    """

    c: np.ndarray
    constant: float
    lower: np.ndarray
    upper: np.ndarray
    integer: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    row_lower: np.ndarray
    row_upper: np.ndarray

    @property
    def n_columns(self) -> int:
        """Number of variables."""
        return len(self.c)

    @property
    def n_rows(self) -> int:
        """Number of constraints."""
        return len(self.row_lower)

    @property
    def matrix(self) -> sp.csr_array:
        """``A`` as a scipy CSR array of shape (R, N)."""
        return sp.csr_array((self.values, self.indices, self.indptr), shape=(self.n_rows, self.n_columns))

    def violation(self, x: np.ndarray) -> float:
        """Largest absolute violation of rows, bounds and integrality at ``x``."""
        activity = self.matrix @ x
        parts = [self.row_lower - activity, activity - self.row_upper, self.lower - x, x - self.upper]
        parts.append(np.abs(x - np.round(x))[self.integer])
        return max(0.0, *(float(p.max(initial=0.0)) for p in parts))


class MipBuilder:
    """Collects columns and rows, block by block; columns are numbered in the order they are added."""

    def __init__(self) -> None:
        self._columns: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self._rows: list[tuple[np.ndarray, np.ndarray, float, float]] = []
        self._costs: list[tuple[np.ndarray, np.ndarray]] = []
        self.n_columns = 0
        self.constant = 0.0

    @property
    def n_rows(self) -> int:
        """Constraints so far."""
        return len(self._rows)

    def add_columns(
        self, n: int, *, cost: float | np.ndarray = 0.0, lower: float | np.ndarray = 0.0,
        upper: float | np.ndarray = 1.0, integer: bool = False,
    ) -> np.ndarray:
        """Add ``n`` columns and return their numbers, int64 of shape (n,).

        Args:
            n: how many.
            cost, lower, upper: one number for all, or float64 of shape (n,).
            integer: whether they are whole.
        """
        costs, lows, highs = (np.array(np.broadcast_to(v, (n,)), dtype=np.float64) for v in (cost, lower, upper))
        self._columns.append((costs, lows, highs, np.full(n, integer)))
        self.n_columns += n
        return np.arange(self.n_columns - n, self.n_columns)

    def add_costs(self, columns: np.ndarray, values: float | np.ndarray) -> None:
        """Add ``values`` to the objective's coefficients of existing ``columns``; one may appear more than once."""
        self._costs.append((np.asarray(columns, np.int64), np.broadcast_to(values, np.shape(columns))))

    def add_row(
        self, columns: np.ndarray, values: float | np.ndarray, *, lower: float = -np.inf, upper: float = np.inf
    ) -> None:
        """Add ``lower <= sum values[j] x[columns[j]] <= upper``; a column may appear more than once."""
        columns = np.atleast_1d(np.asarray(columns, dtype=np.int64))
        self._rows.append((columns, np.broadcast_to(np.asarray(values, np.float64), columns.shape), lower, upper))

    def build(self) -> LinearMip:
        """The program of all columns and rows added so far."""
        columns = [np.concatenate(part) if part else np.zeros(0) for part in zip(*self._columns, strict=True)]
        cost, lower, upper, integer = columns or [np.zeros(0)] * 3 + [np.zeros(0, bool)]
        for where, extra in self._costs:
            np.add.at(cost, where, extra)
        entries = [
            (np.full(len(cols), row), cols, vals) for row, (cols, vals, _, _) in enumerate(self._rows)
        ]
        rows, cols, vals = (np.concatenate(p) for p in zip(*entries, strict=True)) if entries else (np.zeros(0),) * 3
        shape = (len(self._rows), self.n_columns)
        matrix = sp.coo_array((vals, (rows.astype(int), cols.astype(int))), shape=shape).tocsr()
        return LinearMip(
            c=frozen_array(cost),
            constant=self.constant,
            lower=frozen_array(lower),
            upper=frozen_array(upper),
            integer=frozen_array(integer, bool),
            indptr=frozen_array(matrix.indptr, np.int64),
            indices=frozen_array(matrix.indices, np.int64),
            values=frozen_array(matrix.data),
            row_lower=frozen_array([lo for _, _, lo, _ in self._rows]),
            row_upper=frozen_array([up for _, _, _, up in self._rows]),
        )
