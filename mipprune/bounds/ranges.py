"""Ranges of every activation of a network, by interval arithmetic, over an input box and over every mask."""

from __future__ import annotations

import dataclasses

import numpy as np

from .network import Affine, Gate, Node, PiecewiseLinear, Relu, window_max

__all__ = ["Ranges", "gate_limits", "interval_ranges", "through_node"]


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Bounds of every value of a :class:`PiecewiseLinear`, sample by sample.

    Attributes:
        lower, upper: per value float64 (N, size).
    """

    lower: tuple[np.ndarray, ...]
    upper: tuple[np.ndarray, ...]


def gate_limits(
    network: PiecewiseLinear, keep: np.ndarray | None = None, remove: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest gate of every unit, (n_units + 1,) each; the last entry is the gate that is always on."""
    low, high = np.zeros(network.n_units + 1), np.ones(network.n_units + 1)
    low[-1] = 1.0
    if keep is not None:
        low[:-1][np.asarray(keep, dtype=bool)] = 1.0
    if remove is not None:
        high[:-1][np.asarray(remove, dtype=bool)] = 0.0
    return low, high


def interval_ranges(
    network: PiecewiseLinear, lower: np.ndarray, upper: np.ndarray, keep: np.ndarray | None = None,
    remove: np.ndarray | None = None,
) -> Ranges:
    """Interval arithmetic, operation by operation: O(N times the number of weights).

    Valid for every input in ``[lower, upper]`` and every gate vector in ``[0, 1]^n`` that is 1 on ``keep`` and 0 on
    ``remove``, in exact arithmetic; float64 rounding (about 1e-15 of the terms' size) isn't added.

    Args:
        network: of :func:`piecewise_linear`.
        lower, upper: float64 (N, n_inputs), the box of each sample; equal for data.
        keep, remove: bool (n_units,), gates that are fixed; none by default.
    """
    low = np.asarray(lower, dtype=np.float64).reshape(len(lower), network.n_inputs)
    high = np.asarray(upper, dtype=np.float64).reshape(low.shape)
    limits = gate_limits(network, keep, remove)
    lows, highs = [low], [high]
    for node in network.nodes:
        low, high = through_node(node, lows, highs, limits)
        lows.append(low)
        highs.append(high)
    return Ranges(tuple(lows), tuple(highs))


def through_node(
    node: Node, lows: list[np.ndarray], highs: list[np.ndarray], limits: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Range of an operation's result from the ranges of the earlier values."""
    if isinstance(node, Affine):
        low = np.repeat(node.bias[None], len(lows[0]), axis=0)
        high = low.copy()
        for source, matrix in zip(node.sources, node.matrices):
            positive, negative = matrix.maximum(0), matrix.minimum(0)
            low += (positive @ lows[source].T + negative @ highs[source].T).T
            high += (positive @ highs[source].T + negative @ lows[source].T).T
        return low, high
    low, high = lows[node.source], highs[node.source]
    if isinstance(node, Relu):
        return np.maximum(low, 0.0), np.maximum(high, 0.0)
    if isinstance(node, Gate):
        least, most = (limit[node.units] for limit in limits)
        corners = [gate * end for gate in (least, most) for end in (low, high)]
        return np.minimum.reduce(corners), np.maximum.reduce(corners)
    return window_max(low, node.windows), window_max(high, node.windows)
