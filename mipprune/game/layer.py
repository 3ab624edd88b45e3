"""The game of one layer: players are its units, the value is how well the network works with only some of them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from ..errors import DataError, ModelStateError
from ..graph import UnitGraph
from .base import SampleGame
from .data import as_data
from .fused import Chain, chain_of, fused_available, fused_toggle, fused_toggle_pairs, fused_walk
from .incremental import Reader, incremental_toggle, incremental_walk, reader_of
from .values import VALUE_FUNCTIONS, ValueFunction, check_class_targets, sample_values
from .walks import toggle, toggle_pairs, walk

__all__ = ["LayerGame"]


class LayerGame(SampleGame):
    """Coalitions of the units of one layer, valued by running the rest of the network on them.

    What lies before the layer is computed once; only the operations that see the mask are run again, many coalitions
    in one batch.

    Args:
        graph: a traced network (:func:`mipprune.trace`).
        layer: module path of the layer (or of one that is tied to it).
        data: calibration data, see :func:`mipprune.game.as_data`.
        value: ``"cross_entropy"``, ``"accuracy"``, ``"margin"``, ``"logit_distance"`` (see
            :func:`~mipprune.game.values.sample_values`), or a callable ``fn(outputs (N, ...), targets)`` that returns
            a number, or one number per sample.
        kept: bool of shape (graph.n_units,): units of *other* layers that work; all by default.
        batch_bytes: memory that one batch of coalitions may take; None: 16 MiB on a CPU, whose caches it then mostly
            stays in (measured: 1.8 times as fast as 64 MiB), elsewhere 1 GiB or a quarter of what is free.
        fused: let the compiled kernel (extra ``fast``) do the walks where the suffix is a multilayer perceptron.
        incremental: where one linear layer or convolution reads the units, let walks add the share of one unit after
            another instead of running that layer at every step.

    Raises:
        UnknownLayerError, DataError: as their texts say.
        ModelStateError: the dense network's output isn't finite; names the module where that starts.
    """

    def __init__(
        self,
        graph: UnitGraph,
        layer: str,
        data: Any,
        value: str | ValueFunction = "cross_entropy",
        *,
        kept: np.ndarray | None = None,
        batch_bytes: int | None = None,
        fused: bool = True,
        incremental: bool = True,
    ) -> None:
        if isinstance(value, str) and value not in VALUE_FUNCTIONS:
            raise DataError(f"unknown value function {value!r}; known: {sorted(VALUE_FUNCTIONS)}, or pass a callable")
        self.graph = graph
        self.group = graph.group(layer)
        self.data = as_data(data, graph)
        self.value_function = value
        self.batch_bytes = _default_batch_bytes(graph) if batch_bytes is None else batch_bytes
        self.fused, self.incremental = fused, incremental
        self._prefix = graph.program.prefix(self.data.inputs, self.group.units, kept)
        self._dense = self._prefix.run(self._gates(np.ones((1, self.group.size), dtype=bool)))[0]
        if not bool(torch.isfinite(self._dense).all()):
            where = graph.program.first_not_finite(self.data.inputs)
            raise ModelStateError(f"the network's output isn't finite; it starts at {where}")
        if isinstance(value, str) and value != "logit_distance":
            check_class_targets(self._dense, self.data.targets, "calibration data")

    @property
    def n_players(self) -> int:
        return self.group.size

    @property
    def player_names(self) -> tuple[str, ...]:
        """Names as ``fc1[3]``: the layer and the unit's number in it."""
        return tuple(f"{self.group.name}[{i}]" for i in range(self.group.size))

    @property
    def n_samples(self) -> int:
        return len(self.data)

    @property
    def decomposes(self) -> bool:
        """Whether the value is a mean over samples, so that :meth:`sample_values` exists."""
        return isinstance(self.value_function, str)

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        coalitions = self._checked(coalitions)
        out = np.empty(len(coalitions))
        for rows, outputs in self._outputs(coalitions):
            if isinstance(self.value_function, str):
                out[rows] = self._per_sample(outputs).mean(1).cpu().numpy()
            else:
                out[rows] = [_as_number(self.value_function(o, self.data.targets)) for o in outputs]
        if np.isnan(out).any():
            bad = coalitions[int(np.flatnonzero(np.isnan(out))[0])]
            raise ModelStateError(f"the value of layer {self.group.name!r} is NaN for the coalition that keeps units "
                                  f"{np.flatnonzero(bad).tolist()}")
        return out

    def sample_values(self, coalitions: np.ndarray) -> np.ndarray:
        """Per-sample values of the coalitions (bool, (M, n)): float64 of shape (M, N).

        Raises:
            DataError: the value function is a callable, which need not be a mean over samples.
        """
        if not self.decomposes:
            raise DataError("a callable value function has no per-sample values")
        coalitions = self._checked(coalitions)
        out = np.empty((len(coalitions), self.n_samples))
        for rows, outputs in self._outputs(coalitions):
            out[rows] = self._per_sample(outputs).cpu().numpy()
        return out

    def walk(self, orders: np.ndarray) -> np.ndarray:
        orders = np.asarray(orders)
        expected = np.broadcast_to(np.arange(self.n_players), (*orders.shape[:1], self.n_players))
        if orders.shape != (self.n_samples, self.n_players) or (np.sort(orders, axis=1) != expected).any():
            raise DataError(f"orders: expected {self.n_samples} permutations of {self.n_players} players, one a sample")
        if self._chain is not None:
            return fused_walk(self._chain, orders, *self._fused_value())
        if self._reader is not None:
            return incremental_walk(self._reader, orders, self._values_of, self._room)
        return walk(self._round_values, orders, self._batch)

    def toggle(self, masks: np.ndarray) -> np.ndarray:
        masks = self._checked(masks)
        if len(masks) != self.n_samples:
            raise DataError(f"masks: expected one per sample, {self.n_samples}, got {len(masks)}")
        if self._chain is not None:
            return fused_toggle(self._chain, masks, *self._fused_value())
        if self._reader is not None:
            return incremental_toggle(self._reader, masks, self._values_of, self._room)
        return toggle(self._round_values, masks, self._batch)

    def toggle_pairs(self, masks: np.ndarray) -> np.ndarray:
        masks = self._checked(masks)
        if len(masks) != self.n_samples:
            raise DataError(f"masks: expected one per sample, {self.n_samples}, got {len(masks)}")
        if self._chain is not None:
            return fused_toggle_pairs(self._chain, masks, *self._fused_value())
        return toggle_pairs(self._round_values, masks, self._batch)

    @functools.cached_property
    def _chain(self) -> Chain | None:
        """The suffix for the fused kernel, where it is of that kind and numba is installed."""
        if not (self.fused and self.decomposes and fused_available()) or self.data.targets.device.type != "cpu":
            return None
        return chain_of(self._prefix, self.graph.program)

    @functools.cached_property
    def _reader(self) -> Reader | None:
        """The operation that reads the units, where walks can be incremental and a sample's shares fit in memory."""
        return reader_of(self._prefix, self._room) if self.incremental and self.decomposes else None

    @property
    def _room(self) -> int:
        """Float numbers that a batch may hold."""
        return self.batch_bytes // 8

    def _values_of(self, outputs: torch.Tensor, rows: slice) -> torch.Tensor:
        return sample_values(str(self.value_function), outputs, self.data.targets[rows], self._dense[rows])

    def _fused_value(self) -> tuple[str, np.ndarray, np.ndarray]:
        return str(self.value_function), self.data.targets.numpy().astype(np.int64), self._dense.numpy()

    def _round_values(self, masks: np.ndarray) -> np.ndarray:
        """Per-sample values (M, N) where sample k of round r has the coalition ``masks[r, k]``."""
        if not self.decomposes:
            raise DataError("a callable value function has no per-sample values")
        return self._per_sample(self._prefix.run(self._gates(masks))).cpu().numpy()

    @property
    def _batch(self) -> int:
        """Coalitions of the whole data set that fit into ``batch_bytes``."""
        return max(1, self.batch_bytes // self._prefix.bytes_per_coalition)

    def _per_sample(self, outputs: torch.Tensor) -> torch.Tensor:
        return sample_values(str(self.value_function), outputs, self.data.targets, self._dense)

    def _outputs(self, coalitions: np.ndarray) -> Any:
        """Pairs (rows, outputs (m, N, ...)) batch by batch."""
        for start in range(0, len(coalitions), self._batch):
            rows = slice(start, min(start + self._batch, len(coalitions)))
            yield rows, self._prefix.run(self._gates(coalitions[rows]))

    def _gates(self, coalitions: np.ndarray) -> torch.Tensor:
        parameter = next(self.graph.model.parameters())
        return torch.from_numpy(np.require(coalitions, requirements=["C", "W"])).to(parameter.device, parameter.dtype)


def _default_batch_bytes(graph: UnitGraph) -> int:
    device = next(graph.model.parameters()).device
    if device.type == "cpu":
        return 16 << 20
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 4 << 30
    return min(1 << 30, free // 4)


def _as_number(value: Any) -> float:
    return float(torch.as_tensor(value, dtype=torch.float64).mean())
