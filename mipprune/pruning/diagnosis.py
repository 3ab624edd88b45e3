"""Where accuracy is lost: what each group's mask costs alone, and how far batch-norm's inputs have moved."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from ..game import LabelledData
from ..graph import UnitGraph
from ..graph.describe import module_path
from ..graph.layers import named_arguments
from ..records import Record

__all__ = ["Diagnosis", "diagnose"]

#: More samples than this say nothing more about where the loss comes from.
MOST_SAMPLES = 1024


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
    """One pass per group and one for batch-norm, over at most :data:`MOST_SAMPLES` samples."""
    data = data.take(slice(0, MOST_SAMPLES))
    dtype = next(p.dtype for p in graph.model.parameters() if p.is_floating_point())
    device = data.targets.device
    loss, accuracy = [], []
    for group in graph.groups:
        gates = torch.ones(graph.n_units, dtype=dtype)
        gates[group.units] = torch.from_numpy(kept[group.units].copy()).to(dtype)
        total, right = 0.0, 0
        for part in data.batches():
            logits = graph.program.run(part.inputs, gates.to(device))
            total += float(F.cross_entropy(logits.double(), part.targets.long(), reduction="sum"))
            right += int((logits.argmax(1) == part.targets).sum())
        loss.append(total / len(data))
        accuracy.append(right / len(data))
    norms, shifts = _shifts(graph, torch.from_numpy(kept.copy()).to(device, dtype), data)
    return Diagnosis(tuple(g.name for g in graph.groups), np.array(loss), np.array(accuracy), norms, np.array(shifts))


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
