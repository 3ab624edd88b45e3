"""Value functions: how well a masked network works, per sample or as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import DataError

__all__ = ["VALUE_FUNCTIONS", "ValueFunction", "check_class_targets", "sample_values"]

#: A user's own value: ``fn(outputs, targets)`` with outputs (N, ...) -> a number, or one number per sample.
ValueFunction = Callable[[torch.Tensor, torch.Tensor], Any]


def _cross_entropy(outputs: torch.Tensor, targets: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    m, n, c = outputs.shape
    losses = F.cross_entropy(outputs.reshape(m * n, c).double(), targets.repeat(m), reduction="none")
    return -losses.reshape(m, n)


def _accuracy(outputs: torch.Tensor, targets: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(-1) == targets).double()


def _margin(outputs: torch.Tensor, targets: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    outputs = outputs.double()
    index = targets.expand(outputs.shape[:2])[..., None]
    others = outputs.scatter(-1, index, -torch.inf)
    return outputs.gather(-1, index)[..., 0] - others.amax(-1)


def _logit_distance(outputs: torch.Tensor, targets: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    return -(outputs.double() - dense.double()).flatten(2).norm(dim=-1)


#: name -> function of (outputs (M, N, C), targets (N,), dense outputs (N, C)) -> float64 (M, N), higher is better.
VALUE_FUNCTIONS = {
    "cross_entropy": _cross_entropy,
    "accuracy": _accuracy,
    "margin": _margin,
    "logit_distance": _logit_distance,
}


def sample_values(name: str, outputs: torch.Tensor, targets: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Per-sample values, float64 of shape (M, N):

    * ``"cross_entropy"``: minus the cross-entropy in nats,
    * ``"accuracy"``: 1 where the largest logit is the target's,
    * ``"margin"``: target logit minus the largest other,
    * ``"logit_distance"``: minus the Euclidean distance to the dense network's logits.
    """
    return VALUE_FUNCTIONS[name](outputs, targets, dense)


def check_class_targets(outputs: torch.Tensor, targets: torch.Tensor, what: str) -> None:
    """Raise :class:`DataError` unless ``targets`` are class numbers that the logits ``outputs`` (N, C) have."""
    if outputs.ndim != 2:
        raise DataError(f"{what}: the network's output has shape {tuple(outputs.shape)}; classification needs (N, C). "
                        f"Pass value= a callable of (outputs, targets)")
    if targets.ndim != 1 or targets.dtype not in (torch.int64, torch.int32, torch.uint8, torch.int16, torch.int8):
        raise DataError(f"{what}: the targets must be class numbers of shape (N,), "
                        f"got {targets.dtype} of shape {tuple(targets.shape)}")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= outputs.shape[1]:
        raise DataError(f"{what}: targets lie in {low}..{high}, the network has {outputs.shape[1]} classes")
