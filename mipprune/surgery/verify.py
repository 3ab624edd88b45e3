"""Check that surgery computed what masking promised."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch
from torch import nn

from ..errors import VerificationError
from ..game.data import LabelledData
from ..graph import UnitGraph
from ..records import Record

__all__ = ["Verification", "verify"]


@dataclasses.dataclass(frozen=True, eq=False)
class Verification(Record):
    """Masked dense network against the smaller network, on the same inputs.

    Attributes:
        max_abs_diff: largest absolute difference of any output.
        scale: largest absolute output of the masked network.
        n_samples: samples compared.
    """

    max_abs_diff: float
    scale: float
    n_samples: int


def verify(
    graph: UnitGraph, kept: np.ndarray, small: nn.Module, data: LabelledData, tolerance: float = 1e-4
) -> Verification:
    """Run the masked dense network and ``small`` on ``data`` and compare the outputs.

    Args:
        graph: the traced dense network.
        kept: bool (n_units,), the mask.
        small: what surgery made of it.
        data: samples; targets aren't used.
        tolerance: largest difference allowed, relative to the largest output (or 1).

    Raises:
        VerificationError: they differ by more than ``tolerance * max(1, largest output)``, or ``small`` doesn't run.
    """
    worst, scale = 0.0, 0.0
    runner = copy.deepcopy(small).eval()
    first = next(p for p in graph.model.parameters() if p.is_floating_point())
    gates = torch.from_numpy(np.array(kept, dtype=bool)).to(first.device, first.dtype)
    with torch.no_grad():
        for part in data.batches():
            masked = graph.program.run(part.inputs, gates)
            try:
                output = first_tensor(runner(*part.inputs))
            except RuntimeError as error:
                raise VerificationError(f"the pruned network doesn't run: {error}. A size written as a number in "
                                        f"forward is the usual cause; keep that layer with pin=") from error
            if output.shape != masked.shape:
                raise VerificationError(f"the pruned network's output has shape {tuple(output.shape)}, "
                                        f"the masked network's {tuple(masked.shape)}")
            worst = float(np.maximum(worst, float((masked - output).abs().max())))  # np.maximum hands NaN on
            scale = float(np.maximum(scale, float(masked.abs().max())))
    if not worst <= tolerance * max(1.0, scale):  # also when a difference is NaN
        raise VerificationError(f"the pruned network differs from the masked one by {worst:.3g} (outputs up to "
                                f"{scale:.3g}); the model's forward and its traced graph disagree")
    return Verification(worst, scale, len(data))


def first_tensor(output: object) -> torch.Tensor:
    """The first tensor of whatever a ``forward`` returns (a tensor, a tuple, a dict-like output)."""
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    if not leaves:
        raise VerificationError("forward returned no tensor")
    return leaves[0]
