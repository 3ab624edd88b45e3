"""Costs as torch's own counter sees them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["counted_costs"]


def counted_costs(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Multiply-adds of one sample by ``FlopCounterMode``, and the number of parameters.

    The counter doesn't know the fused attention kernels of a CPU, so they are switched off meanwhile.
    """
    frozen = [p for p in model.parameters() if p.requires_grad]
    for p in frozen:  # the counter's module tracker stumbles over views of parameters made without gradients
        p.requires_grad_(False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for p in frozen:
            p.requires_grad_(True)
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters())
