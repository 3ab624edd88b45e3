"""What masks do to the logits: the real network in float64, or a layer with an auxiliary head."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch

from ..bounds import PiecewiseLinear
from ..game import LabelledData
from ..graph import UnitGraph

__all__ = ["Oracle", "head_oracle", "network_oracle"]

#: Masks bool (M, n_units) -> logits float64 (M, N, C).
Oracle: TypeAlias = Callable[[np.ndarray], np.ndarray]

#: Forward passes of one sample at a time.
_BATCH = 4096


def network_oracle(graph: UnitGraph, data: LabelledData) -> Oracle:
    """The masked network itself, run in float64 by the traced program: nothing of the mixed-integer program is used."""
    program = copy.copy(graph.program)
    program.model = copy.deepcopy(graph.model).double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in data.inputs)
    n = len(data)

    def logits(masks: np.ndarray) -> np.ndarray:
        masks = np.atleast_2d(masks)
        parts = []
        step = max(1, _BATCH // n)
        for start in range(0, len(masks), step):
            some = torch.from_numpy(masks[start : start + step].astype(np.float64)).to(inputs[0].device)
            batch = tuple(x.repeat(len(some), *[1] * (x.ndim - 1)) for x in inputs)
            with torch.no_grad():
                out = program.run(batch, some.repeat_interleave(n, 0))
            parts.append(out.reshape(len(some), n, -1).cpu().numpy())
        return np.concatenate(parts)

    return logits


def head_oracle(network: PiecewiseLinear, x: np.ndarray) -> Oracle:
    """A piecewise-linear network run in numpy; for layers with a head, which the real network doesn't have."""

    def logits(masks: np.ndarray) -> np.ndarray:
        return np.stack([network.output(x, mask) for mask in np.atleast_2d(masks)])

    return logits
