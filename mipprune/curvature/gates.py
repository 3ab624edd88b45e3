"""Second-order expansion of the loss in the gates of the units: gradient and Gauss-Newton curvature."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import ModelStateError
from ..game.data import LabelledData
from ..game.values import check_class_targets
from ..graph import UnitGraph
from ..records import Record, frozen_array

__all__ = ["GateExpansion", "expand_gates", "float_type"]


@dataclasses.dataclass(frozen=True, eq=False)
class GateExpansion(Record):
    """Mean cross-entropy around the mask ``kept``, in the gates of the units.

    Removing the units ``z`` (a 0/1 vector over units that are still on) raises the loss by about
    ``gradient @ z + 1/2 z' H z``, H block diagonal over the groups: units of different groups are taken to act
    independently.

    Attributes:
        gradient: float64 (n_units,), minus the derivative in the gates; 0 for units that are off.
        curvature: per group a float64 matrix (size, size), the generalised Gauss-Newton block, positive semidefinite.
        loss: mean cross-entropy at ``kept``, in nats.
        kept: bool (n_units,), the mask of the expansion.
        joint: float64 (n_units, n_units), the whole matrix, across groups too, where it was asked for; else (0, 0).
    """

    gradient: np.ndarray
    curvature: tuple[np.ndarray, ...]
    loss: float
    kept: np.ndarray
    joint: np.ndarray = dataclasses.field(default_factory=lambda: frozen_array(np.zeros((0, 0))))


def expand_gates(
    graph: UnitGraph, data: LabelledData, kept: np.ndarray | None = None, batch_size: int = 256,
    joint: bool = False,
) -> GateExpansion:
    """Expand the mean cross-entropy of the masked network in its gates.

    With J_k the Jacobian of sample k's logits in its gates, p_k its class probabilities and B_k = diag(p_k) - p_k p_k',
    the gradient is ``-mean J_k'(p_k - e_y)`` and the curvature ``mean J_k' B_k J_k`` (Schraudolph 2002's generalised
    Gauss-Newton matrix, in gates instead of weights).  B_k = S S' with S = (I - p 1') diag(sqrt p), so each class adds
    one row.  Costs C backward passes over the data for C classes, and O(N C size^2) for each group.

    Args:
        graph: the traced network.
        data: calibration samples.
        kept: bool (n_units,), where to expand; all units on by default.
        joint: compute curvature across groups too, O(N C n_units^2) and as many float64 as units squared.
        batch_size: samples at a time; the result doesn't depend on it beyond rounding.

    Raises:
        DataError: targets that aren't class numbers of the network's logits.
        ModelStateError: the loss isn't finite.
    """
    n = graph.n_units
    kept = np.ones(n, dtype=bool) if kept is None else np.asarray(kept, dtype=bool)
    gradient = np.zeros(n)
    blocks = [np.zeros((g.size, g.size)) for g in graph.groups]
    whole = np.zeros((n, n) if joint else (0, 0))
    loss = 0.0
    for part in data.batches(batch_size):
        gates = torch.tensor(kept).to(part.inputs[0].device, float_type(graph)).repeat(len(part), 1)
        gates.requires_grad_(True)
        logits = graph.program.run(part.inputs, gates)
        check_class_targets(logits, part.targets, "calibration data")
        loss += float(F.cross_entropy(logits.detach().double(), part.targets, reduction="sum"))
        rows = _jacobian(logits, gates) * gates.detach()[:, None].double()
        p = torch.softmax(logits.detach().double(), 1)
        error = p - F.one_hot(part.targets.long(), logits.shape[1])
        gradient -= torch.einsum("kc,kcu->u", error, rows).cpu().numpy()
        rows = p.sqrt()[..., None] * (rows - torch.einsum("kc,kcu->ku", p, rows)[:, None])
        for block, group in zip(blocks, graph.groups, strict=True):
            own = rows[..., group.units].reshape(-1, group.size)
            block += (own.T @ own).cpu().numpy()
        if joint:
            flat = rows.flatten(0, 1)
            whole += (flat.T @ flat).cpu().numpy()
    if not np.isfinite(loss):
        raise ModelStateError(f"the loss of the masked network is {loss}; look for overflow in its weights")
    scale = 1.0 / len(data)
    return GateExpansion(
        frozen_array(gradient * scale), tuple(frozen_array(b * scale) for b in blocks), loss * scale,
        frozen_array(kept, bool), frozen_array(whole * scale),
    )


def _jacobian(logits: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Per-sample Jacobian of the logits in the gates: float64 of shape (N, C, n_units)."""
    columns = []
    for c in range(logits.shape[1]):
        (row,) = torch.autograd.grad(logits[:, c].sum(), gates, retain_graph=c + 1 < logits.shape[1])
        columns.append(row.double())
    return torch.stack(columns, 1)


def float_type(graph: UnitGraph) -> torch.dtype:
    """What the network computes in."""
    return next(p.dtype for p in graph.model.parameters() if p.is_floating_point())
