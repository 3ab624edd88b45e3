"""What removing units of one group costs *after* the layers that read them are refitted: one curve per group."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ..game.data import LabelledData
from ..graph import Layer, UnitGraph, UnitGroup, find_layers
from ..graph.layers import named_arguments
from ..records import Record, frozen_array
from .input_covariance import input_covariances
from .output_metric import output_metrics
from .positive import factor, inverse, solve_lower
from .sensitivity import Sensitivity
from .stream_basis import projected_errors
from .subset_bounds import Regression, least_errors

__all__ = ["RefitCurve", "RefitModel", "refit_curves"]


@dataclasses.dataclass(frozen=True, eq=False)
class RefitCurve(Record):
    """Backward elimination of one group.

    Attributes:
        order: int64 (n,): units within the group in the order of removal; the last one stays longest.
        error: float64 (n + 1,): entry r is the predicted KL in nats once ``order[:r]`` are gone and their readers
            refitted; the last one is an empty branch's, of whose readers only the biases are left.
        lower: float64 (n + 1,): no choice of r units has a smaller predicted KL
            (:func:`~mipprune.curvature.subset_bounds.least_errors`).
    """

    order: np.ndarray
    error: np.ndarray
    lower: np.ndarray

    def mask(self, count: int) -> np.ndarray:
        """Bool (n,): the units that stay when ``count`` do."""
        kept = np.zeros(len(self.order), dtype=bool)
        kept[self.order[len(self.order) - count :]] = True
        return kept


@dataclasses.dataclass
class _Reader:
    """One layer that reads the group: covariance of its inputs, weights in the metric, the units' columns."""

    layer: str
    covariance: np.ndarray  # (D, D), damped
    inverse: np.ndarray  # of it
    weight: np.ndarray  # (m, D): sqrt(M / 2) W
    columns: np.ndarray  # (n, b)

    def regression(self) -> Regression:
        own = self.columns.ravel()
        block = np.ix_(own, own)
        alone = len(own) == len(self.inverse)  # it reads no other group
        return Regression(self.inverse[block], self.weight[:, own], self.covariance[block] if alone else None)


class RefitModel:
    """What removals cost once the layers that read the units are refitted, from one measurement of the network.

    With W the dense weights of a reader, G the centred covariance of its inputs and M its output metric
    (:func:`output_metrics`), removing the inputs R and refitting the others costs::

        min_{W'} 1/2 E |W x - W' x_kept|_M^2 = 1/2 tr(M W_R (G^-1)_RR^-1 W_R'),

    the block form of Optimal Brain Surgeon (Hassibi and Stork 1993), in which the least-squares weights of the rest
    come along.  A residual stream (:class:`~mipprune.graph.Stream`) is projected, not cut: there only the number of
    units counts, and the error is that of reading the dense stream off its first principal directions.  Elsewhere
    units are removed one by one, each time the one with the smallest sum over all readers; G^-1 and W
    follow by block elimination, O(D^2 b) a step.

    Args:
        graph: the traced network.
        data: calibration samples; targets aren't used.
        ridge: added to G's diagonal, relative to its mean.
        temperature: t of the softened KL divergence, which is multiplied by t^2 as in distillation.
        probes, seed: of the output metrics, see :func:`output_metrics`.
        sensitivity: what is known already of the network; its metrics are taken, whatever the three before say.

    Raises:
        ConfigError: the graph's units are whole branches.
    """

    def __init__(
        self, graph: UnitGraph, data: LabelledData, *, ridge: float = 1e-4, temperature: float = 1.0,
        probes: int | None = None, seed: int = 0, sensitivity: Sensitivity | None = None,
    ) -> None:
        graph.require_fine("a refit-aware curve")
        self.graph = graph
        layers = [layer for layer in find_layers(graph.program) if layer.groups == 1]
        if sensitivity is None:
            sensitivity = Sensitivity(graph, data)
            metrics = output_metrics(graph, data, layers, temperature=temperature, probes=probes, seed=seed)
            metrics = {name: temperature**2 * metric for name, metric in metrics.items()}
        else:
            metrics = sensitivity.outputs
        self._readers = _readers(graph, data, layers, metrics, ridge)
        self._streams = self._stream_errors(sensitivity)

    def curves(self, pinned: np.ndarray | None = None) -> list[RefitCurve]:
        """One curve per group; ``pinned`` units, bool (n_units,), come last in its ``order``."""
        graph = self.graph
        pinned = np.zeros(graph.n_units, dtype=bool) if pinned is None else pinned
        curves = [
            _eliminate(g, self._readers[i], pinned[g.units], bounded=i not in self._streams)
            for i, g in enumerate(graph.groups)
        ]
        for number, error in self._streams.items():
            curves[number] = dataclasses.replace(curves[number], error=frozen_array(error), lower=frozen_array(error))
        return curves

    def errors(self, kept: np.ndarray) -> np.ndarray:
        """The predicted KL of a mask ``kept``, bool (n_units,), every group taken apart: float64 (groups,), in nats."""
        out = np.zeros(len(self.graph.groups))
        for i, group in enumerate(self.graph.groups):
            if i in self._streams:
                out[i] = self._streams[i][int((~kept[group.units]).sum())]
                continue
            for reader in self._readers[i]:
                gone = reader.columns[~kept[group.units]].ravel()
                own = reader.weight[:, gone].T
                out[i] += (own * np.linalg.solve(reader.inverse[np.ix_(gone, gone)], own)).sum()
        return out

    def _stream_errors(self, sensitivity: Sensitivity) -> dict[int, np.ndarray]:
        """Number of a stream's group -> predicted KL (n + 1,) once r of its units are gone."""
        tensors = self.graph.program.dense_tensors()
        out = {}
        for stream, directions in sensitivity.streams:
            size = self.graph.groups[stream.group].size
            basis = directions.cpu().numpy()
            total = np.zeros(size + 1)
            for reader in self._readers[stream.group]:
                weight = named_arguments(stream.readers[reader.layer]).get("weight")
                gain = np.ones(size) if weight is None else tensors[weight.name].double().cpu().numpy()
                gain = np.where(np.abs(gain) < 1e-6, 1e-6, gain)
                total += projected_errors(reader.covariance, reader.weight.T @ reader.weight, gain, basis)
            out[stream.group] = np.maximum.accumulate(total[::-1])
        return out


