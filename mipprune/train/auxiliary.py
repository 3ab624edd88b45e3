"""The decoupled layer of 2002.07259 with its small convolutional head: a network of its own, on cached activations."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from ..errors import DataError
from ..game.data import LabelledData, as_data
from ..graph import UnitGraph
from .fine_tuning import fine_tune

__all__ = ["AuxiliaryNetwork", "DecoupledLayer", "fit_conv_head"]


class AuxiliaryNetwork(nn.Module):
    """A classifier on one layer's activations: an identity that carries the layer's units, and a small head.

    Args:
        n_units: channels of the activations.
        width: channels of the head's convolution.
        classes: number of classes.
        scale: multiplies the activations before the head; 1 over their root mean square trains well.
    """

    def __init__(self, n_units: int, width: int, classes: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.units = nn.Conv2d(n_units, n_units, 1, bias=False).requires_grad_(False)
        nn.init.dirac_(self.units.weight)
        self.head = nn.Sequential(
            nn.Conv2d(n_units, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(4 * width, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of the activations ``x``, (N, n_units, height, width)."""
        return self.head(self.scale * self.units(x))


@dataclasses.dataclass(frozen=True)
class DecoupledLayer:
    """One layer as a problem of its own: trace ``network`` on ``data`` and use any tool on its layer ``"units"``.

    Attributes:
        network: trained, in evaluation mode; unit i of its layer "units" is unit i of the original layer's group.
        data: the layer's activations as inputs, with the targets.
        losses: validation loss before training and after every epoch.
        accuracy: of the head on the validation samples; low means that the layer's task isn't readable here.
    """

    network: AuxiliaryNetwork
    data: LabelledData
    losses: tuple[float, ...]
    accuracy: float


def fit_conv_head(
    graph: UnitGraph, layer: str, data: Any, *, width: int = 16, epochs: int = 40, lr: float = 1e-2, seed: int = 0,
    progress: bool = False,
) -> DecoupledLayer:
    """Train a convolutional head on the activations of ``layer``, computed once.

    The head is convolution (3x3), ReLU, means over the four quarters of the image, linear: what 2002.07259 puts behind
    every layer to score it alone (our sizes and training).  Its loss isn't convex in the mask; for a convex layer
    problem use :func:`~mipprune.curvature.fit_linear_head`.  A fifth of the samples picks the epoch.

    Args:
        graph: the traced network.
        layer: module path of a convolution.
        data: calibration data in any form that :func:`mipprune.prune` takes.
        width: channels of the head.
        epochs, lr: of :func:`~mipprune.train.fine_tune`.
        seed: of the head's weights, the split and the order of the samples.

    Raises:
        DataError: the layer's units are no channels of images.
        UnknownLayerError: no such layer.
    """
    group, samples = graph.group(layer), as_data(data, graph)
    activations = _channels(graph, group.units, samples)
    with torch.no_grad():
        classes = int(graph.program.run(samples.take(slice(0, 1)).inputs).shape[-1])
    cached = LabelledData((activations,), samples.targets)
    scale = float(activations.double().square().mean().sqrt())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AuxiliaryNetwork(group.size, width, classes, 1.0 / scale if scale else 1.0)
    network = network.to(activations.device, activations.dtype)
    train, validation = cached.split(0.2, seed)
    tuned = fine_tune(
        network, (train.inputs[0], train.targets), validation=(validation.inputs[0], validation.targets),
        epochs=epochs, lr=lr, seed=seed, progress=progress,
    )
    trained = tuned.model.eval()
    assert isinstance(trained, AuxiliaryNetwork)
    with torch.no_grad():
        right = (trained(validation.inputs[0]).argmax(1) == validation.targets).double().mean()
    return DecoupledLayer(trained, cached, tuned.losses, float(right))


@torch.no_grad()
def _channels(graph: UnitGraph, units: slice, samples: LabelledData) -> torch.Tensor:
    """What the units hand to their first reader: (N, n, H, W)."""
    program, size = graph.program, units.stop - units.start
    reader = next(node for node in program.captured.nodes if program.reads(node.name, units))
    read = program.read_of(reader)
    problem = DataError(
        "fit_conv_head: the layer's units aren't channels of images when they are first read; use fit_linear_head"
    )
    if read is None or read.argument != 0 or read.batch != 0 or read.dim != 1:
        raise problem
    own = (read.units >= units.start) & (read.units < units.stop)
    numbers = read.units[own] - units.start
    if len(numbers) != size or len(numbers.unique()) != size:
        raise problem
    source = reader.all_input_nodes[0].name
    parts = []
    for part in samples.batches():
        env = dict(zip(program.captured.inputs, part.inputs, strict=True))
        parts.append(program.values(env, {source})[source])
    found = torch.cat(parts)
    if found.ndim != 4:
        raise problem
    index = torch.nonzero(own)[:, 0][numbers.argsort()]
    return found[:, index.to(found.device)]
