"""What errors inside the dense network cost at its output, measured in one pass for all that asks."""

from __future__ import annotations

import functools

import torch

from ..game.data import LabelledData
from ..graph import Stream, UnitGraph, find_layers, find_streams
from .output_metric import (
    PROBES,
    TEMPERATURE,
    enough,
    output_part,
    position_part,
    pulled_back,
    several_positions,
    unit_trace,
)
from .stream_basis import minded_part, stream_basis

__all__ = ["Sensitivity"]


class Sensitivity:
    """The metrics of the dense network's layers, positions and streams, computed when first asked for.

    All are parts of the Gauss-Newton matrix of the divergence softened by TEMPERATURE, from PROBES random probes of at
    most :data:`~mipprune.curvature.output_metric.ENOUGH` samples, and come from the same backward passes.  Against
    all samples and all rows of the divergence's curvature, refit errors move by 1 to 5%; against another half of the
    samples they move by 5 to 10% anyway.  Targets aren't used, so that one instance serves every split of the data.

    Args:
        graph: the traced dense network.
        data: samples to measure on.
        seed: of the probes.
    """

    def __init__(self, graph: UnitGraph, data: LabelledData, seed: int = 0) -> None:
        self.graph, self.data, self.seed = graph, data, seed

    @property
    def outputs(self) -> dict[str, torch.Tensor]:
        """Node name of a layer -> its :func:`output_metrics`, times TEMPERATURE squared: float64 (m, m), in nats."""
        return self._measured[0]

    @property
    def positions(self) -> dict[str, torch.Tensor]:
        """:func:`~mipprune.curvature.output_metric.position_metrics` of layers, and of the sums that they feed."""
        return self._measured[1]

    @functools.cached_property
    def streams(self) -> list[tuple[Stream, torch.Tensor]]:
        """The residual streams and their directions (:func:`~mipprune.curvature.stream_basis.stream_basis`)."""
        parts = self._measured[2] if self._streams else {}
        found = []
        for stream in self._streams:
            minded = torch.stack([parts[name] for name in sorted(stream.sources)]).sum(0)
            found.append((stream, stream_basis(self.graph, self.data, stream, minded=minded)))
        return found

    @functools.cached_property
    def _streams(self) -> list[Stream]:
        return find_streams(self.graph)

    @functools.cached_property
    def _measured(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        layers = find_layers(self.graph.program)
        single = {layer.node.name: layer for layer in layers if layer.groups == 1}
        dims = {layer.node.name: layer.channel_dim for layer in layers}
        dims |= {layer.total.name: layer.channel_dim for layer in layers if layer.total is not None}
        several = several_positions(self.graph, dims)
        read = {name for stream in self._streams for name in stream.sources}
        outputs: dict[str, torch.Tensor] = {}
        positions: dict[str, torch.Tensor] = {}
        streams: dict[str, torch.Tensor] = {}
        data = enough(self.data)
        wanted = {*single, *several, *read}
        passes = pulled_back(self.graph, data, wanted, TEMPERATURE, PROBES, self.seed, 256)
        for values, gradients in passes if wanted else ():
            for name, gradient in gradients.items():
                if name in single:
                    outputs[name] = outputs.get(name, 0) + output_part(single[name], gradient)
                if name in several:
                    positions[name] = positions.get(name, 0) + position_part(gradient, dims[name])
                if name in read:
                    streams[name] = streams.get(name, 0) + minded_part(values[name], gradient)
        outputs = {name: m * (TEMPERATURE**2 / len(data)) for name, m in outputs.items()}
        return outputs, unit_trace(positions), streams
