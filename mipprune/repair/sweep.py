"""One pass through a smaller network that refits its layers on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from ..graph import Layer
from ..graph.capture import is_integer_node
from ..graph.layers import named_arguments
from .cut import CutNetwork
from .dense import DenseRun
from .goals import find_goals
from .projection import project_streams
from .ridge import Accumulator, Moments, cross_validated, solve_ridge

__all__ = ["Sweep"]


@dataclasses.dataclass
class _State:
    """What a sweep knew before an operation."""

    envs: list[dict[str, Any]]
    as_dense: set[str]
    norms: set[str]
    changed: int


class Sweep:
    """One pass through the operations, all batches in lockstep.

    Args:
        cut: the smaller network, whose tensors are changed.
        dense: the dense network's values on the same data.
        ridge: relative damping; by default generalised cross-validation chooses one per layer.
        ridges: by layer name, instead of cross-validation, which costs several times as much as the fit itself.
        before: finished sweeps over the same :class:`DenseRun`; what comes before the first operation that the masks
            differ in is taken from the one that has most of it.
        remember: keep what the next sweep needs for that.

    Attributes:
        chosen: the ridges (g, 1) of the layers, by layer name.
        envs: per batch, node name -> value: after :meth:`run` the output, and what the last layer reads.
        changed: layers refitted.
    """

    def __init__(
        self, cut: CutNetwork, dense: DenseRun, ridge: float | None = None, before: Sequence[Sweep] = (),
        remember: bool = False, ridges: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> None:
        self.cut, self.dense, self.ridge, self.remember = cut, dense, ridge, remember
        self.ridges = ridges
        self.chosen: dict[str, torch.Tensor] = {}
        self.changed = 0
        self.envs = [dict(x) for x in dense.inputs]
        self.as_dense: set[str] = set(dense.inputs[0])  # values that are the dense network's, kept channels apart
        self.norms: set[str] = set()
        self.states: dict[int, _State] = {}
        self.goals = find_goals(cut, dense)
        self.projections = project_streams(cut, dense)  # node of a writer's weight -> (count, n)
        self.start = self._resume(max(before, key=self._shared)) if before else 0
        output = cut.graph.program.captured.output.name
        self._stay = {output} | ({dense.layers[output].data} if output in dense.layers else set())

    def run(self) -> int:
        """Run and refit to the end; the number of layers that changed."""
        for at in range(self.start, len(self.dense.order)):
            if self.remember and at in self.dense.stops:
                self.states[at] = _State(
                    [dict(env) for env in self.envs], set(self.as_dense), set(self.norms), self.changed
                )
            self._visit(self.dense.order[at])
        return self.changed

    def memory(self) -> int:
        """Bytes of the values that are remembered."""
        values = [v for state in self.states.values() for env in state.envs for v in env.values()]
        return sum({id(v): v.nbytes for v in values if isinstance(v, torch.Tensor)}.values())

    def _shared(self, before: Sweep) -> int:
        """How many operations may be taken from a finished sweep."""
        groups = self.cut.graph.costs.group_of_unit[self.cut.kept != before.cut.kept]
        start = int(self.dense.first_touched[groups].min(initial=len(self.dense.order)))
        for name, _ in self.goals.items() ^ before.goals.items():
            start = min(start, self.dense.place[name])
        return max((at for at in before.states if at <= start), default=0)

    def _resume(self, before: Sweep) -> int:
        start = self._shared(before)
        if start == 0:
            return 0
        self.states = {at: state for at, state in before.states.items() if at <= start}
        state = self.states[start]
        self.envs, self.changed = [dict(env) for env in state.envs], state.changed
        self.as_dense, self.norms = set(state.as_dense), set(state.norms)
        for node in self.dense.order[:start]:
            layer = self.dense.layers.get(node.name)
            settled = layer.norm.all_input_nodes if layer is not None and layer.norm is not None else ()
            for a in (*node.all_input_nodes, *settled):
                if a.name in self.cut.tensors:
                    self.cut.tensors[a.name] = before.cut.tensors[a.name]
        return start

    def _visit(self, node: fx.Node) -> None:
        if node.name in self.cut.dead:
            pass
        elif self._untouched(node):
            self.as_dense.add(node.name)
        elif node.name in self.dense.layers:
            self._refit(self.dense.layers[node.name])
        elif str(node.target) == "aten.batch_norm.default" and node.name not in self.norms:
            self._recalibrate(node)
        for env, size in zip(self.envs, self.dense.sizes, strict=True):
            env[node.name] = self.cut.step(node, env, size)
            for a in node.all_input_nodes:
                if self.dense.last[a.name] == node.name and a.name not in self._stay:
                    env.pop(a.name, None)

    def _untouched(self, node: fx.Node) -> bool:
        if node.name in self.goals or not self.cut.kept[self.cut.graph.program.units_read(node)].all():
            return False
        tensors = self.cut.tensors
        return all(a.name in tensors or a.name in self.as_dense or is_integer_node(a) for a in node.all_input_nodes)

    def _recalibrate(self, node: fx.Node) -> None:
        given = named_arguments(node)
        if self.cut.tensors[given["running_mean"].name].numel() == 0:
            return
        parts = [env[given["input"].name][:n] for env, n in zip(self.envs, self.dense.fitted, strict=True) if n]
        x = torch.cat([part.transpose(0, 1).flatten(1) for part in parts], 1).double()
        _assign(self.cut.tensors[given["running_mean"].name], x.mean(1))
        _assign(self.cut.tensors[given["running_var"].name], x.var(1, correction=0))

    def _refit(self, layer: Layer) -> None:
        tensors = self.cut.tensors
        weight = tensors[layer.weight]
        if len(weight) == 0:
            return  # it makes nothing
        norm = _Norm(layer, self.cut) if layer.norm is not None else None
        centred = layer.bias is not None or norm is not None
        moments = self._moments(layer, norm, centred)
        if weight.numel() == 0:  # it reads nothing: its bias, or the norm behind it, takes the target's mean
            mean = moments.t.flatten()
            if layer.bias is not None:
                _assign(tensors[layer.bias], mean)
            if norm is not None:
                norm.settle(torch.zeros_like(mean) if layer.bias is None else mean, mean)
                self.norms.add(layer.norm.name)  # type: ignore[union-attr]
            self.changed += 1
            return
        groups = len(moments.xx)
        old = weight.double().reshape(groups, weight.shape[0] // groups, -1)
        ridge = self.chosen[layer.node.name] = self._ridge(layer, moments, old)
        new, mean, bias = solve_ridge(moments, old, ridge)
        weight.copy_(new.reshape(weight.shape))
        if layer.bias is not None:
            _assign(tensors[layer.bias], bias)
        if norm is not None:
            norm.settle(mean + (0 if layer.bias is None else bias), moments.t.flatten())
            self.norms.add(layer.norm.name)  # type: ignore[union-attr]
        self.changed += 1

    def _ridge(self, layer: Layer, moments: Moments, old: torch.Tensor) -> torch.Tensor:
        if self.ridge is not None:
            return old.new_full((len(old), 1), self.ridge)
        known = self.ridges.get(layer.node.name)
        return known if known is not None and len(known) == len(old) else cross_validated(moments, old)

    def _moments(self, layer: Layer, norm: _Norm | None, centred: bool) -> Moments:
        sums = Accumulator(centred)
        weight = self.cut.tensors[layer.weight]
        index = self.cut.kept_index(layer.weight, 0)
        goal, others = self._goal(layer)
        towards_sum = goal is not layer.node
        reader = layer.node.all_input_nodes[0]
        for number, env in enumerate(self.envs):
            for rows in self.dense.rows(layer, weight[0].numel(), number) if self.dense.fitted[number] else ():
                t = self.dense.target(goal, layer, number, rows)
                if layer.weight in self.projections:
                    t = self.projections[layer.weight].to(t.dtype) @ t
                elif index is not None:
                    t = t.index_select(0, index)
                for other in others:
                    value = self.dense.select(env[other.name], other, layer, number, rows)
                    t = t - layer.outputs(value, 1)[0]
                if weight.numel():
                    samples = self.dense.select(env[layer.data], reader, layer, number, (rows[0], None))
                    x = layer.design(samples, weight, rows[1])
                else:
                    x = t.new_zeros(1, 0, t.shape[1])
                t = t.reshape(len(x), len(t) // len(x), t.shape[1])
                if towards_sum and norm is not None:
                    t = norm.before(t)
                sums.add(x, t, self.dense.position_root(goal, layer, rows[1]), layer.is_linear)
        return sums.moments()

    def _goal(self, layer: Layer) -> tuple[fx.Node, list[fx.Node]]:
        """What the layer is fitted to, and what is added to its output until there."""
        known = set(self.envs[0])
        goal = self.goals.get(layer.node.name)
        if goal is not None and (goal.other is None or goal.other.name in known):
            return goal.node, [] if goal.other is None else [goal.other]
        if layer.total is not None and layer.other is not None:
            if layer.other.name in known:
                return layer.total, [layer.other]
            if layer.other.name in self.cut.dead:
                return layer.total, []
        return layer.node, []


class _Norm:
    """The batch-norm behind a layer: the affine map it was in the dense network, and its new statistics."""

    def __init__(self, layer: Layer, cut: CutNetwork) -> None:
        given = named_arguments(layer.norm)  # type: ignore[arg-type]
        tensors = cut.tensors
        self.mean, self.var = tensors[given["running_mean"].name], tensors[given["running_var"].name]
        mean, std = self.mean.double(), (self.var.double() + given["eps"]).sqrt()
        gain = torch.ones_like(mean) if given["weight"] is None else tensors[given["weight"].name].double()
        self.shift = torch.zeros_like(mean) if given["bias"] is None else tensors[given["bias"].name].double()
        self.dense_mean = mean
        tiny = 1e-3 * gain.abs().max()
        self.slope = torch.where(gain.abs() > tiny, gain, torch.where(gain < 0, -tiny, tiny)) / std

    def before(self, t: torch.Tensor) -> torch.Tensor:
        """What the layer should put out for batch-norm to return ``t`` of shape (g, m, R)."""
        shape = (t.shape[0], t.shape[1], 1)
        factor, constant = 1 / self.slope, self.dense_mean - self.shift / self.slope
        return t * factor.reshape(shape).to(t.dtype) + constant.reshape(shape).to(t.dtype)

    def settle(self, mean: torch.Tensor, target: torch.Tensor) -> None:
        """Set the running mean for outputs of this ``mean`` whose targets have the mean ``target``."""
        _assign(self.mean, mean - target + self.dense_mean)


def _assign(tensor: torch.Tensor, value: torch.Tensor) -> None:
    tensor.copy_(value.reshape(tensor.shape))
