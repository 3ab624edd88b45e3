"""One selection task: the network with its samples, what may be removed, and how masks are judged."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..bounds import PiecewiseLinear
from ..solver import MipBuilder
from .oracle import Oracle

__all__ = ["Task", "no_good"]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What both formulations start from.

    Attributes:
        network: the network (or a layer with its head) with gates.
        x: float64 (N, n_inputs).
        targets: int64 (N,).
        oracle: judges masks without the program.
        groups: unit numbers of each group, int64.
        min_keep: fewest units that stay per group.
        keep: bool (n_units,), units that stay.
        forbidden: bool (F, n_units), masks that aren't wanted.
        min_distance: units in which a mask has to differ from each of these.
    """

    network: PiecewiseLinear
    x: np.ndarray
    targets: np.ndarray
    oracle: Oracle
    groups: tuple[np.ndarray, ...]
    min_keep: np.ndarray
    keep: np.ndarray
    forbidden: np.ndarray
    min_distance: int = 1

    @property
    def n_units(self) -> int:
        return self.network.n_units

    def allowed(self, kept: np.ndarray) -> bool:
        """Whether pins, minimum counts and the forbidden masks let a mask pass."""
        counts = [int(kept[units].sum()) for units in self.groups]
        return bool(
            kept[self.keep].all()
            and all(count >= least for count, least in zip(counts, self.min_keep))
            and ((self.forbidden != kept).sum(1) >= self.min_distance).all()
        )

    def add_rows(self, builder: MipBuilder, gates: np.ndarray) -> None:
        """Minimum counts and forbidden masks as rows on the gates' columns."""
        for units, least in zip(self.groups, self.min_keep):
            builder.add_row(gates[units], 1.0, lower=float(least))
        for mask in self.forbidden:
            values, lower = no_good(mask, self.min_distance)
            builder.add_row(gates, values, lower=lower)


def no_good(mask: np.ndarray, distance: int = 1) -> tuple[np.ndarray, float]:
    """Coefficients and lower limit of the row that masks closer to ``mask`` than ``distance`` break."""
    return np.where(mask, -1.0, 1.0), distance - float(mask.sum())
