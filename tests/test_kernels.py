"""The single-precision cross-entropy of the compiled kernels: right over the whole range, and NaN stays NaN."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

pytest.importorskip("numba")

from mipprune.game import kernels

LANES = kernels.LANES


def values(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Minus the cross-entropy of logits (c, LANES), by the kernel."""
    c = len(logits)
    h, _, scratch, bits, scale, found, sample, _ = kernels.buffers(np.array([c]), np.zeros(1, np.float32))
    h[:c] = logits
    sample[:] = np.arange(LANES)
    kernels.worth_block(h, c, 0, sample, targets, np.zeros((LANES, c), np.float32), scratch, bits, scale, found)
    return found


@pytest.mark.parametrize("c", [2, 3, 10, 200])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 20.0, 300.0])
def test_cross_entropy_of_many_lanes(c: int, spread: float) -> None:
    rng = np.random.default_rng(c)
    for _ in range(20):
        logits = (rng.normal(size=(c, LANES)) * spread + rng.normal() * 50).astype(np.float32)
        targets = rng.integers(c, size=LANES)
        truth = log_softmax(logits.astype(np.float64), axis=0)[targets, np.arange(LANES)]
        np.testing.assert_allclose(values(logits, targets), truth, rtol=3e-7, atol=1e-6)


def test_what_is_not_a_number_stays_so_in_its_lane_alone() -> None:
    logits = np.random.default_rng(0).normal(size=(4, LANES)).astype(np.float32)
    logits[0, 3] = logits[2, 7] = logits[3, 9] = np.nan
    logits[1, 11] = np.inf
    logits[1, 12] = -np.inf
    found = values(logits, np.zeros(LANES, np.int64))
    assert np.flatnonzero(np.isnan(found)).tolist() == [3, 7, 9, 11]
    truth = log_softmax(logits[:, 12].astype(np.float64))[0]
    assert found[12] == pytest.approx(truth, abs=1e-6)


def test_relu_lets_nan_through() -> None:
    widths = np.array([3, 2])
    h, other, *_ = kernels.buffers(widths, np.zeros(1, np.float32))
    h[0, 0], h[1, 0], h[2, 0] = -1.0, 2.0, 3.0
    h[1, 1] = np.nan
    weights, biases = np.array([1, 1, 1, 1, 2, 3], np.float32), np.array([0.5, 0], np.float32)
    kernels.finish_block(h, other, np.array([1]), np.zeros(1, np.float32), widths, weights, biases)
    assert h[:2, 0].tolist() == [5.5, 13.0]
    assert np.isnan(h[:2, 1]).all()
