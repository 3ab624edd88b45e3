"""Incumbents by local search on the real network: one path of removals, then exchanges at one unit fewer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from .oracle import Oracle
from .requirement import Requirement, losses

__all__ = ["Allowed", "Incumbents"]

#: Whether pins, minimum counts and the list of forbidden masks let a mask (n_units,) pass.
Allowed: TypeAlias = Callable[[np.ndarray], bool]

#: Most exchanges that are looked at in one step.
_MAX_EXCHANGES = 4096
#: The path removes this share (one in so many) of the kept units at once.
_SHARE_AT_ONCE = 32
#: Random masks that exchanges begin from when those near the best mask lead nowhere.
_RANDOM_STARTS = 8
#: Weight of the mean loss beside the shortfall when masks are compared.
_LOSS_WEIGHT = 1e-3


class Incumbents:
    """Looks for small masks that meet a requirement; every candidate is evaluated on the real network.

    Attributes:
        best: the smallest mask found that meets the requirement, or ``None``.
        seen: masks that the search went through, for tangents.
    """

    def __init__(
        self, oracle: Oracle, requirement: Requirement, targets: np.ndarray, allowed: Allowed, deadline: float,
        seed: int,
    ) -> None:
        self.oracle, self.requirement, self.targets, self.allowed = oracle, requirement, targets, allowed
        self.deadline = deadline
        self.rng = np.random.default_rng(seed)
        self.best: np.ndarray | None = None
        self.seen: list[np.ndarray] = []

    def search(self, start: np.ndarray) -> None:
        """From ``start`` remove unit after unit (smallest shortfall first, through masks that miss the requirement
        too), then exchange units at one unit fewer than the best mask, from the path, near that mask and from random
        masks, as long as that succeeds.

        O(n^2) evaluations of the network for the path (O(32 n log n) for wide ones, which lose several units at once)
        and up to 4,096 for each exchange; stops at the deadline.
        """
        path = self._path(start)
        while self.best is not None and not self._late:
            size = int(self.best.sum()) - 1
            on_path = [mask for mask in path if mask.sum() == size]
            near = [mask for mask, _ in self._judged(_removals(self.best))[:1]]
            if not any(self._exchange(mask) for mask in [*on_path, *near, *self._random(size)]):
                break

    def _random(self, size: int) -> Iterator[np.ndarray]:
        """Random masks of a size."""
        assert self.best is not None
        for _ in range(_RANDOM_STARTS):
            mask = np.zeros(len(self.best), dtype=bool)
            mask[self.rng.choice(len(mask), size, replace=False)] = True
            yield mask

    @property
    def _late(self) -> bool:
        return time.monotonic() > self.deadline

    def _path(self, start: np.ndarray) -> list[np.ndarray]:
        path, mask = [], start
        self._judged([start])
        while not self._late:
            judged = self._judged(_removals(mask))
            if not judged:
                break
            mask = judged[0][0]
            more = max(1, int(mask.sum()) // _SHARE_AT_ONCE) - 1
            if more:  # wide networks: the next best removals too, without a second look
                fewer = mask & np.logical_and.reduce([other for other, _ in judged[: more + 1]])
                mask = fewer if self._judged([fewer]) else mask
            path.append(mask)
        return path

    def _exchange(self, mask: np.ndarray) -> bool:
        """Best exchange after best exchange until the requirement is met (then ``True``) or nothing gets better."""
        judged = self._judged([mask])
        if not judged:
            return False
        value = judged[0][1]
        while not self._late:
            if value <= 0:
                return True
            kept, out = np.flatnonzero(mask), np.flatnonzero(~mask)
            pairs = np.stack([np.repeat(kept, len(out)), np.tile(out, len(kept))], axis=1)
            if len(pairs) > _MAX_EXCHANGES:
                pairs = pairs[self.rng.choice(len(pairs), _MAX_EXCHANGES, replace=False)]
            judged = self._judged([_flipped(mask, pair) for pair in pairs])
            if not judged or judged[0][1] >= value:
                return False
            mask, value = judged[0]
        return False

    def _judged(self, masks: list[np.ndarray]) -> list[tuple[np.ndarray, float]]:
        """The allowed masks with their scores (0 or less: requirement met), best first; notes the best of all."""
        masks = [mask for mask in masks if self.allowed(mask)]
        if not masks:
            return []
        logits = self.oracle(np.stack(masks))
        met = self.requirement.met(logits, self.targets)
        loss = losses(logits, self.targets).mean(-1)
        # among masks that meet it the smallest loss, among the others the smallest shortfall
        shortfall = self.requirement.shortfall(logits, self.targets)
        score = np.where(met, -1.0 / (1.0 + loss), shortfall + _LOSS_WEIGHT * loss)
        order = np.argsort(score, kind="stable")
        first = masks[order[0]]
        self.seen.append(first)
        if met[order[0]] and (self.best is None or first.sum() < self.best.sum()):
            self.best = first
        return [(masks[i], float(score[i])) for i in order]


def _removals(mask: np.ndarray) -> list[np.ndarray]:
    return [_flipped(mask, np.array([unit])) for unit in np.flatnonzero(mask)]


def _flipped(mask: np.ndarray, units: np.ndarray) -> np.ndarray:
    other = mask.copy()
    other[units] ^= True
    return other
