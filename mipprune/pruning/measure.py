"""Loss and accuracy of a network as it is deployed."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ModelStateError
from ..game.data import LabelledData
from ..game.values import check_class_targets
from ..records import Record
from ..surgery.verify import first_tensor

__all__ = ["ROWS", "Quality", "logits_on", "measure", "rate"]

#: Logits are turned into double precision so many samples at a time: with many classes all at once would be gigabytes.
ROWS = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Quality(Record):
    """Mean cross-entropy in nats, share of correct predictions, and on how many samples."""

    loss: float
    accuracy: float
    n_samples: int


def measure(model: nn.Module, data: LabelledData, what: str = "calibration data") -> Quality:
    """Run ``model`` (as it is, in its present mode) on ``data``; sums are float64.

    Raises:
        DataError: targets that aren't class numbers of the model's logits.
        ModelStateError: the loss isn't finite.
    """
    return rate(logits_on(model, data), data, what)


@torch.no_grad()
def logits_on(model: nn.Module, data: LabelledData) -> torch.Tensor:
    """The model's first output for all of ``data``, (N, ...)."""
    return torch.cat([first_tensor(model(*part.inputs)) for part in data.batches()])


def rate(logits: torch.Tensor, data: LabelledData, what: str) -> Quality:
    """:func:`measure` for known ``logits``."""
    check_class_targets(logits, data.targets, what)
    parts = zip(logits.split(ROWS), data.targets.long().split(ROWS), strict=True)
    loss = sum(float(F.cross_entropy(some.double(), y, reduction="sum")) for some, y in parts) / len(data)
    if not loss < float("inf"):
        raise ModelStateError(f"the mean cross-entropy on the {what} is {loss}")
    return Quality(loss, float((logits.argmax(1) == data.targets).double().mean()), len(data))
