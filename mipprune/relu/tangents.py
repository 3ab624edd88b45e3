"""Cross-entropy as rows: one epigraph column per sample, tangents where solutions landed."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp
from scipy.special import softmax

from ..records import frozen_array
from ..solver import LinearMip, MipBuilder
from .expression import Expression
from .requirement import losses

__all__ = ["LossColumns", "with_rows"]


class LossColumns:
    """Columns ``l`` (logits) and ``t >= cross-entropy(l)`` for every sample; the latter by tangents, added on demand.

    Cross-entropy is convex in the logits: with p = softmax(l0) and e the true class,
    ``CE(l) >= CE(l0) + (p - e)'(l - l0)`` for every l, and so for every mask.

    Args:
        builder: gets the columns, and the rows that tie ``l`` to the network's outputs.
        outputs: per sample, the logits as expressions.
        lower, upper: float64 (N, C), ranges of the logits.
        cost: of every ``t`` in the objective.
    """

    def __init__(
        self, builder: MipBuilder, outputs: list[Expression], lower: np.ndarray, upper: np.ndarray,
        targets: np.ndarray, cost: float = 0.0,
    ) -> None:
        self.targets = targets
        self.logits = np.empty(lower.shape, dtype=np.int64)
        for k, output in enumerate(outputs):
            room = 1e-6 * (1.0 + np.abs(lower[k]) + np.abs(upper[k]))  # the rows decide, not rounding in the ranges
            self.logits[k] = builder.add_columns(lower.shape[1], lower=lower[k] - room, upper=upper[k] + room)
            for c, column in enumerate(self.logits[k]):
                output.entry(c).add_row(builder, [int(column)], [1.0], lower=0.0, upper=0.0)
        self.losses = builder.add_columns(len(targets), cost=cost, upper=np.inf)

    def fill(self, point: np.ndarray, logits: np.ndarray) -> None:
        """Set the columns of a solution whose logits (N, C) are known."""
        point[self.logits] = logits
        point[self.losses] = losses(logits, self.targets)

    def tangents(self, logits: np.ndarray, n_columns: int) -> tuple[sp.csr_array, np.ndarray]:
        """Rows ``matrix @ x >= lower``, one per sample, that are exact at ``logits`` (N, C)."""
        n, classes = logits.shape
        slope = softmax(logits, axis=1)
        slope[np.arange(n), self.targets] -= 1.0
        rows = np.concatenate([np.repeat(np.arange(n), classes), np.arange(n)])
        columns = np.concatenate([self.logits.ravel(), self.losses])
        values = np.concatenate([-slope.ravel(), np.ones(n)])
        matrix = sp.csr_array((values, (rows, columns)), shape=(n, n_columns))
        return matrix, losses(logits, self.targets) - (slope * logits).sum(1)


def with_rows(mip: LinearMip, matrix: sp.csr_array, lower: np.ndarray) -> LinearMip:
    """The program with the rows ``matrix @ x >= lower`` added."""
    together = sp.csr_array(sp.vstack([mip.matrix, matrix]))
    return dataclasses.replace(
        mip,
        indptr=frozen_array(together.indptr, np.int64),
        indices=frozen_array(together.indices, np.int64),
        values=frozen_array(together.data),
        row_lower=frozen_array(np.concatenate([mip.row_lower, lower])),
        row_upper=frozen_array(np.concatenate([mip.row_upper, np.full(len(lower), np.inf)])),
    )
