"""Where accuracy is lost: what each group's mask costs alone, and how far batch-norm's inputs have moved."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..curvature.output_metric import enough
from ..game import LabelledData
from ..graph import UnitGraph
from ..graph.capture import is_integer_node, shape_at
from ..graph.describe import module_path
from ..graph.layers import named_arguments
from ..records import Record

__all__ = ["Diagnosis", "diagnose"]

#: Samples at a time, of which the dense values of all operations are kept, if these take no more bytes than that.
BATCH, MOST_MEMORY = 128, 2**29


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis(Record):
    """The masked network taken apart, before any repair.

    Attributes:
        groups: names, in the order of the other fields.
        loss, accuracy: float64 (G,): of the dense network with the mask on that group alone.
        norms: module paths of the batch-norm layers.
        shifts: float64 (len(norms),): how far the mean of each one's input moved under the whole mask, in its own
            standard deviations, root mean square over the kept and removed channels alike.
    """

    groups: tuple[str, ...]
    loss: np.ndarray
    accuracy: np.ndarray
    norms: tuple[str, ...]
    shifts: np.ndarray

    def __str__(self) -> str:
        order = np.argsort(-self.loss)[:3]
        parts = [f"{self.groups[g]} alone: loss {self.loss[g]:.3f}, accuracy {self.accuracy[g]:.2%}" for g in order]
        text = "most is lost in " + "; ".join(parts)
        if len(self.norms):
            worst = int(np.argmax(self.shifts))
            text += f"; inputs of batch-norm {self.norms[worst]} moved by {self.shifts[worst]:.2f} standard deviations"
        return text


@torch.no_grad()
def diagnose(graph: UnitGraph, kept: np.ndarray, data: LabelledData) -> Diagnosis:
    """The dense network once, every group's mask from where it first acts, and all masks together for batch-norm.

    Over at most :data:`~mipprune.curvature.output_metric.ENOUGH` samples, spread over ``data``: more say nothing more
    about where the loss comes from.
    """
    data = enough(data)
    dtype = next(p.dtype for p in graph.model.parameters() if p.is_floating_point())
    gates = torch.from_numpy(kept.copy()).to(data.targets.device, dtype)
    program = graph.program
    nodes = [node for node in program.captured.nodes if not is_integer_node(node)]
    everything = {node.name for node in nodes}
    batch = min(BATCH, max(1, MOST_MEMORY // max(1, sum(_bytes(node.meta["val"]) for node in nodes))))
    loss, right = np.zeros(len(graph.groups)), np.zeros(len(graph.groups))
    for part in data.batches(batch):
        values = program.values(dict(zip(program.captured.inputs, part.inputs, strict=True)), everything)
        for number, group in enumerate(graph.groups):
            logits = values[program.captured.output.name]
            if not kept[group.units].all():
                logits = program.resume(part.inputs, values, group.units, gates)
            loss[number] += float(F.cross_entropy(logits.double(), part.targets.long(), reduction="sum"))
            right[number] += int((logits.argmax(1) == part.targets).sum())
    norms, shifts = _shifts(graph, gates, data)
    names = tuple(group.name for group in graph.groups)
    return Diagnosis(names, loss / len(data), right / len(data), norms, np.array(shifts))


def _bytes(value: Any) -> int:
    """Of one sample of a traced result."""
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return sum(math.prod(shape_at(x.shape, 1)) * x.element_size() for x in parts if isinstance(x, torch.Tensor))


def _shifts(graph: UnitGraph, gates: torch.Tensor, data: LabelledData) -> tuple[tuple[str, ...], list[float]]:
    captured = graph.program.captured
    nodes = [n for n in captured.nodes if str(n.target) == "aten.batch_norm.default"]
    inputs = {node.name: named_arguments(node)["input"].name for node in nodes}
    sums: dict[str, torch.Tensor] = {}
    count: dict[str, int] = {}
    for part in data.batches():
        env = dict(zip(captured.inputs, part.inputs, strict=True))
        values = graph.program.values(env, set(inputs.values()), gates)
        for name, source in inputs.items():
            x = values[source].double().transpose(0, 1).flatten(1)
            sums[name] = sums.get(name, 0) + x.sum(1)
            count[name] = count.get(name, 0) + x.shape[1]
    tensors = graph.program.dense_tensors()
    paths, shifts = [], []
    for node in nodes:
        given = named_arguments(node)
        mean, var = tensors[given["running_mean"].name].double(), tensors[given["running_var"].name].double()
        moved = (sums[node.name] / count[node.name] - mean) / (var + given["eps"]).sqrt()
        paths.append(module_path(node))
        shifts.append(float(moved.square().mean().sqrt()))
    return tuple(paths), shifts
