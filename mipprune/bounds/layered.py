"""Random masks, layer after layer: what a layer's mask does to an input that doesn't depend on it (T5, T6)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp

from .network import Affine, Gate, Layer, PiecewiseLinear
from .norms import node_norms
from .tails import bernstein

__all__ = ["layered_gap", "layered_neuron_gap"]

#: Spectral norms of one sample's contributions are computed up to this size, otherwise Frobenius norms.
_EXACT = 600
#: Relative allowance for rounding of singular values and eigenvalues.
_ROUNDING = 1e-10


def layered_gap(
    network: PiecewiseLinear, layers: Mapping[int, Layer], weights: Mapping[str, np.ndarray],
    lengths: Mapping[int, np.ndarray], keep: float, log_term: float,
) -> np.ndarray:
    """T6: bounds (K,) on the output's change when each weight stays with probability p = ``keep`` and is divided by it.

    Each column holds with probability 1 - (number of layers) exp(-log_term).  Our derivation.  Walk the network in the
    order of its operations and carry x, a bound on the Euclidean norm of a value's change.  Into a layer W comes ``h +
    e`` with h dense and ``|e| <= x``; out of it ``Z = |W e + D (h + e)|``, ``D = sum_w (xi_w / p - 1) w B_w`` (B_w: the
    0-1 matrix of where weight w stands).  e depends on the masks of other layers only (of those before it), so given
    those it is a constant, and :func:`_tail` applies to the independent ``xi_w`` in [0, 1]:

    * D has mean 0, and no weight stands twice in a row or column, so ``E |D g|^2 = r sum_j |W_:j|^2 g_j^2``, r = (1 -
      p) / p.  Its root is at most ``sqrt(r sum_w |w B_w h|^2) + sqrt r c x``, c the largest column norm of W.
    * Weights of different output channels move different entries, so ``xi -> D g`` has a norm of at most ``1 / p``
      times the largest ``sqrt(sum_(w in channel) |w B_w g|^2)``.  For g = e that sum is at most ``max|w|^2 k x^2``, k
      the number of weights between two channels: such a weight moves a part of that channel's e, once each.

    No norm of a pruned layer is needed, and noise adds up in squares, not along products of ``|W| + |D|``.

    Args:
        layers: value of ``network`` -> the layer that computes it; no weight in two of them, as masks would then not be
            independent of what they meet.
        weights: by name.
        lengths: value -> ``|w B_w h|^2`` of every weight in every column: float64 (n_weights, K).  A column may be a
            sample, or the mean over samples: then the bound is on the root mean square (samples stacked as one vector).

    Returns:
        float64 (K,), or (1,) where no layer is on the way.
    """
    ratio, reach = (1 - keep) / keep, max(1 / keep - 1, 1.0) if keep < 1 else 0.0
    moved: list[np.ndarray] = [np.zeros(1)]
    for value, node in enumerate(network.nodes, start=1):
        if value not in layers:
            parts = [norm * moved[s] for s, norm in zip(node.sources, node_norms(node), strict=True)]
            moved.append(np.asarray(sum(parts, np.zeros(1))))
            continue
        assert isinstance(node, Affine)
        layer, x, squares = layers[value], moved[node.sources[0]], lengths[value]
        columns = math.sqrt(float((node.matrices[0] ** 2).sum(0).max()))
        largest = float(np.abs(weights[layer.name]).max()) * float(np.abs(layer.scale).max())
        channels = squares.reshape(layer.shape[0], -1, squares.shape[1]).sum(1)
        wide = np.sqrt(channels.max(0)) + largest * math.sqrt(math.prod(layer.shape[2:])) * x
        moved.append(_tail(
            fixed=node_norms(node)[0] * x, noise=np.sqrt(ratio * squares.sum(0)) + math.sqrt(ratio) * columns * x,
            spread=wide / keep * (keep < 1), longest=reach * (np.sqrt(squares.max(0)) + largest * x),
            log_term=log_term,
        ))
    return moved[-1]


def layered_neuron_gap(
    network: PiecewiseLinear, gains: Sequence[float], values: list[np.ndarray], keep: np.ndarray, log_term: float,
    stacked: bool,
) -> np.ndarray:
    """T5: bounds (K,) on the output's change when unit i stays with probability ``keep[i]``, independently.

    Each column holds with probability 1 - exp(-log_term).  Our derivation.  As for T1 and T2, for every mask the gap is
    at most ``sum over gates of G |W (z o h)|``, h dense: a gate's factor 1 - z only shortens what comes from before.
    That is a convex function of the independent z.  With ``q = 1 - keep``, W_i h_i what unit i contributes, a term's
    mean is at most ``G sqrt(E |W (z o h)|^2) = G sqrt(|W (q o h)|^2 + sum q_i (1 - q_i) |W_i h_i|^2)``, and it is
    Lipschitz in z with G times the norm of the matrix of the ``W_i h_i``; all terms together with the root of the sum
    of squares if no unit has two gates, else with the sum.  What a convex L-Lipschitz function of independent variables
    in [0, 1] adds to its mean: see :func:`_tails`, the first.

    Args:
        gains: G of every value, see :func:`~mipprune.bounds.gap.backward_gains`.
        values: of the dense network, float64 (N, size) each.
        keep: float64 (n,).
        stacked: one bound on the root mean square of the N gaps (K = 1) instead of one for each sample (K = N).
    """
    size = 1 if stacked else len(values[0])
    mean, spreads, units = np.zeros(size), [np.zeros(size)], [np.zeros(0, dtype=np.int64)]
    for value, node in enumerate(network.nodes, start=1):
        if not isinstance(node, Gate) or not (node.units >= 0).any():
            continue
        for reader in network.readers()[value]:
            affine = network.node_of(reader)
            if isinstance(affine, Affine):
                matrix, gain = affine.matrices[affine.sources.index(value)], gains[reader]
            else:
                matrix, gain = sp.csr_array(sp.eye_array(node.size)), gains[value]
            length, spread = _contributions(matrix, node, values[node.source], keep, stacked)
            mean = mean + gain * length
            spreads.append(gain * spread)
            units.append(np.unique(node.units[node.units >= 0]))
    several = len(np.unique(np.concatenate(units))) < sum(map(len, units))
    wide = np.sum(spreads, 0) if several else np.sqrt(np.square(spreads).sum(0))
    return np.asarray(mean + wide * math.sqrt(2 * log_term))


def _contributions(
    matrix: sp.csr_array, gate: Gate, h: np.ndarray, keep: np.ndarray, stacked: bool
) -> tuple[np.ndarray, np.ndarray]:
    """``sqrt(E |W (z o h)|^2)`` and the norm of the matrix of the random units' vectors ``W_i h_i``: (K,) each."""
    units = np.unique(gate.units[gate.units >= 0])
    q = 1 - keep[units]
    random, gated = (q > 0) & (q < 1), np.flatnonzero(gate.units >= 0)
    place = np.searchsorted(units, gate.units[gated])
    gather = sp.csr_array((np.ones(len(gated)), (gated, place)), shape=(len(gate.units), len(units)))
    length, norms = np.square(matrix @ (h * (gather @ q)).T).sum(0), np.zeros(len(h))
    gram = np.zeros((random.sum(), random.sum()))
    for k, row in enumerate(h):
        vectors = (matrix.multiply(row[None]) @ gather).toarray()  # the W_i h_i of one sample: (size, n)
        length[k] += np.square(vectors).sum(0) @ (q * (1 - q))
        vectors = vectors[:, random]
        if stacked:
            gram += vectors.T @ vectors / len(h)
        elif vectors.size:  # the Frobenius norm of large matrices is an upper bound too
            norms[k] = np.linalg.norm(vectors, 2 if min(vectors.shape) <= _EXACT else "fro") * (1 + _ROUNDING)
    if stacked:
        length = length.mean(keepdims=True)
        top = np.linalg.eigvalsh(gram)[-1] if 0 < len(gram) <= 2 * _EXACT else np.trace(gram)
        norms = np.array([math.sqrt(max(float(top), 0.0)) * (1 + _ROUNDING)])
    return np.sqrt(length), norms