def refit_curves(
    graph: UnitGraph, data: LabelledData, *, pinned: np.ndarray | None = None, ridge: float = 1e-4,
    temperature: float = 1.0, probes: int | None = None, seed: int = 0, sensitivity: Sensitivity | None = None,
) -> list[RefitCurve]:
    """The curves of a :class:`RefitModel`, one per group of ``graph``.

    Args:
        pinned: bool (n_units,), units that stay; they come last in ``order``.
        graph, data, ridge, temperature, probes, seed, sensitivity: as for :class:`RefitModel`.
    """
    model = RefitModel(
        graph, data, ridge=ridge, temperature=temperature, probes=probes, seed=seed, sensitivity=sensitivity
    )
    return model.curves(pinned)


def _readers(
    graph: UnitGraph, data: LabelledData, layers: list[Layer], metrics: dict[str, torch.Tensor], ridge: float
) -> list[list[_Reader]]:
    out: list[list[_Reader]] = [[] for _ in graph.groups]
    tensors = graph.program.dense_tensors()
    reads = {layer.node.name: graph.program.read_of(layer.node) for layer in layers}
    layers = [layer for layer in layers if reads[layer.node.name] is not None and layer.node.name in metrics]
    for layer, cov in zip(layers, input_covariances(graph, data, layers), strict=True):
        read = reads[layer.node.name]
        assert read is not None
        weight = tensors[layer.weight].double().flatten(1).cpu()
        cov = cov.cpu()
        units = np.repeat(read.units.numpy(), weight.shape[1] // len(read.units))
        size = cov.diagonal().mean().clamp_min(1e-30)  # inputs that are all constant cost nothing
        damped = (cov + ridge * size * torch.eye(len(cov), dtype=cov.dtype)).numpy()
        precision = inverse(damped)
        value, vector = torch.linalg.eigh(metrics[layer.node.name].cpu() / 2)
        root = vector * value.clamp_min(0).sqrt()
        for group, readers in zip(graph.groups, out, strict=True):
            own = np.flatnonzero((units >= group.units.start) & (units < group.units.stop))
            if len(own) == 0:
                continue
            columns = own[np.argsort(units[own], kind="stable")].reshape(group.size, -1)
            readers.append(_Reader(layer.node.name, damped, precision, (root.T @ weight).numpy(), columns))
    return out


def _eliminate(group: UnitGroup, readers: list[_Reader], pinned: np.ndarray, bounded: bool) -> RefitCurve:
    n = group.size
    alive = np.arange(n)
    regressions = [reader.regression() for reader in readers]
    states = [_Elimination(one, n) for one in regressions]
    error, order = np.zeros(n + 1), []
    for removed in range(n):
        scores = sum((state.scores() for state in states), np.zeros(len(alive)))
        free = np.where(pinned[alive], np.inf, scores)
        if not np.isfinite(free).any():  # only pinned units are left: any order will do, no size below is allowed
            order += alive.tolist()
            error[removed + 1 :] = error[removed]
            break
        best = min(np.flatnonzero(free == free.min()), key=alive.__getitem__)  # of equals the first unit
        error[removed + 1] = error[removed] + max(scores[best], 0.0)
        order.append(int(alive[best]))
        alive[best] = alive[-1]
        alive = alive[:-1]
        for state in states:
            state.remove(int(best))
    lower = least_errors(regressions, n) if bounded else error
    return RefitCurve(frozen_array(order, np.int64), frozen_array(error), frozen_array(np.minimum(lower, error)))


class _Elimination:
    """A regression that loses unit after unit, by block elimination in place; the last unit takes the lost one's place.

    Inputs of other groups stay, so that only the group's own block of the precision is needed.
    """

    def __init__(self, given: Regression, n_units: int) -> None:
        self.left, self.b = n_units, len(given.precision) // n_units
        self.precision, self.weight = given.precision.copy(), given.weight.T.copy()
        self.buffer = np.empty(self.precision.size)

    def scores(self) -> np.ndarray:
        """``tr w_u P_uu^-1 w_u'`` of every unit that is left: (left,)."""
        n, b = self.left, self.b
        at = np.arange(n)
        blocks = self.precision[: n * b, : n * b].reshape(n, b, n, b)[at, :, at]
        own = self.weight[: n * b].reshape(n, b, -1)
        return (own * np.linalg.solve(blocks, own)).sum((1, 2))

    def remove(self, unit: int) -> None:
        size = self.left * self.b
        precision, weight = self.precision[:size, :size], self.weight[:size]
        gone, last = slice(unit * self.b, (unit + 1) * self.b), slice(size - self.b, size)
        lower = factor(precision[gone, gone])
        half = solve_lower(lower, precision[gone])
        weight -= half.T @ solve_lower(lower, weight[gone])
        precision -= np.matmul(half.T, half, out=self.buffer[: size * size].reshape(size, size))
        precision[gone] = precision[last]
        precision[:, gone] = precision[:, last]
        weight[gone] = weight[last]
        self.left -= 1
