"""The masked ReLU network as rows of a mixed-integer program, one copy per sample, exact for every binary mask."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp

from ..bounds import Affine, Gate, MaxPool, PiecewiseLinear, Ranges, Relu
from ..solver import MipBuilder
from .expression import Entry, Expression

__all__ = ["MaskedRows"]


@dataclasses.dataclass(frozen=True)
class _Column:
    """How to fill a column at a given mask: ``kind`` of entry ``entry`` of value ``value`` for sample ``sample``."""

    column: int
    kind: str  # "value", or "active": the ReLU and its unit are on
    sample: int
    value: int
    entry: int
    unit: int = -1


class MaskedRows:
    """Columns and rows that make the network's output for each sample a function of the unit gates.

    With gates s, a unit's pre-activation a in [L, U] for every mask, and one binary z per sample and unstable ReLU
    (the big-M rows of 1711.07356 with a gate added; our form)::

        h <= U z,   z <= s,   h >= a - (1 - s) U,   h <= a - (1 - z) L,   h >= 0.

    s = 1 leaves the usual exact rows of ``h = relu(a)``; s = 0 forces z = 0 and h = 0, and the other two rows hold for
    every a in [L, U].  So for binary gates the logits are *equal* to the masked network's.  Where L >= 0 no binary is
    needed, where U <= 0 nothing is.  What doesn't depend on a gate (the first pruned layer: its inputs are data) is
    computed, not modelled: ``h = relu(a) s`` is then linear in s.  Max pooling has one binary per entry that can win.
    A gate on anything else than a ReLU is a product with the same four rows as the stable ReLU.

    Args:
        builder: gets the columns and rows.
        network: see :func:`mipprune.bounds.piecewise_linear`.
        ranges: of all values, valid for every mask that respects ``keep``.
        x: float64 (N, n_inputs).
        keep: bool (n_units,), gates that are 1.
    """

    def __init__(
        self, builder: MipBuilder, network: PiecewiseLinear, ranges: Ranges, x: np.ndarray, keep: np.ndarray
    ) -> None:
        self.builder, self.network, self.ranges = builder, network, ranges
        self.x = x
        self.keep = keep
        self.gates = self._add_gates()
        self._columns: list[_Column] = []
        self._windows: dict[tuple[int, int, int], dict[int, int]] = {}  # sample, value, entry -> place -> binary
        self._readers = network.readers()
        self.outputs = [self._sample(k) for k in range(len(x))]

    def point(self, kept: np.ndarray, n_columns: int) -> np.ndarray:
        """The program's solution that stands for a mask; columns that others added stay 0."""
        point = np.zeros(n_columns)
        point[self.gates] = kept
        values = self.network.values(self.x, kept)
        for c in self._columns:
            here = values[c.value][c.sample]
            if c.kind == "value":
                point[c.column] = here[c.entry]
            else:
                point[c.column] = here[c.entry] > 0 and (c.unit < 0 or kept[c.unit])
        for (k, value, entry), rivals in self._windows.items():
            node = self.network.node_of(value)
            assert isinstance(node, MaxPool)
            inputs = values[node.source][k][node.windows[entry]]
            point[rivals[max(rivals, key=lambda place: inputs[place])]] = 1.0
        return point

    def _add_gates(self) -> np.ndarray:
        return self.builder.add_columns(len(self.keep), cost=1.0, lower=self.keep.astype(float), integer=True)

    # -- one sample ------------------------------------------------------------------------------------------------

    def _sample(self, k: int) -> Expression:
        found = [Expression.fixed(self.x[k])]
        for value, node in enumerate(self.network.nodes, start=1):
            if isinstance(node, Affine):
                width = max(found[s].matrix.shape[1] for s in node.sources)
                matrix = sum(m @ found[s].widened(width) for s, m in zip(node.sources, node.matrices))
                constant = sum((m @ found[s].constant for s, m in zip(node.sources, node.matrices)), node.bias)
                found.append(Expression(sp.csr_array(matrix), constant))
                continue
            if isinstance(node, Relu):
                if self._read_by_gate_alone(value):
                    found.append(found[node.source])  # the gate that reads it makes its columns
                    continue
                entries = [self._relu(found[node.source].entry(i), k, node.source, i, -1, value)
                           for i in range(node.size)]
            elif isinstance(node, Gate):
                inner = self.network.node_of(node.source) if node.source else None
                if isinstance(inner, Relu) and self._read_by_gate_alone(node.source):
                    source = found[node.source]  # still the pre-activation
                    entries = [self._relu(source.entry(i), k, inner.source, i, int(node.units[i]), value)
                               for i in range(node.size)]
                else:
                    source = found[node.source]
                    entries = [self._product(source.entry(i), k, node.source, i, int(node.units[i]), value)
                               for i in range(node.size)]
            else:
                entries = [self._largest(found[node.source], node, k, i, value) for i in range(node.size)]
            found.append(Expression.stacked(entries, self.builder.n_columns))
        return found[-1]

    def _read_by_gate_alone(self, value: int) -> bool:
        readers = self._readers[value]
        return len(readers) == 1 and isinstance(self.network.node_of(readers[0]), Gate)

    def _range(self, k: int, value: int, entry: int) -> tuple[float, float]:
        return float(self.ranges.lower[value][k, entry]), float(self.ranges.upper[value][k, entry])

    def _add(
        self, kind: str, k: int, value: int, entry: int, unit: int = -1, upper: float = 1.0, lower: float = 0.0
    ) -> int:
        column = int(self.builder.add_columns(1, lower=lower, upper=upper, integer=kind != "value")[0])
        self._columns.append(_Column(column, kind, k, value, entry, unit))
        return column

    def _relu(self, a: Entry, k: int, source: int, i: int, unit: int, value: int) -> Entry:
        """``gate * relu(a)``, the gate always on for ``unit`` -1."""
        low, high = self._range(k, source, i)
        if a.is_constant:
            return self._product(Entry.of(max(a.constant, 0.0)), k, source, i, unit, value)
        if high <= 0:
            return Entry.of(0.0)
        if low >= 0:
            return self._product(a, k, source, i, unit, value)
        builder = self.builder
        on = unit < 0 or bool(self.keep[unit])
        h = self._add("value", k, value, i, upper=high)
        z = self._add("active", k, source, i, -1 if on else unit)
        builder.add_row(np.array([h, z]), np.array([1.0, -high]), upper=0.0)
        a.add_row(builder, [h, z], [1.0, -low], upper=-low)
        if on:
            a.add_row(builder, [h], [1.0], lower=0.0)
        else:
            s = self.gates[unit]
            builder.add_row(np.array([z, s]), np.array([1.0, -1.0]), upper=0.0)
            a.add_row(builder, [h, s], [1.0, -high], lower=-high)
        return Entry.of(0.0, [h], [1.0])

    def _product(self, x: Entry, k: int, source: int, i: int, unit: int, value: int) -> Entry:
        """``gate * x`` for x in its range, by the four planes of the product's convex envelope."""
        if unit < 0 or self.keep[unit]:
            return x
        s = self.gates[unit]
        if x.is_constant:
            return Entry.of(0.0, [s], [x.constant]) if x.constant else x
        low, high = self._range(k, source, i)
        y = self._add("value", k, value, i, lower=min(low, 0.0), upper=max(high, 0.0))
        self.builder.add_row(np.array([y, s]), np.array([1.0, -high]), upper=0.0)
        self.builder.add_row(np.array([y, s]), np.array([1.0, -low]), lower=0.0)
        x.add_row(self.builder, [y, s], [1.0, -high], lower=-high)
        x.add_row(self.builder, [y, s], [1.0, -low], upper=-low)
        return Entry.of(0.0, [y], [1.0])

    def _largest(self, source: Expression, node: MaxPool, k: int, i: int, value: int) -> Entry:
        """``max`` over a window; entries that can't win for any mask are left out."""
        places = [place for place, entry in enumerate(node.windows[i]) if entry >= 0]
        ends = {place: self._range(k, node.source, int(node.windows[i][place])) for place in places}
        floor = max(low for low, _ in ends.values())
        ceiling = max(high for _, high in ends.values())
        first = max(places, key=lambda place: ends[place])
        rivals = [place for place in places if place == first or ends[place][1] > floor]
        entries = {place: source.entry(int(node.windows[i][place])) for place in rivals}
        if len(rivals) == 1:
            return entries[first]
        m = self._add("value", k, value, i, lower=floor, upper=ceiling)
        wins = {place: int(self.builder.add_columns(1, integer=True)[0]) for place in rivals}
        self._windows[k, value, i] = wins
        for place in rivals:
            slack = ceiling - ends[place][0]
            entries[place].add_row(self.builder, [m], [1.0], lower=0.0)
            entries[place].add_row(self.builder, [m, wins[place]], [1.0, slack], upper=slack)
        self.builder.add_row(np.array([*wins.values()]), 1.0, lower=1.0, upper=1.0)
        return Entry.of(0.0, [m], [1.0])
