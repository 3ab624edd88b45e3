"""Sample-wise walks through any suffix: every sample has a coalition of its own, all samples in one batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["toggle", "toggle_pairs", "walk"]

#: Per-sample values (M, N) of gates (bool, (M, N, n)), each sample its own coalition in each of M rounds.
RoundValues = Callable[[np.ndarray], np.ndarray]


def walk(values: RoundValues, orders: np.ndarray, rounds: int) -> np.ndarray:
    """Marginals (N, n) along the orders (N, n): see :meth:`SampleGame.walk`.  ``rounds`` steps go in one batch."""
    n_samples, n = orders.shape
    position = np.empty_like(orders)
    np.put_along_axis(position, orders, np.arange(n)[None], axis=1)
    steps = np.empty((n + 1, n_samples))
    for start in range(0, n + 1, rounds):
        t = np.arange(start, min(start + rounds, n + 1))
        steps[t] = values(position[None] < t[:, None, None])
    return np.take_along_axis(np.diff(steps, axis=0).T, position, axis=1)


def toggle(values: RoundValues, masks: np.ndarray, rounds: int) -> np.ndarray:
    """Differences (N, n) around the masks (N, n): see :meth:`SampleGame.toggle`."""
    n_samples, n = masks.shape
    base = values(masks[None])[0]
    out = np.empty((n_samples, n))
    for start in range(0, n, rounds):
        players = np.arange(start, min(start + rounds, n))
        flipped = np.repeat(masks[None], len(players), axis=0)
        flipped[np.arange(len(players)), :, players] ^= True
        changed = values(flipped)
        out[:, players] = (np.where(masks[:, players], 1.0, -1.0) * (base[:, None] - changed.T))
    return out


def toggle_pairs(values: RoundValues, masks: np.ndarray, rounds: int) -> np.ndarray:
    """Mean second differences (n, n) around the masks (N, n): see :meth:`SampleGame.toggle_pairs`."""
    n = masks.shape[1]
    left, right = np.triu_indices(n, 1)
    sign = np.where(masks, 1.0, -1.0)
    base, out = values(masks[None])[0], np.zeros((n, n))
    single = toggle(values, masks, rounds) * -sign + base[:, None]  # the value after each player's toggle
    for start in range(0, len(left), rounds):
        i, j = left[start : start + rounds], right[start : start + rounds]
        flipped = np.repeat(masks[None], len(i), axis=0)
        flipped[np.arange(len(i)), :, i] ^= True
        flipped[np.arange(len(i)), :, j] ^= True
        second = base[:, None] - single[:, i] - single[:, j] + values(flipped).T
        out[i, j] = (sign[:, i] * sign[:, j] * second).mean(axis=0)
    return out + out.T
