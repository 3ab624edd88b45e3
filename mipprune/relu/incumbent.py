"""First incumbents by backward elimination on the real network: what the search starts from and improves with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from .oracle import Oracle
from .requirement import Requirement, losses

__all__ = ["Allowed", "eliminated"]

#: Whether pins, minimum counts and the list of forbidden masks let a mask (n_units,) pass.
Allowed: TypeAlias = Callable[[np.ndarray], bool]


def eliminated(
    kept: np.ndarray, oracle: Oracle, requirement: Requirement, targets: np.ndarray, allowed: Allowed,
    deadline: float = np.inf,
) -> np.ndarray:
    """Remove one unit at a time from a mask that meets the requirement, while some removal still does.

    Of the removals that meet it, the one with the smallest loss is made.  O(n^2) evaluations of the network; stops at
    ``deadline`` (of ``time.monotonic``).
    """
    kept = kept.copy()
    while time.monotonic() < deadline:
        candidates = [u for u in np.flatnonzero(kept) if allowed(_without(kept, u))]
        if not candidates:
            break
        masks = np.stack([_without(kept, u) for u in candidates])
        logits = oracle(masks)
        loss = np.where(requirement.met(logits, targets), losses(logits, targets).mean(-1), np.inf)
        best = int(np.argmin(loss))
        if not np.isfinite(loss[best]):
            break
        kept = masks[best]
    return kept


def _without(kept: np.ndarray, unit: int) -> np.ndarray:
    fewer = kept.copy()
    fewer[unit] = False
    return fewer
