"""How much the network's output minds errors in what a layer puts out: K-FAC's output factor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import fx

from ..game.data import LabelledData
from ..graph import Layer, UnitGraph
from ..graph.capture import int_at, is_integer_node, shape_at
from ..graph.values import batch_dim
from .positive import gram

__all__ = ["PROBES", "TEMPERATURE", "enough", "output_metrics", "output_part", "position_metrics", "position_part",
           "pulled_back", "several_positions", "unit_trace"]

#: Softens the logits that smaller networks are compared with the dense one by: the wrong classes' ranking counts, not
#: only the winner.  And the random probes per sample of the curvature there.
TEMPERATURE, PROBES = 4.0, 2

#: Layers with more positions are left to count them alike: the metric would be as large as the layer's data.
MOST_POSITIONS = 256
#: Samples that are enough for metrics that only weigh errors against one another.
ENOUGH = 512


def output_metrics(
    graph: UnitGraph, data: LabelledData, layers: list[Layer], *, temperature: float = 1.0, probes: int | None = None,
    seed: int = 0, batch_size: int = 256,
) -> dict[str, torch.Tensor]:
    """Per layer, ``M = mean over samples of sum over positions of J' B J``: float64 (m, m), by node name.

    J is the Jacobian of the logits in the layer's output at one position, B = (diag p - p p') / t^2 the Hessian of the
    KL divergence to the dense network's softened probabilities p = softmax(logits / t) (M is the Gauss-Newton
    output factor of K-FAC, 1503.05671 sec. 3, positions uncorrelated as in 1602.01407).  An error with
    covariance S in the output costs about ``tr(M S) / 2`` nats, but for the factor t^2 that distillation restores.

    Args:
        graph: the traced network.
        data: calibration samples; targets aren't used.
        layers: of the network, see :func:`mipprune.graph.find_layers`.
        temperature: t.
        probes: random sign combinations of the C rows of B's square root, each one backward pass, an unbiased
            estimate; ``None`` takes the C rows themselves.
        seed: of the signs.
        batch_size: samples at a time.
    """
    names = {layer.node.name: layer for layer in layers}
    out: dict[str, torch.Tensor] = {}
    for _, gradients in pulled_back(graph, data, set(names), temperature, probes, seed, batch_size):
        for name, gradient in gradients.items():
            out[name] = out.get(name, 0) + output_part(names[name], gradient)
    return {name: m / len(data) for name, m in out.items()}


def output_part(layer: Layer, gradient: torch.Tensor) -> torch.Tensor:
    """A gradient's part of :func:`output_metrics`: float64 (m, m)."""
    return gram(layer.outputs(gradient, 1)[0]).double()


def position_metrics(
    graph: UnitGraph, data: LabelledData, nodes: Mapping[str, int], *, temperature: float = 1.0,
    probes: int | None = None, seed: int = 0, batch_size: int = 256,
) -> dict[str, torch.Tensor]:
    """How much errors at the positions of a value count, alone and together: float64 (P, P) with trace P.

    The other factor of :func:`output_metrics`: ``G = mean over samples of sum over channels of J' B J``, J the Jacobian
    of the logits in one channel at all P positions.  Where a mean over positions follows, errors that agree count P
    times as much as those that cancel, and positions that nothing reads count nothing.  With the channels' factor M,
    an error E (m, P) of one sample costs about ``tr(M E G E') / (2 P)``: the metric of a matrix normal distribution.

    Args:
        nodes: name of an operation -> the dimension that its channels lie along.
        graph, data, temperature, probes, seed, batch_size: as for :func:`output_metrics`.

    Returns:
        By node name; without the values that have one position, more than MOST_POSITIONS, or no samples first.
    """
    wanted = several_positions(graph, nodes)
    out: dict[str, torch.Tensor] = {}
    for _, gradients in pulled_back(graph, data, wanted, temperature, probes, seed, batch_size) if wanted else ():
        for name, gradient in gradients.items():
            out[name] = out.get(name, 0) + position_part(gradient, nodes[name])
    return unit_trace(out)


def several_positions(graph: UnitGraph, nodes: Mapping[str, int]) -> set[str]:
    """The values that :func:`position_metrics` measures."""
    values = {node.name: node.meta["val"] for node in graph.program.captured.nodes if node.name in nodes}
    return {name for name, value in values.items() if 1 < _positions(value, nodes[name]) <= MOST_POSITIONS}


def position_part(gradient: torch.Tensor, channel_dim: int) -> torch.Tensor:
    """A gradient's part of :func:`position_metrics`: float64 (P, P)."""
    rows = gradient.movedim(channel_dim, -1)
    return gram(rows.reshape(len(rows), -1, rows.shape[-1]).transpose(0, 1).flatten(1)).double()  # of (P, N m)


def unit_trace(metrics: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with as much trace as rows; without those that are 0."""
    return {name: g * (len(g) / g.trace()) for name, g in metrics.items() if g.trace() > 0}


def _positions(value: torch.Tensor, channel_dim: int) -> int:
    """Positions per sample, as traced; 0 where samples don't come first."""
    if batch_dim(value) != 0:
        return 0
    return math.prod(shape_at(value.shape, 1)[1:]) // max(1, int_at(value.shape[channel_dim], 1))


def enough(data: LabelledData) -> LabelledData:
    """At most ENOUGH samples, spread over ``data``, which may be sorted by class."""
    return data if len(data) <= ENOUGH else data.take(torch.linspace(0, len(data) - 1, ENOUGH).long())


def pulled_back(
    graph: UnitGraph, data: LabelledData, nodes: Set[str], temperature: float, probes: int | None, seed: int,
    batch_size: int,
) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """The values ``nodes``, and the gradients in them of probes of the softened divergence's curvature, batch by batch.

    The mean of their outer products over all that is yielded, for the samples of a batch, is ``J' B J``.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in data.batches(batch_size):
        with torch.enable_grad():
            logits, outputs = _run_marked(graph, part, nodes)
        p = torch.softmax(logits.detach() / temperature, -1)
        root = (torch.diag_embed(p.sqrt()) - p[..., :, None] * p.sqrt()[..., None, :]) / temperature  # B = root root'
        if probes is None:
            rows = list(root.unbind(-1))
        else:
            signs = torch.randint(0, 2, (probes, *p.shape), generator=generator).to(p) * 2 - 1
            rows = [(root @ s[..., None])[..., 0] / probes**0.5 for s in signs]
        for k, row in enumerate(rows):
            gradients = torch.autograd.grad(
                logits, list(outputs.values()), row, retain_graph=k + 1 < len(rows), allow_unused=True
            )
            found = {name: g for name, g in zip(outputs, gradients, strict=True) if g is not None}
            yield {name: value.detach() for name, value in outputs.items()}, found


def _run_marked(graph: UnitGraph, part: LabelledData, marked: Set[str]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The logits, and the values of the nodes ``marked`` as differentiable intermediates."""
    program = graph.program
    env: dict[str, Any] = dict(zip(program.captured.inputs, part.inputs, strict=True))
    tensors = program.dense_tensors()
    outputs: dict[str, torch.Tensor] = {}
    node: fx.Node
    for node in program.captured.nodes:
        if is_integer_node(node):
            continue
        value = program.apply(node, env, tensors, len(part))
        if node.name in marked:
            value = value.requires_grad_(True) if not value.requires_grad else value
            outputs[node.name] = value
        env[node.name] = value
    return env[program.captured.output.name], outputs
