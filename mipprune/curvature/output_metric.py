"""How much the network's output minds errors in what a layer puts out: K-FAC's output factor."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..game.data import LabelledData
from ..graph import Layer, UnitGraph
from ..graph.capture import is_integer_node

__all__ = ["output_metrics"]


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
    generator = torch.Generator().manual_seed(seed)
    names = {layer.node.name: layer for layer in layers}
    out: dict[str, torch.Tensor] = {}
    for part in data.batches(batch_size):
        logits, outputs = _run_marked(graph, part, set(names))
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
            for name, gradient in zip(outputs, gradients, strict=True):
                if gradient is None:
                    continue
                columns = names[name].outputs(gradient, 1)[0]
                out[name] = out.get(name, 0) + (columns @ columns.T).double()
    return {name: m / len(data) for name, m in out.items()}


def _run_marked(graph: UnitGraph, part: LabelledData, marked: set[str]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
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
