"""The kind of cells ``gap_bound``: bounds on the output gap beside what sampled masks do."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from ..config import POSITIVE, SEED, SHARE
from .drawn import DRAWN
from .kinds import Kind, of_network, register_kind

__all__ = ["GapBoundSection"]


@dataclasses.dataclass(frozen=True)
class GapBoundSection:
    """``[[gap_bound]]``: :func:`mipprune.bounds.validate_neurons` or :func:`mipprune.bounds.validate_weights`.

    Attributes:
        what: which parts masks remove.
        keep: probability that a part stays.
        delta: of the bounds for random masks.
        n_masks: masks that are measured.
        samples: calibration samples, from the first.
        seed: of the masks.
    """

    what: Literal["neurons", "weights"] = "neurons"
    keep: Annotated[float, SHARE] = 0.8
    delta: Annotated[float, SHARE] = 0.05
    n_masks: Annotated[int, POSITIVE] = 300
    samples: Annotated[int, POSITIVE] = 32
    seed: Annotated[int, SEED] = 0


register_kind(Kind("gap_bound", GapBoundSection, "mipprune.study.gap_compute:gap_bound", of_network,
                   drawn=DRAWN["gap_bound"]))
