"""Residual streams between layer-norms: values that linear layers alone write, whose coordinates have no meaning."""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import fx

from .capture import is_integer_node, packet_of
from .layers import Layer, find_layers, named_arguments
from .units import UnitGraph

__all__ = ["Stream", "find_streams"]

_PASSES = ("dropout", "clone", "contiguous", "detach", "alias")
#: What may follow a norm: averages and selections over other dimensions than the units'.
_REDUCTIONS = ("mean", "select", "slice")


@dataclasses.dataclass(frozen=True)
class Stream:
    """A group whose values are sums of what linear layers and tables put out, read through layer-norms only.

    A rotation of the stream, undone where it is read, changes nothing but for the norms' own weights, which the layers
    behind can take over; so its units can be any directions, not only those that training left.

    Attributes:
        group: its number.
        writers: layers that add to it.
        tables: node name -> dimension of the parameters added to it (position embeddings, rows of an embedding).
        norms: the layer-norms that read it.
        readers: node name of a layer -> the layer-norm it reads through.
    """

    group: int
    writers: tuple[Layer, ...]
    tables: dict[str, int]
    norms: tuple[fx.Node, ...]
    readers: dict[str, fx.Node]

    @property
    def sources(self) -> set[str]:
        """Node names of the values that the norms read."""
        return {norm.all_input_nodes[0].name for norm in self.norms}


def find_streams(graph: UnitGraph) -> list[Stream]:
    """All streams of the traced network ``graph``: O(groups * operations)."""
    if not any(packet_of(node) == "layer_norm" for node in graph.program.captured.nodes):
        return []
    layers = {layer.node.name: layer for layer in find_layers(graph.program)}
    found = (_Walk(graph, layers, number).stream() for number in range(len(graph.groups)))
    return [stream for stream in found if stream is not None]


class _Walk:
    """Follows one group through the operations, and gives up at the first that minds a rotation."""

    def __init__(self, graph: UnitGraph, layers: dict[str, Layer], number: int) -> None:
        self.graph, self.layers, self.number = graph, layers, number
        group = graph.groups[number]
        own = np.arange(group.offset, group.offset + group.size)
        touched = {site: units for site, units in graph.unit_sites.items()
                   if ((units >= own[0]) & (units <= own[-1])).any()}
        self.sites: dict[str, int] = {}  # node of a tensor -> the dimension that is exactly this group
        self.partly: set[str] = set()  # tensors that hold some of it otherwise
        for node, name in graph.program.captured.tensors.items():
            for (site, dim), units in touched.items():
                if site == name:
                    if np.array_equal(units, own) and node not in self.sites:
                        self.sites[node] = dim
                    else:
                        self.partly.add(node)
        self.inside: set[str] = set()  # values of the stream
        self.behind: dict[str, fx.Node] = {}  # normed values -> their norm
        self.writers: list[Layer] = []
        self.tables: dict[str, int] = {}
        self.norms: list[fx.Node] = []
        self.readers: dict[str, fx.Node] = {}

    def stream(self) -> Stream | None:
        if self.partly:
            return None
        for node in self.graph.program.captured.nodes:
            if not is_integer_node(node) and self._concerns(node) and not self._takes(node):
                return None
        if not self.writers or not self.norms or not self.readers:
            return None
        return Stream(self.number, tuple(self.writers), self.tables, tuple(self.norms), self.readers)

    def _concerns(self, node: fx.Node) -> bool:
        program = self.graph.program
        carried = any(self.number in groups for _, groups in program.carried.get(node.name, ()))
        return carried or program.reads(node.name, self.graph.groups[self.number].units) or any(
            a.name in self.inside or a.name in self.behind or a.name in self.sites for a in node.all_input_nodes
        )

    def _takes(self, node: fx.Node) -> bool:
        packet = packet_of(node)
        inputs = [a for a in node.all_input_nodes if not is_integer_node(a)]
        if node.name in self.layers:
            return self._takes_layer(self.layers[node.name])
        if packet in _PASSES and len(inputs) == 1 and inputs[0].name in self.inside:
            self.inside.add(node.name)
            return True
        if packet in (*_PASSES, *_REDUCTIONS) and inputs[0].name in self.behind and self._last(node):
            self.behind[node.name] = self.behind[inputs[0].name]
            return True
        if packet == "add" and len(node.args) == 2 and not node.kwargs:
            self.inside.add(node.name)
            return len(inputs) == 2 and self._last(node) and all(self._summand(a) for a in inputs)
        if packet == "embedding":
            self.inside.add(node.name)
            return self._summand(inputs[0])
        if packet == "layer_norm":
            given = named_arguments(node)
            self.norms.append(node)
            self.behind[node.name] = node
            affine = [given.get(key) for key in ("weight", "bias")]
            return (given["input"].name in self.inside and len(given["normalized_shape"]) == 1
                    and all(a is None or a.name in self.sites for a in affine))
        return False

    def _takes_layer(self, layer: Layer) -> bool:
        if not layer.is_linear:
            return False
        dim = self.sites.get(layer.weight)
        if dim == 0 and layer.data not in self.inside and layer.data not in self.behind:
            self.writers.append(layer)
            self.inside.add(layer.node.name)
            return layer.bias is None or self.sites.get(layer.bias) == 0
        if dim == 1 and layer.data in self.behind:
            self.readers[layer.node.name] = self.behind[layer.data]
            return True
        return False

    def _summand(self, node: fx.Node) -> bool:
        if node.name in self.sites:
            value = node.meta["val"]
            self.tables[node.name] = self.sites[node.name]
            return bool(self.sites[node.name] == value.ndim - 1)
        return node.name in self.inside

    def _last(self, node: fx.Node) -> bool:
        """Whether the units still lie along the last dimension."""
        carried = self.graph.program.carried.get(node.name)
        return carried is not None and len(carried) == 1 and carried[0][0] == node.meta["val"].ndim - 1
