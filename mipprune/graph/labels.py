"""Labels: which prunable index every element of every tensor belongs to.

Every index of every parameter dimension that units live on (an output channel of a weight, an input column of the
next one, a batch-norm scale, ...) is a *label*, an integer above 0.  During tracing every activation carries a tensor
of labels of its own shape (batch size 1); operations that only move elements move the labels along, operations that
combine elements couple labels.  Label 0 marks what is not prunable.  In the end the connected components of the
coupling graph are the units; a component that holds label 0 is pinned.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
import torch

__all__ = ["LabelSpace", "Site"]

#: A place that labels live on: (fully qualified tensor name, dimension).
Site = tuple[str, int]


class LabelSpace:
    """Hands out labels per (tensor, dimension) and collects what couples them."""

    def __init__(self) -> None:
        self.sites: dict[Site, torch.Tensor] = {}
        self.graph = nx.Graph()
        self.graph.add_node(0)
        self._next = 1

    def of(self, name: str, dim: int, size: int) -> torch.Tensor:
        """Labels of dimension ``dim`` of the tensor ``name``: int64 of shape (size,), the same at every call."""
        site = (name, dim)
        if site not in self.sites:
            labels = torch.arange(self._next, self._next + size)
            self._next += size
            self.sites[site] = labels
            self.graph.add_nodes_from(labels.tolist())
        return self.sites[site]

    def couple(self, left: torch.Tensor, right: torch.Tensor, reason: str) -> None:
        """Elements at the same place live and die together.  Coupling with label 0 pins, for ``reason``."""
        pairs = np.unique(torch.stack([left.reshape(-1), right.reshape(-1)]).numpy(), axis=1).T
        for a, b in pairs[pairs[:, 0] != pairs[:, 1]].tolist():
            if 0 in (a, b) and self.graph.has_edge(a, b):
                continue  # the first reason is the one nearest to the cause
            self.graph.add_edge(a, b, reason=reason)

    def pin(self, labels: torch.Tensor, reason: str) -> None:
        """Make all units of ``labels`` unprunable."""
        self.couple(labels, torch.zeros_like(labels), reason)

    def units(self) -> tuple[dict[int, int], dict[int, str]]:
        """Component number per unpinned label, and the reason per pinned label (reached by the shortest way)."""
        unit_of: dict[int, int] = {}
        for number, component in enumerate(nx.connected_components(self.graph)):
            if 0 not in component:
                unit_of.update(dict.fromkeys(component, number))
        reason_of: dict[int, str] = {}
        for label, parent in nx.bfs_predecessors(self.graph, 0):
            reason_of[label] = reason_of.get(parent) or self.graph.edges[parent, label]["reason"]
        return unit_of, reason_of
