"""Linear bounds (CROWN) of activations in the gates and the input: tighter than intervals, valid for every mask."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from .network import Affine, Gate, MaxPool, PiecewiseLinear, Relu
from .ranges import Ranges, gate_limits, through_node

__all__ = ["output_range", "value_ranges"]

#: Numbers that one backward pass may hold at once (8 bytes each).
_NUMBERS = 1 << 23

Limits = tuple[np.ndarray, np.ndarray]


def value_ranges(
    network: PiecewiseLinear, lower: np.ndarray, upper: np.ndarray, keep: np.ndarray | None = None,
    remove: np.ndarray | None = None,
) -> Ranges:
    """Ranges of all values, by intervals and by linear bounds in gates and input, whichever is tighter.

    The linear bounds are CROWN's (1811.00866) for the network as a function of its *gates*, our form: a ReLU lies
    below the chord and above a line through 0; a gated value ``s x`` with x in [l, u] and s in [0, 1] has the four
    planes of its convex envelope, ``max(l s, x + u (s - 1)) <= s x <= min(u s, x + l (s - 1))``.  Substituting them
    from a value back to the input leaves a linear function of input and gates, whose largest value over the box is
    the bound.  Two passes, one with the planes in s and one with those in x, and the better of both.

    Valid for the same inputs and gates as :func:`~mipprune.bounds.ranges.interval_ranges`, up to float64 rounding.
    O(N times the square of the widths) for each value that feeds a ReLU, a pooling or a gate.

    Args:
        lower, upper: float64 (N, n_inputs), the box of each sample; equal for data.
        keep, remove: bool (n_units,), gates that are fixed.
    """
    low = np.asarray(lower, dtype=np.float64).reshape(len(lower), network.n_inputs)
    high = np.asarray(upper, dtype=np.float64).reshape(low.shape)
    limits = gate_limits(network, keep, remove)
    lows, highs = [low], [high]
    readers = network.readers()
    for value, node in enumerate(network.nodes, start=1):
        low, high = through_node(node, lows, highs, limits)
        last = value == len(network.nodes)
        bends = any(not isinstance(network.node_of(r), Affine) for r in readers[value])
        if isinstance(node, Affine) and (bends or last) and (low < high).any():
            rows = np.eye(node.size)
            low = np.maximum(low, -_upper(network, lows, highs, limits, value, -rows))
            high = np.minimum(high, _upper(network, lows, highs, limits, value, rows))
        lows.append(low)
        highs.append(high)
    return Ranges(tuple(lows), tuple(highs))


def output_range(
    network: PiecewiseLinear, ranges: Ranges, rows: np.ndarray, keep: np.ndarray | None = None,
    remove: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds (N, m) of ``rows @ output``, for ``rows`` (m, outputs) that all samples share.

    Args:
        network: of :func:`piecewise_linear`.
        ranges: of its values, as :func:`interval_ranges` bounds them.
        rows: float64 (m, outputs).
        keep, remove: those of ``ranges``.
    """
    limits = gate_limits(network, keep, remove)
    rows = np.asarray(rows, dtype=np.float64)
    lows, highs = list(ranges.lower), list(ranges.upper)
    value = len(network.nodes)
    positive, negative = np.maximum(rows, 0.0).T, np.minimum(rows, 0.0).T
    least = lows[-1] @ positive + highs[-1] @ negative
    most = highs[-1] @ positive + lows[-1] @ negative
    return (np.maximum(least, -_upper(network, lows, highs, limits, value, -rows)),
            np.minimum(most, _upper(network, lows, highs, limits, value, rows)))


