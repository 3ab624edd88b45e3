"""What a masked network must still do on the calibration samples, and whether given logits do it."""

from __future__ import annotations

import abc
import dataclasses

import numpy as np
from scipy.special import logsumexp

from ..records import Record

__all__ = ["Margin", "MeanLoss", "Requirement", "losses", "margins"]

#: Slack of the comparisons below: float64 rounding of logits.
TOLERANCE = 1e-9


def margins(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Logit of the right class minus the largest other one: (..., N) from (..., N, C)."""
    right = np.take_along_axis(logits, np.broadcast_to(targets[:, None], (*logits.shape[:-1], 1)), axis=-1)
    others = logits.copy()
    np.put_along_axis(others, np.broadcast_to(targets[:, None], (*logits.shape[:-1], 1)), -np.inf, axis=-1)
    return np.asarray(right[..., 0] - others.max(-1))


def losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Cross-entropy of every sample in nats: (..., N) from (..., N, C)."""
    right = np.take_along_axis(logits, np.broadcast_to(targets[:, None], (*logits.shape[:-1], 1)), axis=-1)
    return np.asarray(logsumexp(logits, axis=-1) - right[..., 0])


@dataclasses.dataclass(frozen=True, eq=False)
class Requirement(Record, abc.ABC):
    """A condition on the logits of all samples together.

    Methods take ``logits``, float64 (..., N, C), where the leading dimensions are masks, and ``targets``, the class
    numbers of the N samples, int64 (N,).
    """

    @abc.abstractmethod
    def met(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Whether logits (..., N, C) meet it: bool (...)."""

    @abc.abstractmethod
    def shortfall(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """How far logits (..., N, C) are from meeting it: (...), above 0 where they don't."""

    @abc.abstractmethod
    def describe(self, logits: np.ndarray, targets: np.ndarray) -> str:
        """The requirement beside what logits (N, C) reach, in words."""


@dataclasses.dataclass(frozen=True, eq=False)
class Margin(Requirement):
    """The right class wins by ``margin`` on all samples but ``max_violated``."""

    margin: float
    max_violated: int

    def violated(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Number of samples that miss the margin: (...)."""
        return np.asarray((margins(logits, targets) < self.margin - TOLERANCE).sum(-1))

    def met(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return self.violated(logits, targets) <= self.max_violated

    def shortfall(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        missing = np.sort(np.maximum(self.margin - margins(logits, targets), 0.0), axis=-1)
        return np.asarray(missing[..., : len(targets) - self.max_violated].sum(-1))

    def describe(self, logits: np.ndarray, targets: np.ndarray) -> str:
        return (f"a margin of {self.margin:g} on all but {self.max_violated} of {len(targets)} samples "
                f"({int(self.violated(logits, targets))} miss it)")


@dataclasses.dataclass(frozen=True, eq=False)
class MeanLoss(Requirement):
    """The mean cross-entropy is at most ``limit`` nats."""

    limit: float

    def met(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.asarray(losses(logits, targets).mean(-1) <= self.limit + TOLERANCE)

    def shortfall(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.asarray(losses(logits, targets).mean(-1) - self.limit)

    def describe(self, logits: np.ndarray, targets: np.ndarray) -> str:
        return f"a mean loss of {self.limit:.6g} (it is {losses(logits, targets).mean():.6g})"
