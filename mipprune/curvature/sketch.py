"""The expansion of the loss in all gates, also of units that are off, for a fraction of the exact one's passes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import ModelStateError
from ..game.data import LabelledData
from ..game.values import check_class_targets
from ..graph import UnitGraph
from ..records import frozen_array
from .gates import GateExpansion, float_type

__all__ = ["sketch_gates"]


def sketch_gates(
    graph: UnitGraph, data: LabelledData, kept: np.ndarray, temperature: float = 1.0, probes: int = 1, seed: int = 0,
    batch_size: int = 256,
) -> GateExpansion:
    """Expand the mean cross-entropy of the masked network in the gates of all units, the curvature by random probes.

    Unlike :func:`expand_gates`, units that are off have derivatives too: with ``d`` the change of the gates (-1 for a
    unit that leaves, +1 for one that comes back) the loss changes by about ``-gradient @ d + 1/2 d' H d``.

    The gradient is exact.  For the curvature ``mean J_k' B_k J_k``, B_k = S_k S_k' with
    S_k = (diag(p) - p p') diag(p)^(-1/2), every sample draws ``probes`` vectors v of independent signs: E[v v'] = 1
    makes ``(J_k' S_k v)(J_k' S_k v)'`` unbiased, and positive semidefinite (Hutchinson's probes, in the factored form
    of Bekas, Kokiopoulou and Saad 2007; the noise averages out over samples).  p are the class probabilities at
    ``temperature``: where a network is sure of itself the plain ones hardly bend.

    Costs ``1 + probes`` backward passes for any number of classes, and O(N probes n_units^2).

    Args:
        graph: the traced network.
        data: calibration samples.
        kept: bool (n_units,), where to expand.
        temperature: above 0; of the probabilities in the curvature only.
        probes: per sample, at least 1.
        seed: of the probes.
        batch_size: samples at a time.

    Raises:
        DataError: targets that aren't class numbers of the network's logits.
        ModelStateError: the loss isn't finite.
    """
    n, kept = graph.n_units, np.asarray(kept, dtype=bool)
    gradient, joint, loss = np.zeros(n), np.zeros((n, n)), 0.0
    generator = torch.Generator().manual_seed(seed)
    for part in data.batches(batch_size):
        gates = torch.tensor(kept).to(part.inputs[0].device, float_type(graph)).repeat(len(part), 1)
        gates.requires_grad_(True)
        logits = graph.program.run(part.inputs, gates)
        check_class_targets(logits, part.targets, "calibration data")
        summed = F.cross_entropy(logits.double(), part.targets.long(), reduction="sum")
        loss += float(summed.detach())
        (slope,) = torch.autograd.grad(summed, gates, retain_graph=True)
        gradient -= slope.double().sum(0).cpu().numpy()
        p = torch.softmax(logits.detach().double() / temperature, 1)
        for probe in range(probes):
            signs = torch.randint(2, p.shape, generator=generator).to(p) * 2 - 1
            weights = p.sqrt() * signs
            weights = weights - p * weights.sum(1, keepdim=True)
            (row,) = torch.autograd.grad((logits.double() * weights).sum(), gates, retain_graph=probe + 1 < probes)
            row = row.double()
            joint += (row.T @ row).cpu().numpy()
    if not np.isfinite(loss):
        raise ModelStateError(f"the loss of the masked network is {loss}; look for overflow in its weights")
    scale = 1.0 / len(data)
    joint *= scale / probes
    return GateExpansion(
        frozen_array(gradient * scale), tuple(frozen_array(joint[g.units, g.units]) for g in graph.groups),
        loss * scale, frozen_array(kept, bool), frozen_array(joint),
    )
