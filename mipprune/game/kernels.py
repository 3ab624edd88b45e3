"""The compiled kernels of :mod:`mipprune.game.fused`; importing this module needs numba (extra ``fast``)."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import njit

__all__ = ["toggle", "walk"]

# contract and reassoc let sums be vectorised; nnan and ninf stay off so that NaN and infinity are still seen
jit: Any = functools.partial(
    njit, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy", nogil=True, cache=True
)


@jit
def act(x, code, slope):
    """The activations that are no plain comparison with 0."""
    if code == 2:
        return x if x > 0 else x * slope
    if code == 3:
        return math.tanh(x)
    if code == 4:
        return 1 / (1 + math.exp(-x))
    if code == 5:
        return x / (1 + math.exp(-x))
    if code == 6:
        return 0.5 * x * (1 + math.erf(x * 0.7071067811865476))
    return x


@jit
def finish(z, codes, slopes, widths, weights, biases, left, right):
    """Logits from the first pre-activation, into ``left`` (also returned as its first entries)."""
    for j in range(widths[0]):
        left[j] = z[j]
    at, bt = 0, 0
    for layer in range(len(codes)):
        n_in, n_out = widths[layer], widths[layer + 1]
        if codes[layer] == 1:
            for j in range(n_in):
                if left[j] <= 0:  # so written, NaN stays NaN
                    left[j] = 0
        elif codes[layer] != 0:
            for j in range(n_in):
                left[j] = act(left[j], codes[layer], slopes[layer])
        for q in range(n_out):
            total = biases[bt + q]
            row = weights[at + q * n_in : at + (q + 1) * n_in]
            for j in range(n_in):
                total += row[j] * left[j]
            right[q] = total
        at += n_out * n_in
        bt += n_out
        for q in range(n_out):
            left[q] = right[q]


@jit
def worth(logits, c, value, target, dense):
    """Value of one sample's logits."""
    if value == 3:
        total = 0.0
        for q in range(c):
            total += (logits[q] - dense[q]) ** 2
        return -math.sqrt(total)
    if value == 0:
        top = logits[0]
        for q in range(1, c):
            top = max(top, logits[q])
        total = logits[0] * 0
        for q in range(c):
            total += np.exp(logits[q] - top)
        return float(logits[target] - top) - math.log(total)
    best, other = 0, -np.inf
    for q in range(c):
        if logits[q] > logits[best]:
            best = q
        if q != target:
            other = max(other, float(logits[q]))
    if value == 1:
        return 1.0 if best == target else 0.0
    return float(logits[target]) - other


@jit
def walk(a, columns, offset, codes, slopes, widths, weights, biases, orders, value, targets, dense, out):
    """Marginals of every sample along its own order into ``out`` (N, n)."""
    n_samples, n = a.shape
    m, c = widths[0], widths[-1]
    z = np.empty(m, columns.dtype)
    left, right = np.empty(widths.max(), columns.dtype), np.empty(widths.max(), columns.dtype)
    for k in range(n_samples):
        z[:] = offset[k]
        finish(z, codes, slopes, widths, weights, biases, left, right)
        before = worth(left, c, value, targets[k], dense[k])
        for t in range(n):
            i = orders[k, t]
            if a[k, i] == 0:
                out[k, i] = 0.0
                continue
            for j in range(m):
                z[j] += a[k, i] * columns[i, j]
            finish(z, codes, slopes, widths, weights, biases, left, right)
            now = worth(left, c, value, targets[k], dense[k])
            out[k, i] = now - before
            before = now


@jit
def toggle(a, columns, offset, codes, slopes, widths, weights, biases, masks, value, targets, dense, out):
    """Differences of every sample around its own mask into ``out`` (N, n)."""
    n_samples, n = a.shape
    m, c = widths[0], widths[-1]
    z, moved = np.empty(m, columns.dtype), np.empty(m, columns.dtype)
    left, right = np.empty(widths.max(), columns.dtype), np.empty(widths.max(), columns.dtype)
    for k in range(n_samples):
        z[:] = offset[k]
        for i in range(n):
            if masks[k, i] and a[k, i] != 0:
                for j in range(m):
                    z[j] += a[k, i] * columns[i, j]
        finish(z, codes, slopes, widths, weights, biases, left, right)
        base = worth(left, c, value, targets[k], dense[k])
        for i in range(n):
            if a[k, i] == 0:
                out[k, i] = 0.0
                continue
            step = -a[k, i] if masks[k, i] else a[k, i]
            for j in range(m):
                moved[j] = z[j] + step * columns[i, j]
            finish(moved, codes, slopes, widths, weights, biases, left, right)
            now = worth(left, c, value, targets[k], dense[k])
            out[k, i] = base - now if masks[k, i] else now - base