def _tail(
    fixed: np.ndarray, noise: np.ndarray, spread: np.ndarray, longest: np.ndarray, log_term: float
) -> np.ndarray:
    """What ``|m + S|`` exceeds with probability at most exp(-log_term): the less of :func:`_tails`, so that it is one
    event (which of them is less doesn't depend on the variables).
    """
    return np.minimum(*_tails(fixed, noise, spread, longest, log_term))


def _tails(
    fixed: np.ndarray, noise: np.ndarray, spread: np.ndarray, longest: np.ndarray, log_term: float
) -> tuple[np.ndarray, np.ndarray]:
    """Two bounds of ``|m + S|``: m fixed, S a sum of independent vectors of mean 0, each a linear function of a
    variable in [0, 1].

    * ``|m + S|`` is a convex function, L-Lipschitz in the variables; it exceeds its mean by t with probability at most
      ``exp(-t^2 / (2 L^2))`` (Boucheron, Lugosi and Massart 2013, Theorem 6.10), and ``E |m + S| <= sqrt(|m|^2 + E
      |S|^2)`` by Jensen.
    * ``|m| + |S|`` with Bernstein's inequality in Hilbert space, ``P(|S| >= t) <= 2 exp(-t^2 / (2 v + 2 b t / 3))``,
      v = ``E |S|^2`` (Pinelis 1994); less where a variable nearly always has the same value, or convolutions make L
      large.

    Args:
        fixed: at least ``|m|``; noise: at least ``sqrt(E |S|^2)``; spread: at least L; longest: at least b, the length
            of the longest term of S.  (K,) or (1,) each.
    """
    convex = np.hypot(fixed, noise) + spread * math.sqrt(2 * log_term)
    return convex, fixed + bernstein(noise**2, longest, log_term + math.log(2))
