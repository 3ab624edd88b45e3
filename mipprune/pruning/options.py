"""What a user asks for: a budget of some resource, or a tolerance on the loss."""

from __future__ import annotations

import dataclasses
import math
import os

from ..costs import CostModel
from ..errors import BudgetError
from ..latency import LatencyTable

__all__ = ["AccuracyDrop", "Budget", "Latency", "LossIncrease", "Macs", "Params", "Units"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """At most ``ratio`` of the dense cost in ``resource``; use :class:`Macs`, :class:`Params`, :class:`Units`,
    :class:`Latency`.

    Attributes:
        ratio: above 0, at most 1.
    """

    ratio: float
    resource: str = dataclasses.field(default="", init=False)

    def __post_init__(self) -> None:
        if not self.resource:
            raise BudgetError("use Macs(ratio), Params(ratio), Units(ratio) or Latency(ratio)")
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, (int, float)) or not 0 < self.ratio <= 1:
            raise BudgetError(f"{type(self).__name__}({self.ratio!r}): a budget is a share of the dense network's "
                              f"{self.resource}, above 0 and at most 1 (0.5 keeps half)")

    def limit(self, costs: CostModel) -> int:
        """The budget in absolute terms under the dense ``costs``, rounded down."""
        return math.floor(self.ratio * costs.cost(self.resource, costs.sizes) + 1e-9)


@dataclasses.dataclass(frozen=True)
class Macs(Budget):
    """At most ``ratio`` of the dense multiply-adds per sample."""

    resource: str = dataclasses.field(default="macs", init=False)


@dataclasses.dataclass(frozen=True)
class Params(Budget):
    """At most ``ratio`` of the dense parameters."""

    resource: str = dataclasses.field(default="params", init=False)


@dataclasses.dataclass(frozen=True)
class Units(Budget):
    """At most ``ratio`` of the prunable units."""

    resource: str = dataclasses.field(default="units", init=False)


@dataclasses.dataclass(frozen=True)
class Latency(Budget):
    """At most ``ratio`` of the dense network's measured forward time, on the device that the model is on.

    Attributes:
        table: what the time of every width is read from: a :class:`~mipprune.latency.LatencyTable`, or the path of a
            stored one.  By default :func:`~mipprune.latency.measure_latency` makes one first, on ``batch_size``
            calibration samples.
        batch_size: samples per forward pass; with a ``table``, its batch size counts.
    """

    resource: str = dataclasses.field(default="latency", init=False)
    table: LatencyTable | str | os.PathLike[str] | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise BudgetError(f"Latency: batch_size must be at least 1, got {self.batch_size!r}")


@dataclasses.dataclass(frozen=True)
class LossIncrease:
    """The pruned network's mean cross-entropy on the calibration data may exceed the dense one's by ``nats``.

    Attributes:
        nats: at least 0.
    """

    nats: float

    def __post_init__(self) -> None:
        if isinstance(self.nats, bool) or not isinstance(self.nats, (int, float)) or not 0 <= self.nats < math.inf:
            raise BudgetError(f"LossIncrease({self.nats!r}): the tolerance must be a number of nats, at least 0")


@dataclasses.dataclass(frozen=True)
class AccuracyDrop:
    """The pruned network's accuracy on new inputs may fall by ``drop``, and held-out data have to prove it.

    Attributes:
        drop: in (0, 1); 0.01 is one percentage point.
        confidence: of the exact binomial bound, in (0, 1).
    """

    drop: float
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("drop", "confidence"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
                raise BudgetError(f"AccuracyDrop({self.drop!r}, confidence={self.confidence!r}): {name} must lie "
                                  f"between 0 and 1")