def _upper(
    network: PiecewiseLinear, lows: list[np.ndarray], highs: list[np.ndarray], limits: Limits, value: int,
    rows: np.ndarray,
) -> np.ndarray:
    """Upper bounds (N, m) of ``rows @ value``, a few samples and rows at a time."""
    widest = max(network.sizes[: value + 1])
    m = max(1, min(len(rows), _NUMBERS // widest))
    n = max(1, _NUMBERS // (widest * m))
    out = np.empty((len(lows[0]), len(rows)))
    for k in range(0, len(out), n):
        here_low, here_high = [x[k : k + n] for x in lows], [x[k : k + n] for x in highs]
        for i in range(0, len(rows), m):
            passes = [
                _back_substituted(network, here_low, here_high, limits, value, rows[i : i + m], in_gates)
                for in_gates in (True, False)
            ]
            out[k : k + n, i : i + m] = np.minimum(*passes)
    return out


def _back_substituted(
    network: PiecewiseLinear, lows: list[np.ndarray], highs: list[np.ndarray], limits: Limits, value: int,
    rows: np.ndarray, in_gates: bool,
) -> np.ndarray:
    """Upper bounds (N, m) of ``rows @ value`` by replacing every operation by linear bounds, back to the input."""
    n, m = len(lows[0]), len(rows)
    weights: dict[int, np.ndarray] = {value: np.repeat(rows[None], n, axis=0)}
    total = np.zeros((n, m))
    gates = np.zeros((n, m, network.n_units + 1))
    for number in range(value, 0, -1):
        weight = weights.pop(number, None)
        if weight is None:
            continue
        node = network.node_of(number)
        if isinstance(node, Affine):
            total += weight @ node.bias
            flat = weight.reshape(n * m, -1)
            parts = [(s, (matrix.T @ flat.T).T.reshape(n, m, -1)) for s, matrix in zip(node.sources, node.matrices)]
        else:
            low, high = lows[node.source], highs[node.source]
            if isinstance(node, Relu):
                part, constant = _relu(weight, low, high)
            elif isinstance(node, Gate):
                part, constant, slope = _gate(weight, low, high, limits, node, in_gates)
                gates += _scattered(slope.reshape(n * m, -1), node.units, network.n_units + 1).reshape(gates.shape)
            else:
                part, constant = _max_pool(weight, low, high, node)
            total += constant
            parts = [(node.source, part)]
        for source, part in parts:
            weights[source] = weights[source] + part if source in weights else part
    if 0 in weights:
        w = weights[0]
        total += np.einsum("nms,ns->nm", np.maximum(w, 0), highs[0])
        total += np.einsum("nms,ns->nm", np.minimum(w, 0), lows[0])
    least, most = limits
    return np.asarray(total + np.maximum(gates * least, gates * most).sum(-1))


def _relu(weight: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``weight @ relu(x) <= part @ x + constant`` for x in [low, high]."""
    unstable = (low < 0) & (high > 0)
    width = np.where(unstable, high - low, 1.0)
    chord = np.where(unstable, high / width, (low >= 0).astype(float))
    offset = np.where(unstable, -low * high / width, 0.0)
    # from below: the identity where the range is mostly positive, 0 elsewhere
    floor = np.where(unstable, (high > -low).astype(float), chord)
    positive, negative = np.maximum(weight, 0.0), np.minimum(weight, 0.0)
    part = positive * chord[:, None] + negative * floor[:, None]
    return part, np.einsum("nms,ns->nm", positive, offset)


def _gate(
    weight: np.ndarray, low: np.ndarray, high: np.ndarray, limits: Limits, node: Gate, in_gates: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``weight @ (s x) <= part @ x + constant + slope @ s``."""
    fixed = limits[0][node.units] == limits[1][node.units]
    gate = limits[0][node.units]
    positive, negative = np.maximum(weight, 0.0), np.minimum(weight, 0.0)
    if in_gates:
        slope = positive * high[:, None] + negative * low[:, None]
        part, offset = np.zeros_like(weight), np.zeros_like(low)
    else:
        constant = low == high  # a number times a gate is linear already
        slope = positive * low[:, None] + negative * high[:, None]
        part = np.where(constant[:, None], 0.0, weight)
        offset = np.where(constant, 0.0, 1.0)
    part = np.where(fixed, weight * gate, part)
    slope = np.where(fixed, 0.0, slope)
    offset = np.where(fixed, 0.0, offset)
    return part, -np.einsum("nms,ns->nm", slope, offset), slope


def _max_pool(
    weight: np.ndarray, low: np.ndarray, high: np.ndarray, node: MaxPool
) -> tuple[np.ndarray, np.ndarray]:
    """``weight @ max(x) <= part @ x + constant``.

    From above the largest upper end, from below the entry with the largest lower end; that entry itself on both sides
    where nothing else in its window can be larger.
    """
    windows = node.windows
    lows = np.concatenate([low, np.full((len(low), 1), -np.inf)], axis=1)[:, windows]
    highs = np.concatenate([high, np.full((len(high), 1), -np.inf)], axis=1)[:, windows]
    chosen = np.take_along_axis(windows[None], lows.argmax(2)[..., None], axis=2)[..., 0]  # (N, size)
    others = np.where(windows[None] == chosen[..., None], -np.inf, highs).max(2)
    certain = np.take_along_axis(low, chosen, axis=1) >= others
    positive, negative = np.maximum(weight, 0.0), np.minimum(weight, 0.0)
    through = np.where(certain[:, None], weight, negative)
    part = np.stack([_scattered(rows, entries, low.shape[1]) for rows, entries in zip(through, chosen)])
    return part, np.einsum("nms,ns->nm", positive, np.where(certain, 0.0, highs.max(2)))


def _scattered(rows: np.ndarray, columns: np.ndarray, size: int) -> np.ndarray:
    """Rows (m, k) added up at the columns (k,), -1 for the last one: (m, size)."""
    columns = np.where(columns < 0, size - 1, columns)
    select = sp.csr_array((np.ones(len(columns)), (columns, np.arange(len(columns)))), shape=(size, len(columns)))
    return np.asarray((select @ rows.T).T)
