"""What each layer of a smaller network is fitted to, where branches behind it are gone."""

from __future__ import annotations

import dataclasses

from torch import fx

from ..graph import Layer
from ..graph.capture import packet_of
from ..graph.layers import PASSES, same_shape
from .cut import CutNetwork
from .dense import DenseRun

__all__ = ["Goal", "find_goals"]


@dataclasses.dataclass(frozen=True)
class Goal:
    """A later value of the dense network that a layer answers for in the smaller one.

    Attributes:
        node: the sum.
        other: what is live and added to the layer's output on the way, or ``None``.
    """

    node: fx.Node
    other: fx.Node | None


def find_goals(cut: CutNetwork, dense: DenseRun) -> dict[str, Goal]:
    """Node name of a layer -> its goal, for the layers whose goal isn't their own output or sum.

    Where residual branches have left or lost every unit, the stream passes them unchanged but for a constant: what they
    added in the dense network is missing behind them.  The layer that wrote to the stream before is then fitted
    to the dense sum after the last of them: nothing else can still make that good (our derivation; relu after relu
    changes nothing, so that sums behind a relu count too).
    """
    if not cut.dead and cut.graph.costs.counts(cut.kept).all():
        return {}
    moving = _moving(cut, dense)
    needed = _needed(cut, moving)
    layers = {name: layer for name, layer in dense.layers.items() if name not in cut.dead}
    found = {name: _beyond(layer, dense, moving, needed) for name, layer in layers.items()}
    return {name: goal for name, goal in found.items() if goal is not None}


def _moving(cut: CutNetwork, dense: DenseRun) -> set[str]:
    """Values that still depend on the input."""
    moving = set(cut.graph.program.captured.inputs)
    for node in cut.graph.program.captured.nodes:
        if node.name in cut.dead or node.name in cut.gone:
            continue
        layer = dense.layers.get(node.name)
        if layer is not None and cut.tensors[layer.weight].numel() == 0:
            continue  # it reads nothing: its bias is left
        if any(a.name in moving for a in node.all_input_nodes):
            moving.add(node.name)
    return moving


def _needed(cut: CutNetwork, moving: set[str]) -> set[str]:
    """Values that the output depends on through moving ones."""
    needed = {cut.graph.program.captured.output.name}
    for node in reversed(cut.graph.program.captured.nodes):
        if any(u.name in needed and u.name in moving for u in node.users):
            needed.add(node.name)
    return needed


def _beyond(layer: Layer, dense: DenseRun, moving: set[str], needed: set[str]) -> Goal | None:
    """The last sum that the layer's own sum reaches past constants, if there is one."""
    if layer.total is None:
        return None
    tensors = dense.graph.program.captured.tensors
    at, reached = layer.total, None
    while len(users := [u for u in at.users if u.name in moving and u.name in needed]) == 1:
        user = users[0]
        packet = packet_of(user)
        if packet == "add" and len(user.args) == 2 and not user.kwargs and same_shape(user, layer.node):
            beside = next((a for a in user.args if a is not at), None)
            if not isinstance(beside, fx.Node) or beside.name in moving or beside.name in tensors:
                break
            reached = user if user.name in dense.targets[0] else reached
        elif packet not in (*PASSES, "relu", "relu_"):
            break
        at = user
    if reached is None:
        return None
    assert layer.other is not None
    return Goal(reached, layer.other if layer.other.name in moving else None)
