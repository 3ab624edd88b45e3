"""The smaller network as a dictionary of tensors, run through the traced operations without building a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ..graph import UnitGraph
from ..graph.capture import is_integer_node, shape_at
from ..graph.emptiness import gone_dims
from ..graph.layers import named_arguments

__all__ = ["CutNetwork"]


class CutNetwork:
    """The network that the mask ``kept`` leaves, with tensors of its own that repairs may change.

    A search repairs hundreds of networks; cutting tensors and running the captured operations costs a fraction of
    copying modules.  :meth:`write` carries the tensors over to the module that surgery made.

    Args:
        graph: the traced dense network.
        kept: bool (n_units,).

    Attributes:
        tensors: node name of the captured program -> parameter, buffer or constant, at the kept sizes.
        dead: names of operations that left with a branch.
        kept: bool (n_units,).
    """

    def __init__(self, graph: UnitGraph, kept: np.ndarray) -> None:
        self.graph = graph
        self.kept = np.array(kept, dtype=bool)  # a copy: later networks are compared with it
        self._names = graph.program.captured.tensors
        self._indices: dict[bytes, torch.Tensor] = {}
        self._device = next(graph.model.parameters()).device
        leaving = [b for unit, stays in zip(graph.coarse, self.kept.tolist()) if not stays for b in unit.branches]
        self.dead = frozenset(node for branch in leaving for node in branch.nodes)
        cuts: dict[str, list[tuple[int, np.ndarray]]] = {}
        for (name, dim), units in graph.unit_sites.items():
            cuts.setdefault(name, []).append((dim, units))
        canonical: dict[tuple[Any, ...], str] = {}  # a tied tensor is cut once, under its first name
        done: dict[str, torch.Tensor] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        unread = _only_read_by(graph.program.captured.nodes, self.dead)
        for node, tensor in graph.program.dense_tensors().items():
            if node in unread:
                continue
            name = canonical.setdefault((tensor.data_ptr() or node, tensor.shape), self._names[node])
            if name not in done:
                for dim, units in cuts.get(name, ()):
                    tensor = tensor.index_select(dim, self._index(units).to(tensor.device))
                done[name] = tensor.clone()
            self.tensors[node] = done[name]
        self._lengths: dict[str, dict[int, int]] = {}
        for node, at, units in graph.program.lengths:
            self._lengths.setdefault(node, {})[at] = int(np.where(units < 0, True, self.kept[units]).sum())

        counts = graph.costs.counts(self.kept)
        self.gone = gone_dims(graph.program, set(np.flatnonzero(counts == 0).tolist()))
        self._skips = {branch.add.name: branch.skip for branch in leaving}

    def _index(self, units: np.ndarray) -> torch.Tensor:
        key = units.tobytes()  # many tensors lie along the same units
        if key not in self._indices:
            index = torch.from_numpy(np.flatnonzero(np.where(units < 0, True, self.kept[units])))
            self._indices[key] = index.to(self._device)
        return self._indices[key]

    def kept_index(self, node: str, dim: int) -> torch.Tensor | None:
        """Which indices of dimension ``dim`` of the tensor ``node`` stay (int64); ``None`` if all do."""
        units = self.graph.unit_sites.get((self._names[node], dim))
        if units is None or self.kept[units[units >= 0]].all():
            return None
        return self._index(units)

    @torch.no_grad()
    def run(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Output of the small network for the tensors ``inputs``, in the order of its arguments."""
        return self.evaluate(inputs, self.tensors)

    def evaluate(self, inputs: Sequence[torch.Tensor], tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Output for ``inputs`` with other ``tensors`` (node name -> tensor), differentiable in them."""
        captured = self.graph.program.captured
        env: dict[str, Any] = dict(zip(captured.inputs, inputs, strict=True))
        for node in captured.nodes:
            if not is_integer_node(node):
                env[node.name] = self._result(node, env, tensors, len(inputs[0]))
        return env[captured.output.name]

    @torch.no_grad()
    def write(self, small: nn.Module) -> None:
        """Copy the tensors into ``small``, a network that the same mask was cut from.  Shapes must agree."""
        own = small.state_dict(keep_vars=True)
        for node, tensor in self.tensors.items():
            if self._names[node] in own:
                own[self._names[node]].copy_(tensor)

    @torch.no_grad()
    def read(self, small: nn.Module) -> None:
        """The other way round: copy the tensors of ``small`` into this network's."""
        own = small.state_dict(keep_vars=True)
        for node, tensor in self.tensors.items():
            if self._names[node] in own:
                tensor.copy_(own[self._names[node]])

    def step(self, node: fx.Node, env: dict[str, Any], batch: int) -> Any:
        """Result of one operation on the values in ``env``, for ``batch`` samples."""
        return self._result(node, env, self.tensors, batch)

    def _result(self, node: fx.Node, env: dict[str, Any], tensors: dict[str, torch.Tensor], batch: int) -> Any:
        """Torch's kernels refuse width 0, or get it wrong: what is gone is made here, and a layer that reads only
        such values puts out its bias.
        """
        if node.name in self.dead:
            return None
        if node.name in self._skips:
            return env[self._skips[node.name]]
        if node.name in self.gone:
            return _nothing(node.meta["val"], self.gone[node.name], env, batch)
        if "conv" in str(node.target) and (given := named_arguments(node))["input"].name in self.gone:
            weight, bias = tensors[given["weight"].name], given.get("bias")
            shape = list(shape_at(node.meta["val"].shape, batch))
            shape[1] = len(weight) if "transpose" not in str(node.target) else weight.shape[1] * given.get("groups", 1)
            zeros = weight.new_zeros(shape)
            return zeros if bias is None else zeros + tensors[bias.name].reshape(-1, *[1] * (len(shape) - 2))
        return self.graph.program.apply(node, env, tensors, batch, self._lengths.get(node.name))


def _only_read_by(nodes: Sequence[fx.Node], dead: frozenset[str]) -> set[str]:
    """Values that no operation but the ``dead`` ones reads."""
    read = {a.name for n in nodes if n.name in dead for a in n.all_input_nodes}
    return read - {a.name for n in nodes if n.name not in dead for a in n.all_input_nodes}


def _nothing(value: Any, dims: tuple[int, ...], env: dict[str, Any], batch: int) -> Any:
    """Tensors of a traced result's shape, but width 0 along the dimensions that units lie along."""
    device = next(x.device for x in env.values() if isinstance(x, torch.Tensor))
    like = next((x for x in env.values() if isinstance(x, torch.Tensor) and x.is_floating_point()), None)
    made = []
    for result, dim in zip(value if isinstance(value, (tuple, list)) else [value], dims, strict=True):
        shape = list(shape_at(result.shape, batch))
        shape[dim] = 0
        dtype = like.dtype if like is not None and result.is_floating_point() else result.dtype
        made.append(torch.zeros(shape, dtype=dtype, device=device))
    return tuple(made) if isinstance(value, (tuple, list)) else made[0]
