"""How far removed neurons can move a network's output: bounds for every mask, and for random masks (T1, T2, T5, T7)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.sparse as sp
from torch import nn

from ..errors import BudgetError, DataError
from ..game import as_data
from ..game.data import read_data
from ..graph import UnitGraph, trace
from ..records import Record, frozen_array
from .extract import piecewise_linear
from .network import Affine, Gate, MaxPool, PiecewiseLinear, Relu
from .norms import EXACT_LIMIT, node_norms
from .tails import sum_bound

__all__ = ["GapBound", "NeuronGap", "backward_gains", "gap_of_values", "keep_probabilities", "map_into",
           "network_and_data", "neuron_gap", "unit_columns"]


@dataclasses.dataclass(frozen=True, eq=False)
class GapBound(Record):
    """An upper bound on ``|f_pruned(x) - f(x)|`` (Euclidean, in output units) for N samples.

    Attributes:
        theorem: "T1" to "T6", as in docs/bounds.md, or "sampled".
        values: float64 (N,).
        rms: bound on the root mean square gap of the N samples.
        terms: what each layer adds to the mean of ``values`` (empty where a tail is added over all layers).
        delta: ``None`` if it holds for certain; else each value and the rms hold with probability 1 - delta each.
        worst: bound on the largest of the N gaps (with probability 1 - delta for all N samples at once).
    """

    theorem: str
    values: np.ndarray
    rms: float
    worst: float
    terms: dict[str, float]
    delta: float | None

    def loss_increase(self) -> np.ndarray:
        """T7: most by which each sample's cross-entropy grows, nats: the gradient of the cross-entropy in the logits
        is ``softmax - onehot``, never longer than the root of 2.
        """
        return math.sqrt(2.0) * self.values

    def prediction_kept(self, margins: np.ndarray) -> np.ndarray:
        """T7: where the predicted class stays for sure, given the dense network's ``margins`` (N,), first minus second
        logit: ``(e_i - e_j) . d <= sqrt 2 |d|``.
        """
        return np.asarray(margins, dtype=np.float64) > math.sqrt(2.0) * self.values


@dataclasses.dataclass(frozen=True, eq=False)
class NeuronGap(Record):
    """What removing neurons can do to the output: linear (T1) and quadratic (T2) in the removal vector z.

    Attributes:
        coefficients: float64 (N, n), at least 0: ``gap_k <= coefficients[k] @ z`` (T1).
        factors: T2: arrays (r, n); the root mean square gap is at most ``sum_l |factors[l] @ z|``.  Empty on a ball.
        margins: float64 (N,), first minus second logit of the dense network; empty on a ball.
        groups: unit group of every layer name, for :attr:`GapBound.terms`: name -> (first unit, size).
    """

    coefficients: np.ndarray
    factors: tuple[np.ndarray, ...]
    margins: np.ndarray
    groups: dict[str, tuple[int, int]]

    @property
    def rms_coefficients(self) -> np.ndarray:
        """T1 over the data: root mean squares of the columns (Minkowski), a linear bound on the rms gap: (n,)."""
        return np.sqrt((self.coefficients**2).mean(0))

    @property
    def worst_coefficients(self) -> np.ndarray:
        """Largest entries of the columns: one row that bounds the gap of all samples, (n,)."""
        return np.asarray(self.coefficients.max(0))

    def deterministic(self, kept: np.ndarray) -> GapBound:
        """T1 for the mask ``kept`` (bool (n,)); ``rms`` is the smaller of T1's and T2's."""
        z = self._removed(kept)
        values = self.coefficients @ z
        rms = math.sqrt(float((values**2).mean()))
        if self.factors:
            rms = min(rms, float(self.quadratic(np.asarray(kept, dtype=bool)[None])[0]))
        mean = self.coefficients.mean(0) * z
        terms = {name: float(mean[a : a + n].sum()) for name, (a, n) in self.groups.items()}
        return GapBound("T1", frozen_array(values), rms, float(values.max()), terms, None)

    def quadratic(self, kept: np.ndarray) -> np.ndarray:
        """T2: bounds (M,) on the rms gaps of the masks ``kept``, bool (M, n).

        Raises:
            DataError: made without samples (on a ball), so that there is no mean over them.
        """
        if not len(self.margins):
            raise DataError("a gap over a ball has no data to average over: use deterministic()")
        z = (~np.asarray(kept, dtype=bool)).astype(np.float64)
        return np.asarray(sum((np.linalg.norm(z @ f.T, axis=1) for f in self.factors), np.zeros(len(z))))

    def random(self, keep: float | np.ndarray, delta: float, tail: str = "best") -> GapBound:
        """T5 from T1's rows: units stay independently with probability ``keep`` (one number or (n,)), by
        :func:`sum_bound`.  :func:`~mipprune.bounds.random_pruning` knows the network, and has another bound beside it.
        """
        q = 1.0 - keep_probabilities(keep, self.coefficients.shape[1])
        values = np.array([sum_bound(c, q, delta, tail) for c in self.coefficients])
        rms = sum_bound(self.rms_coefficients, q, delta, tail)
        worst = sum_bound(self.worst_coefficients, q, delta, tail)
        return GapBound("T5", frozen_array(values), rms, worst, {}, delta)

    def _removed(self, kept: np.ndarray) -> np.ndarray:
        kept = np.asarray(kept, dtype=bool)
        if kept.shape != (self.coefficients.shape[1],):
            raise DataError(f"kept: expected a mask of {self.coefficients.shape[1]} units, got shape {kept.shape}")
        return (~kept).astype(np.float64)


def keep_probabilities(keep: float | np.ndarray, n: int) -> np.ndarray:
    """``keep`` for every one of n units: float64 (n,)."""
    try:
        given = np.asarray(keep, dtype=np.float64)
    except (TypeError, ValueError):
        raise BudgetError(f"keep: expected probabilities from 0 to 1, got {keep!r}") from None
    if given.shape not in ((), (n,)):
        raise BudgetError(f"keep: expected one probability or {n}, one per unit, got shape {given.shape}")
    if not ((given >= 0) & (given <= 1)).all():
        raise BudgetError(f"keep: expected probabilities from 0 to 1, got {keep}")
    return np.broadcast_to(given, (n,))


def network_and_data(model: nn.Module | UnitGraph, data: Any) -> tuple[UnitGraph, PiecewiseLinear, np.ndarray]:
    """The traced network, its operations with layers that can be told apart, and the inputs as float64 (N, inputs)."""
    if not isinstance(model, UnitGraph):
        samples = read_data(data, model)
        if len(samples) == 0:
            raise DataError("calibration data is empty")
        model = trace(model, tuple(x[:1] for x in samples.inputs))
    samples = as_data(data, model)
    network = piecewise_linear(model, joined=False)
    return model, network, samples.inputs[0].double().reshape(len(samples), -1).cpu().numpy()


def backward_gains(network: PiecewiseLinear, exact_limit: int = EXACT_LIMIT) -> tuple[list[float], list[sp.csr_array]]:
    """From every value to the output: Lipschitz constants G, and absolute path sums A (outputs, size).

    ``G_s = sum over readers t of |W_ts| G_t`` over the graph (a chain multiplies norms, a residual block gives 1 +
    the product along its branch); ``A_s = sum_t A_t |W_ts|``, with a max pooling as the sum over its windows.
    """
    gains = [0.0] * len(network.sizes)
    paths = [sp.csr_array((network.sizes[-1], size)) for size in network.sizes]
    gains[-1], paths[-1] = 1.0, sp.csr_array(sp.eye_array(network.sizes[-1]))
    for value in range(len(network.nodes), 0, -1):
        node = network.node_of(value)
        for place, (source, norm) in enumerate(zip(node.sources, node_norms(node, exact_limit), strict=True)):
            gains[source] += norm * gains[value]
            if isinstance(node, Affine):
                paths[source] = sp.csr_array(paths[source] + paths[value] @ abs(node.matrices[place]))
            elif isinstance(node, MaxPool):
                paths[source] = sp.csr_array(paths[source] + paths[value] @ _incidence(node, network.sizes[source]))
            else:
                paths[source] = sp.csr_array(paths[source] + paths[value])
    return gains, paths


def _incidence(node: MaxPool, size: int) -> sp.csr_array:
    rows, places = np.nonzero(node.windows >= 0)
    return sp.csr_array((np.ones(len(rows)), (rows, node.windows[rows, places])), shape=(node.size, size))


def neuron_gap(model: nn.Module | UnitGraph, data: Any) -> NeuronGap:
    """T1 and T2 for the network on ``data`` (``(inputs, targets)`` or anything :func:`mipprune.prune` takes).

    Our derivation, in the spirit of 2105.10065 (which is about weights).  Let d be the change of a value by a mask.  A
    gate gives ``d' = (1 - z) o d - z o h`` with h the dense activation.  ReLU and max pooling change by ``J d`` with
    matrices J that depend on the data: ``0 <= J <= 1`` diagonal, or rows that are averages within windows (the mean
    value theorem for piecewise-linear functions).  So the output changes by a sum over gates of ``- J..W J W (z o h)``.
    T1: the share of unit i is bounded by the smaller of ``G |W h_i|`` (product of norms) and ``|A |W h_i||`` (absolute
    path sums); h_i are the unit's entries, W the map that reads the gate.  T2: by Minkowski over gates, ``rms gap <=
    sum G sqrt(z'Qz)``, ``Q_ij = E (W h_i).(W h_j)``; exact for one hidden layer, where nothing comes behind W.

    O(N x weights x outputs).  Holds in exact arithmetic; float64 rounding (1e-12 relative) isn't added but to norms.

    Raises:
        TraceError: an operation that is neither affine nor ReLU nor max pooling.
        DataError: data that don't fit.
    """
    graph, network, x = network_and_data(model, data)
    return gap_of_values(graph, network, network.values(x), *backward_gains(network))


def gap_of_values(
    graph: UnitGraph, network: PiecewiseLinear, values: list[np.ndarray], gains: list[float], paths: list[sp.csr_array]
) -> NeuronGap:
    """:func:`neuron_gap` from the dense network's values and :func:`backward_gains`."""
    readers, n_samples = network.readers(), len(values[0])
    coefficients = np.zeros((n_samples, network.n_units))
    factors = []
    for value, node in enumerate(network.nodes, start=1):
        if not isinstance(node, Gate):
            continue
        h = values[node.source]
        units, columns = unit_columns(node)
        spectral, componentwise = np.zeros((2, n_samples, len(units)))
        outputs = np.zeros((network.sizes[-1], n_samples, len(units)))
        for reader in readers[value]:
            matrix = map_into(network, reader, value)
            step = gains[reader] if isinstance(network.node_of(reader), Affine) else gains[value]
            path = paths[reader] if isinstance(network.node_of(reader), Affine) else paths[value]
            for i, entries in enumerate(columns):
                y = matrix[:, entries] @ h[:, entries].T  # (size of the reader, N)
                spectral[:, i] += step * np.linalg.norm(y, axis=0)
                outputs[:, :, i] += path @ np.abs(y)
            factors.append(step * _factor(matrix, h, node.units, network.n_units))
        componentwise = np.linalg.norm(outputs, axis=0)
        coefficients[:, units] += np.minimum(spectral, componentwise)
    top = np.sort(values[-1], axis=1)
    margins = top[:, -1] - top[:, -2] if top.shape[1] > 1 else np.full(n_samples, np.inf)
    groups = {g.name: (g.offset, g.size) for g in graph.groups}
    return NeuronGap(frozen_array(coefficients), tuple(frozen_array(f) for f in factors), frozen_array(margins), groups)


def map_into(network: PiecewiseLinear, reader: int, value: int) -> sp.csc_array:
    """The matrix by which an affine ``reader`` reads ``value``; the identity for any other operation."""
    node = network.node_of(reader)
    if isinstance(node, Affine):
        return sp.csc_array(node.matrices[node.sources.index(value)])
    assert isinstance(node, (Relu, MaxPool, Gate))
    return sp.csc_array(sp.eye_array(network.sizes[value]))


def unit_columns(node: Gate) -> tuple[np.ndarray, list[np.ndarray]]:
    """Units of a gate, and which entries each of them has."""
    units = np.unique(node.units[node.units >= 0])
    return units, [np.flatnonzero(node.units == unit) for unit in units]


def _factor(matrix: sp.csc_array, h: np.ndarray, units: np.ndarray, n_units: int) -> np.ndarray:
    """F (r, n) with ``F'F = Q``, ``Q_ij = E (W h_i).(W h_j)``: eigenvalues that rounding made negative become 0."""
    gated = np.flatnonzero(units >= 0)
    part = sp.csr_array(matrix[:, gated])
    inner = sp.csr_array(part.T @ part)
    own, place = np.unique(units[gated], return_inverse=True)
    gather = sp.csr_array((np.ones(len(gated)), (place, np.arange(len(gated)))), shape=(len(own), len(gated)))
    q = np.zeros((len(own), len(own)))
    step = max(1, (1 << 22) // max(1, len(gated)))
    for start in range(0, len(gated), step):  # rows of E hh', never all at once
        rows = slice(start, start + step)
        moments = h[:, gated[rows]].T @ h[:, gated] / len(h)
        q += gather[:, rows] @ (inner[rows].multiply(moments) @ gather.T).toarray()
    values, vectors = np.linalg.eigh((q + q.T) / 2)
    # eigenvalues within rounding of 0 are raised to it, so that the bound stays one
    lifted = np.maximum(values, 0.0) + 1e-14 * max(float(values[-1]), 0.0)
    factor = np.zeros((len(own), n_units))
    factor[:, own] = np.sqrt(lifted)[:, None] * vectors.T
    return factor[::-1]
