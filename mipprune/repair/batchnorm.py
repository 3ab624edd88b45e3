"""Fresh batch-norm statistics."""

from __future__ import annotations

import torch
from torch import nn

from ..game.data import LabelledData

__all__ = ["recalibrate_batch_norm"]


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, data: LabelledData, batch_size: int = 1024) -> int:
    """Re-estimate the running statistics of every batch-norm layer of ``model`` on ``data``, in place.

    Removing channels shifts what later layers see; one pass with fresh statistics undoes most of it.  No weight
    changes, and no layer but batch-norm is put in training mode.

    Args:
        model: changed in place.
        data: calibration samples; targets aren't used.
        batch_size: samples at a time at most; batches are of nearly equal size, for each counts the same.

    Returns:
        The number of layers recalibrated.
    """
    layers = [
        m for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats and m.running_mean is not None
    ]
    if not layers:
        return 0
    modes = [(m, m.training, m.momentum) for m in layers]
    for m in layers:
        m.reset_running_stats()
        m.momentum = None  # cumulative average: every batch counts the same
        m.train()
    try:
        parts = max(1, -(-len(data) // batch_size))
        for part in data.batches(-(-len(data) // parts)):
            model(*part.inputs)
    finally:
        for m, training, momentum in modes:
            m.train(training)
            m.momentum = momentum
    return len(layers)
