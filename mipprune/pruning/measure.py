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

__all__ = ["Quality", "measure"]


@dataclasses.dataclass(frozen=True, eq=False)
class Quality(Record):
    """Mean cross-entropy in nats, share of correct predictions, and on how many samples."""

    loss: float
    accuracy: float
    n_samples: int


@torch.no_grad()
def measure(model: nn.Module, data: LabelledData, what: str = "calibration data") -> Quality:
    """Run ``model`` (as it is, in its present mode) on ``data``; sums are float64.

    Raises:
        DataError: targets that aren't class numbers of the model's logits.
        ModelStateError: the loss isn't finite.
    """
    loss, right = 0.0, 0
    for part in data.batches():
        logits = first_tensor(model(*part.inputs))
        check_class_targets(logits, part.targets, what)
        loss += float(F.cross_entropy(logits.double(), part.targets.long(), reduction="sum"))
        right += int((logits.argmax(1) == part.targets).sum())
    if not loss < float("inf"):
        raise ModelStateError(f"the mean cross-entropy on the {what} is {loss / len(data)}")
    return Quality(loss / len(data), right / len(data), len(data))
