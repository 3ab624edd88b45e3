"""A narrower residual stream that holds the dense one's main directions, not some of its coordinates."""

from __future__ import annotations

import torch

from ..curvature.stream_basis import stream_projection
from ..graph import Stream
from ..graph.layers import named_arguments
from .cut import CutNetwork
from .dense import DenseRun

__all__ = ["project_streams"]


def project_streams(cut: CutNetwork, dense: DenseRun) -> dict[str, torch.Tensor]:
    """Rotate and project every stream that lost units, in the tensors of ``cut``.

    With P the projection (n, k): writers and tables put out P'x; the norms lose their own weights, which the layers
    behind take over: ``W norm(x)`` becomes ``sqrt(n / k) W diag(gain) P norm(P'x)``, equal to it as far as P holds x.
    The refits that follow bring every layer as near to the dense network as what it reads allows.

    Returns:
        Node name of every writer's weight -> P', float64 (k, n): what takes its dense outputs to its targets.
    """
    found: dict[str, torch.Tensor] = {}
    graph = cut.graph
    counts = graph.costs.counts(cut.kept)
    for stream, basis in dense.streams:
        size, count = graph.groups[stream.group].size, int(counts[stream.group])
        if 0 < count < size:
            down = stream_projection(basis, count).T
            _project(cut, dense, stream, down, (size / count) ** 0.5)
            found.update({layer.weight: down for layer in stream.writers})
    return found


def _project(cut: CutNetwork, dense: DenseRun, stream: Stream, down: torch.Tensor, scale: float) -> None:
    tensors = cut.graph.program.dense_tensors()

    def put(name: str, value: torch.Tensor) -> None:
        cut.tensors[name] = value.to(cut.tensors[name].dtype)

    for layer in stream.writers:
        index = cut.kept_index(layer.weight, 1)
        weight = tensors[layer.weight].double()
        put(layer.weight, down @ (weight if index is None else weight.index_select(1, index)))
        if layer.bias is not None:
            put(layer.bias, down @ tensors[layer.bias].double())
    for name, dim in stream.tables.items():
        put(name, (tensors[name].double().movedim(dim, -1) @ down.T).movedim(-1, dim))
    for name, norm in stream.readers.items():
        layer, given = dense.layers[name], named_arguments(norm)
        weight = tensors[layer.weight].double()
        index = cut.kept_index(layer.weight, 0)
        weight = weight if index is None else weight.index_select(0, index)
        if given.get("bias") is not None and layer.bias is not None:
            shift = weight @ tensors[given["bias"].name].double()
            put(layer.bias, cut.tensors[layer.bias].double() + shift)
        if given.get("weight") is not None:
            weight = weight * tensors[given["weight"].name].double()
        put(layer.weight, scale * weight @ down.T)
    for norm in stream.norms:
        given = named_arguments(norm)
        for key, value in (("weight", 1.0), ("bias", 0.0)):
            if given.get(key) is not None:
                cut.tensors[given[key].name].fill_(value)
