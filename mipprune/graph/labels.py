"""Labels: which prunable index every element of every tensor belongs to.

Every index of every parameter dimension that units live on (an output channel of a weight, an input column of the
next one, a batch-norm scale, ...) is a *label*, an integer above 0.  During tracing every activation carries a tensor
of labels of its own shape (batch size 1); operations that only move elements move the labels along, operations that
combine elements couple labels.  Label 0 marks what is not prunable.  In the end the connected components of the
coupling graph are the units; a component that holds label 0 is pinned.

Labels of an activation vary along at most one of its dimensions.  That is what makes a smaller network possible at
all: what is left of every tensor is again a full box, so the model's own code runs on it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

__all__ = ["Components", "LabelSpace", "Site"]

#: A place that labels live on: (fully qualified tensor name, dimension).
Site = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Components:
    """Connected components of the labels.

    Attributes:
        number: int64 per label, the component it belongs to; -1 where the label is pinned.
        toward_pin: int64 per label, the next label on the shortest way to label 0; negative where there is no way.
        reasons: reason per label that was pinned by itself.
    """

    number: np.ndarray
    toward_pin: np.ndarray
    reasons: dict[int, str]

    def of(self, labels: torch.Tensor) -> np.ndarray:
        """Component of every label, int64 of the labels' shape; -1 where pinned."""
        return self.number[labels.numpy()]

    def reason(self, label: int) -> str | None:
        """Why ``label`` is pinned: the reason that lies nearest; ``None`` when it isn't pinned or is label 0."""
        while label > 0 and self.toward_pin[label] >= 0:
            if self.toward_pin[label] == 0:
                return self.reasons[label]
            label = int(self.toward_pin[label])
        return None


class LabelSpace:
    """Hands out labels per (tensor, dimension) and collects what couples them."""

    def __init__(self) -> None:
        self.sites: dict[Site, torch.Tensor] = {}
        self._next = 1
        self._pairs: list[np.ndarray] = []
        self._reasons: dict[int, str] = {}

    def of(self, name: str, dim: int, size: int) -> torch.Tensor:
        """Labels of dimension ``dim`` of the tensor ``name``: int64 of shape (size,), the same at every call."""
        site = (name, dim)
        if site not in self.sites:
            self.sites[site] = self.fresh(size)
        return self.sites[site]

    def fresh(self, size: int) -> torch.Tensor:
        """New labels that belong to no parameter, int64 of shape (size,)."""
        labels = torch.arange(self._next, self._next + size)
        self._next += size
        return labels

    def couple(self, left: torch.Tensor, right: torch.Tensor, reason: str) -> None:
        """Elements at the same place live and die together.  Coupling with label 0 pins, for ``reason``."""
        pairs = np.stack([left.reshape(-1).numpy(), right.reshape(-1).numpy()], 1)
        pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
        zero = (pairs == 0).any(1)
        for label in pairs[zero].max(1).tolist():
            self._reasons.setdefault(label, reason)  # the first reason is the one nearest to the cause
        if not zero.all():
            self._pairs.append(pairs[~zero])

    def pin(self, labels: torch.Tensor, reason: str) -> None:
        """Make all units of ``labels`` unprunable."""
        self.couple(labels, torch.zeros_like(labels), reason)

    def components(self) -> Components:
        """Connected components as coupled so far; O(labels + couplings)."""
        pinned = np.fromiter(self._reasons, dtype=np.int64, count=len(self._reasons))
        edges = np.concatenate([np.stack([np.zeros_like(pinned), pinned], 1), *self._pairs]).astype(np.int64)
        matrix = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(self._next, self._next)).tocsr()
        _, number = connected_components(matrix, directed=False)
        number = np.where(number == number[0], -1, number).astype(np.int64)
        _, toward = breadth_first_order(matrix, 0, directed=False)
        return Components(number, toward.astype(np.int64), dict(self._reasons))
