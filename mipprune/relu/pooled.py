"""Several distinct masks that are about as small: "lucky" sub-networks to retrain, or to compare."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ..errors import InfeasibleError, SolverError
from ..graph import UnitGraph
from .api import select
from .solution import ReluSolution

__all__ = ["pool"]


def pool(
    model: nn.Module | UnitGraph, data: Any, n_masks: int, slack: int = 1, min_distance: int = 1, **settings: Any
) -> list[ReluSolution]:
    """Solve again and again, each time with the masks found so far forbidden, for near-optimal distinct masks.

    Args:
        n_masks: how many at most; fewer when there are no more.
        slack: masks may keep this many units more than the first one.
        min_distance: units in which any two masks differ, at least (1: they are different).
        settings: see :func:`mipprune.relu.select`, for ``formulation="sound"``; ``time_limit`` is for each solve.

    Returns:
        The solutions in the order found.  While every one of them is proved, they are the smallest masks there are.
    """
    if settings.get("formulation", "sound") != "sound":
        raise SolverError("a pool needs formulation='sound': scores aren't masks that could be forbidden")
    found: list[ReluSolution] = []
    forbidden = settings.pop("forbidden", None)
    while len(found) < n_masks:
        masks = [] if forbidden is None else list(forbidden)
        masks += [solution.kept for solution in found]
        try:
            solution = select(model, data, forbidden=np.array(masks) if masks else None,
                              min_distance=min_distance, **settings)
        except (InfeasibleError, SolverError):
            if not found:
                raise
            break
        if found and solution.n_kept > found[0].n_kept + slack:
            break
        found.append(solution)
    return found
