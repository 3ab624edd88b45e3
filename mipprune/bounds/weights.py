"""How far removed weights can move a network's output: any mask, pruning by magnitude, random masks (T3, T4, T6)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from torch import nn

from ..errors import BudgetError, DataError
from ..graph import UnitGraph
from ..records import frozen_array
from .gap import GapBound, backward_gains, network_and_data
from .layered import layered_gap
from .network import Affine, Layer, PiecewiseLinear
from .norms import node_norms
from .tails import bernstein, probability

__all__ = ["WeightMasks", "magnitude_masks", "magnitude_pruning", "removed_norm", "weight_gap"]

Masks = Mapping[str, np.ndarray]


class WeightMasks:
    """A network whose single weights can be removed, on some data.

    Attributes:
        weights: name -> float64 array, the weights of linear layers and convolutions.
        graph: the traced model.
        network, values: the dense network, and its values on the data.
    """

    def __init__(self, model: nn.Module | UnitGraph, data: Any) -> None:
        self.graph, self.network, x = network_and_data(model, data)
        self.values = self.network.values(x)
        self.n_samples = len(x)
        self.layers: dict[int, Layer] = {
            value: node.layer for value, node in enumerate(self.network.nodes, start=1)
            if isinstance(node, Affine) and node.layer is not None
        }
        self.weights = {
            layer.name: self.graph.model.get_parameter(layer.name).detach().double().cpu().numpy()
            for layer in self.layers.values()
        }

    @functools.cached_property
    def dense_paths(self) -> list[sp.csr_array]:
        """Absolute path sums from every value of the dense network to the output (see :func:`backward_gains`)."""
        return backward_gains(self.network, 0)[1]

    def changed(self, weights: Mapping[str, np.ndarray]) -> PiecewiseLinear:
        """The network with other weights in its layers (all of them by name)."""
        nodes = list(self.network.nodes)
        for value, layer in self.layers.items():
            node = nodes[value - 1]
            assert isinstance(node, Affine)
            nodes[value - 1] = dataclasses.replace(node, matrices=(layer.matrix(weights[layer.name]),))
        return dataclasses.replace(self.network, nodes=tuple(nodes))

    def pruned(self, masks: Masks) -> dict[str, np.ndarray]:
        """The weights that ``masks`` (name -> bool, True = kept) leave; layers without a mask keep all.

        Raises:
            DataError: a mask of an unknown name or another shape.
        """
        for name, mask in masks.items():
            if name not in self.weights:
                raise DataError(f"no weight {name!r}; known: {', '.join(self.weights)}")
            if np.shape(mask) != self.weights[name].shape:
                raise DataError(f"{name}: expected a mask of shape {self.weights[name].shape}, got {np.shape(mask)}")
        return {name: np.where(masks[name], w, 0.0) if name in masks else w for name, w in self.weights.items()}

    def _of(self, theorem: str, parts: dict[str, np.ndarray], whole: np.ndarray, delta: float | None) -> GapBound:
        terms = {name: float(part.mean()) for name, part in parts.items()}
        rms = math.sqrt(float((whole**2).mean()))
        return GapBound(theorem, frozen_array(whole), rms, float(whole.max()), terms, delta)

    def componentwise(self, masks: Masks) -> GapBound:
        """T3, for unrescaled masks: ``|sum_l A_l ((1 - xi_l) o |W_l|) |h_l||``, A the absolute path sums of the *dense*
        weights: every output's bound is linear in the mask.

        Ours: ``W^ h^ - W h = W^ (h^ - h) - ((1 - xi) o W) h``, and ``|W^| <= |W|`` entry by entry.
        """
        removed = {n: np.abs(self.weights[n] - w) for n, w in self.pruned(masks).items()}
        paths = self.dense_paths
        total = np.zeros((self.network.sizes[-1], self.n_samples))
        parts: dict[str, np.ndarray] = {}
        for value, layer in self.layers.items():
            matrix = abs(layer.matrix(removed[layer.name]))
            own = paths[value] @ (matrix @ np.abs(self.values[self.network.node_of(value).sources[0]]).T)
            total += own
            parts[layer.name] = parts.get(layer.name, np.zeros(self.n_samples)) + np.linalg.norm(own, axis=0)
        return self._of("T3", parts, np.linalg.norm(total, axis=0), None)

    def after(self, weights: Mapping[str, np.ndarray]) -> GapBound:
        """T4, for pruned weights that are known: ``sum_l min(G^_l |D_l h_l|, |A^_l |D_l h_l||)`` with ``D = W^ - W``.

        Ours, in the spirit of 2105.10065: unroll ``d_l = W^_l d_(l-1) + D_l h_(l-1)``, h of the dense network; G^ and
        A^ are norms and absolute path sums of the *pruned* network behind layer l (:func:`backward_gains`).
        """
        gains, paths = backward_gains(self.changed(weights))
        total = np.zeros(self.n_samples)
        parts: dict[str, np.ndarray] = {}
        for value, layer in self.layers.items():
            difference = layer.matrix(weights[layer.name] - self.weights[layer.name])
            moved = difference @ self.values[self.network.node_of(value).sources[0]].T
            own = np.minimum(gains[value] * np.linalg.norm(moved, axis=0),
                             np.linalg.norm(paths[value] @ np.abs(moved), axis=0))
            total += own
            parts[layer.name] = parts.get(layer.name, np.zeros(self.n_samples)) + own
        return self._of("T4", parts, total, None)

    def rescaled(self, keep: float, delta: float) -> GapBound:
        """T6: each weight stays with probability p = ``keep``, independently, and is then divided by p (``E W^ = W``).

        Ours, in the spirit of 2105.10065: layer after layer by :func:`~mipprune.bounds.layered.layered_gap`, delta
        shared among the layers; among N times as many events for ``worst``.  O(N x weights).

        Raises:
            BudgetError: a keep outside (0, 1], a delta outside (0, 1).
        """
        keep, delta = probability("keep", keep, "keep"), probability("delta", delta)
        each = {value: self._placed(layer, self.values[self.network.node_of(value).sources[0]])
                for value, layer in self.layers.items()}
        if len(self.weights) < len(self.layers):
            return self._products(keep, delta, each)
        means = {value: lengths.mean(1, keepdims=True) for value, lengths in each.items()}
        lg = math.log(max(1, len(self.layers)) / delta)
        values, rms, largest = (
            np.broadcast_to(layered_gap(self.network, self.layers, self.weights, lengths, keep, term), size)
            for lengths, term, size in ((each, lg, self.n_samples), (means, lg, 1),
                                        (each, lg + math.log(self.n_samples), self.n_samples))
        )
        mean = float(rms[0])
        worst = min(float(largest.max()), math.sqrt(self.n_samples) * mean)  # the largest of N: at most root N times
        return GapBound("T6", frozen_array(values), mean, worst, {}, delta)

    def _products(self, keep: float, delta: float, lengths: Mapping[int, np.ndarray]) -> GapBound:
        """T6 where layers share a weight, so that a mask meets inputs that depend on it: norms of pruned layers.

        As in T4 with ``E W^ = W``.  Each layer's ``|D h|`` by Bernstein's inequality in Hilbert space (Pinelis 1994).
        Norms behind it: ``|W^| <= |W| + |D|``, ``|D|`` by the matrix Bernstein inequality (Tropp 2012, Theorem 1.6),
        ``P(|D| >= t) <= (m + n) exp(-t^2 / (2 v + 2 L t / 3))``, v = (1 - p) / p times the largest squared row or
        column norm.  A union bound gives each event the same share of delta.
        """
        share = math.log(2 * len(self.layers) / delta)
        ratio, reach = (1 - keep) / keep, max(1 / keep - 1, 1.0) if keep < 1 else 0.0
        network = self.network
        gains = [0.0] * len(network.sizes)
        gains[-1] = 1.0
        for value in range(len(network.nodes), 0, -1):
            node = network.node_of(value)
            norms = node_norms(node)
            if isinstance(node, Affine) and value in self.layers:
                squares = node.matrices[0] ** 2
                v = ratio * float(max(squares.sum(0).max(), squares.sum(1).max()))
                t = bernstein(v, reach * math.sqrt(squares.max()), share + math.log(sum(squares.shape)))
                norms = (norms[0] + t,)
            for source, norm in zip(node.sources, norms, strict=True):
                gains[source] += norm * gains[value]
        total, rms, lg = np.zeros(self.n_samples), 0.0, share + math.log(2)
        parts: dict[str, np.ndarray] = {}
        for value, layer in self.layers.items():
            squares = lengths[value]
            own = gains[value] * bernstein(ratio * squares.sum(0), reach * np.sqrt(squares.max(0)), lg)
            mean = squares.mean(1)  # the same inequality for all samples as one vector
            rms += gains[value] * bernstein(ratio * float(mean.sum()), reach * math.sqrt(mean.max()), lg)
            total += own
            parts[layer.name] = parts.get(layer.name, np.zeros(self.n_samples)) + own
        bound = self._of("T6", parts, total, delta)
        return dataclasses.replace(bound, rms=rms, worst=math.sqrt(self.n_samples) * rms)

    def _placed(self, layer: Layer, h: np.ndarray) -> np.ndarray:
        """``|w B_w h|^2`` of every weight on every sample: (number of weights, N)."""
        index = layer.index.tocoo()
        rows, columns = index.coords
        size = math.prod(layer.shape)
        gather = sp.csr_array((layer.scale[rows] ** 2, (index.data - 1, columns)), shape=(size, layer.index.shape[1]))
        return np.asarray((gather @ (h**2).T) * self.weights[layer.name].reshape(-1, 1) ** 2)


def magnitude_masks(weights: Mapping[str, np.ndarray], keep: float, scope: str = "layer") -> dict[str, np.ndarray]:
    """Masks (True = kept) of the largest ``keep`` share of each layer's weights, or of all layers together.

    Args:
        weights: name -> array; masks have the same names and shapes.
        keep: above 0, up to 1; at least one weight stays in each pool.
        scope: ``"layer"`` or ``"global"``.

    Raises:
        BudgetError: a keep or scope out of range.
    """
    keep = probability("keep", keep, "keep")
    if scope not in ("layer", "global"):
        raise BudgetError(f"scope must be 'layer' or 'global', got {scope!r}")
    pools = [list(weights)] if scope == "global" else [[name] for name in weights]
    masks = {}
    for names in pools:
        sizes = np.concatenate([np.abs(weights[name]).ravel() for name in names])
        kept = np.zeros(len(sizes), dtype=bool)
        kept[np.argsort(-sizes, kind="stable")[: max(1, round(keep * len(sizes)))]] = True
        for name in names:
            masks[name], kept = kept[: weights[name].size].reshape(weights[name].shape), kept[weights[name].size :]
    return masks


def magnitude_pruning(model: nn.Module | UnitGraph, data: Any, *, keep: float, scope: str = "layer") -> GapBound:
    """T4 for pruning by magnitude: the largest ``keep`` share of the weights stays, per layer or ``"global"``.

    Deterministic: holds for this network and these data.  O(n^3) for the norms of the pruned layers.

    Args:
        data: anything :func:`mipprune.prune` takes; N samples.
        keep: above 0, up to 1; scope: as in :func:`magnitude_masks`.

    Raises:
        BudgetError: a keep or scope out of range.
        TraceError: an operation that is neither affine nor ReLU nor max pooling.
        DataError: data that don't fit.
    """
    found = WeightMasks(model, data)
    return found.after(found.pruned(magnitude_masks(found.weights, keep, scope)))


def weight_gap(model: nn.Module | UnitGraph, data: Any, masks: Masks) -> GapBound:
    """T3 for weight masks, unrescaled; linear in the masks.

    Args:
        model: a module or its traced graph.
        data: anything :func:`mipprune.prune` takes.
        masks: name of the weight -> bool array, True = kept.

    Raises:
        DataError: a name that isn't the weight of a linear layer or convolution, a mask of another shape.
        TraceError: an operation that is neither affine nor ReLU nor max pooling.
    """
    return WeightMasks(model, data).componentwise(masks)


def removed_norm(removed: float, scale: float = 1.0, rule: str = "magnitude") -> float:
    """Limit of ``|W^ - W|`` as d grows, for W (d, d) with independent entries uniform on ``+-scale / sqrt d``.

    The removed entries are independent with mean 0 and variance s^2 / d, so the norm goes to 2 s.  s^2 is
    ``q^3 scale^2 / 3`` when the smallest share q = ``removed`` goes and ``q scale^2 / 3`` when any go ("random"), which
    gives ``2 K q^(3/2) / sqrt 3`` and ``2 K q^(1/2) / sqrt 3``.

    Raises:
        BudgetError: a share outside [0, 1], an unknown rule.
    """
    if not 0 <= removed <= 1:
        raise BudgetError(f"removed: expected a share from 0 to 1, got {removed}")
    if rule not in ("magnitude", "random"):
        raise BudgetError(f"rule must be 'magnitude' or 'random', got {rule!r}")
    return float(2 * scale * removed ** (1.5 if rule == "magnitude" else 0.5) / math.sqrt(3))
