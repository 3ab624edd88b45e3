"""Exact costs of a traced network, counted into polynomials of degree two in the kept units of each group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from ..costs import BilinearCost
from .labels import Site
from .values import Contraction

__all__ = ["CostCounter"]


class CostCounter:
    """Counts costs for groups of the given ``sizes`` (int64, shape (G,)).

    An *affine form* here is an int64 vector of shape (G + 1,): how often each group's kept units count, and, last, what
    counts always.
    """

    def __init__(self, sizes: np.ndarray) -> None:
        self.sizes = sizes
        self._group_of = np.repeat(np.arange(len(sizes)), sizes)

    def units(self) -> BilinearCost:
        """Every kept unit costs one."""
        total = _Polynomial(len(self.sizes))
        total.add_product(self._always(1), np.append(np.ones(len(self.sizes), dtype=np.int64), 0), 1)
        return total.build()

    def params(self, parameters: Mapping[str, torch.Tensor], sites: Mapping[Site, np.ndarray]) -> BilinearCost:
        """Elements of all parameters; at most two dimensions of one are prunable."""
        total = _Polynomial(len(self.sizes))
        for name, tensor in parameters.items():
            prunable = [d for d in range(tensor.ndim) if (name, d) in sites]
            rest = [size for d, size in enumerate(tensor.shape) if d not in prunable]
            forms = [self._kept(sites[name, d]) for d in prunable] + [self._always(1)] * (2 - len(prunable))
            total.add_product(forms[0], forms[1], int(np.prod(rest, dtype=np.int64)))
        return total.build()

    def macs(self, contractions: Iterable[Contraction], units: Callable[[torch.Tensor], np.ndarray]) -> BilinearCost:
        """Multiply-adds per sample; ``units`` turns labels into unit numbers."""
        total = _Polynomial(len(self.sizes))
        for contraction in contractions:
            inputs = self._always(1) if contraction.inputs is None else self._kept(units(contraction.inputs))
            total.add_product(inputs, self._kept(units(contraction.outputs)), contraction.factor)
        return total.build()

    def _always(self, value: int) -> np.ndarray:
        form = np.zeros(len(self.sizes) + 1, dtype=np.int64)
        form[-1] = value
        return form

    def _kept(self, units: np.ndarray) -> np.ndarray:
        """Kept entries of a dimension; every unit of a group appears equally often in it."""
        form = self._always(int((units < 0).sum()))
        form[:-1] = np.bincount(self._group_of[units[units >= 0]], minlength=len(self.sizes)) // self.sizes
        return form


class _Polynomial:
    """A sum of products of affine forms."""

    def __init__(self, n_groups: int) -> None:
        self.constant = 0
        self.linear = np.zeros(n_groups, dtype=np.int64)
        self.pairs: dict[tuple[int, int], int] = {}

    def add_product(self, a: np.ndarray, b: np.ndarray, factor: int) -> None:
        """Add ``factor * a * b``."""
        self.constant += factor * int(a[-1]) * int(b[-1])
        self.linear += factor * (a[-1] * b[:-1] + b[-1] * a[:-1])
        for g in np.flatnonzero(a[:-1]):
            for h in np.flatnonzero(b[:-1]):
                key = (int(min(g, h)), int(max(g, h)))
                self.pairs[key] = self.pairs.get(key, 0) + factor * int(a[g]) * int(b[h])

    def build(self) -> BilinearCost:
        keys = sorted(self.pairs)
        left, right = (np.array([k[side] for k in keys], dtype=np.int64) for side in (0, 1))
        coefficient = np.array([self.pairs[k] for k in keys], dtype=np.int64)
        return BilinearCost(self.constant, self.linear, left, right, coefficient)
