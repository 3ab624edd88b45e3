"""The compiled kernels of :mod:`mipprune.game.fused`; importing this module needs numba (extra ``fast``).

64 coalitions go side by side, whatever samples they belong to: a unit's 64 values lie next to each other, so that every
multiply-add and exponential runs along them in vector registers, and no sum crosses lanes.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import njit

__all__ = ["toggle", "toggle_pairs", "walk"]

#: Coalitions side by side: eight registers of 8 floats.
LANES = 64

LN2, PER_LN2, HALF = np.float32(0.6931471805599453), np.float32(1.4426950408889634), np.float32(0.5)

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
def linear(h, n_in, n_out, weights, at, biases, bt, out):
    """``out[:n_out] = W h[:n_in] + b`` for every lane; eight inputs a pass, so that sums are seldom stored."""
    for q in range(n_out):
        row = weights[at + q * n_in : at + (q + 1) * n_in]
        total = out[q]
        for b in range(LANES):
            total[b] = biases[bt + q]
        j = 0
        while j + 8 <= n_in:
            w0, w1, w2, w3 = row[j], row[j + 1], row[j + 2], row[j + 3]
            w4, w5, w6, w7 = row[j + 4], row[j + 5], row[j + 6], row[j + 7]
            h0, h1, h2, h3 = h[j], h[j + 1], h[j + 2], h[j + 3]
            h4, h5, h6, h7 = h[j + 4], h[j + 5], h[j + 6], h[j + 7]
            for b in range(LANES):
                total[b] += (
                    (w0 * h0[b] + w1 * h1[b]) + (w2 * h2[b] + w3 * h3[b])
                    + ((w4 * h4[b] + w5 * h5[b]) + (w6 * h6[b] + w7 * h7[b]))
                )
            j += 8
        while j < n_in:
            w0, h0 = row[j], h[j]
            for b in range(LANES):
                total[b] += w0 * h0[b]
            j += 1


@jit
def finish_block(h, other, codes, slopes, widths, weights, biases):
    """Logits from the first pre-activations ``h`` (units, lanes), into the first rows of ``h``."""
    at, bt = 0, 0
    for layer in range(len(codes)):
        n_in, n_out = widths[layer], widths[layer + 1]
        if codes[layer] == 1:
            for j in range(n_in):
                row = h[j]
                for b in range(LANES):
                    row[b] = 0 if row[b] <= 0 else row[b]  # so written, NaN stays NaN
        elif codes[layer] != 0:
            for j in range(n_in):
                for b in range(LANES):
                    h[j, b] = act(h[j, b], codes[layer], slopes[layer])
        linear(h, n_in, n_out, weights, at, biases, bt, other)
        at += n_out * n_in
        bt += n_out
        for q in range(n_out):
            h[q, :] = other[q, :]


@jit
def cross_entropy_block(h, c, sample, targets, top, total, bits, scale, out):
    """Minus the cross-entropy of every lane; single precision, exponentials by argument halving in the exponent.

    ``exp(x) = 2^k exp(r)`` with ``|r| <= ln(2) / 2`` and a Taylor polynomial of degree 7 for exp(r), whose remainder
    is below 6e-9; k goes straight into the bits of the exponent.
    """
    for b in range(LANES):
        top[b] = h[0, b]
        total[b] = 0
    for q in range(1, c):
        row = h[q]
        for b in range(LANES):
            top[b] = row[b] if row[b] > top[b] else top[b]
    for q in range(c):
        row = h[q]
        for b in range(LANES):  # a loop of its own: below, its difference may not be reassociated with what is large
            row[b] -= top[b]
        for b in range(LANES):
            x = np.float32(-87.0) if row[b] < np.float32(-87.0) else row[b]
            bits[b] = np.int32((np.int32(np.floor(x * PER_LN2 + HALF)) + np.int32(127)) << np.int32(23))
        for b in range(LANES):  # apart from the loop above, or the two views of one memory forbid vector registers
            x = np.float32(-87.0) if row[b] < np.float32(-87.0) else row[b]  # so written, NaN stays NaN
            r = x - np.floor(x * PER_LN2 + HALF) * LN2
            p = np.float32(1 / 5040)
            p = p * r + np.float32(1 / 720)
            p = p * r + np.float32(1 / 120)
            p = p * r + np.float32(1 / 24)
            p = p * r + np.float32(1 / 6)
            p = p * r + np.float32(0.5)
            p = p * r + np.float32(1)
            total[b] += (p * r + np.float32(1)) * scale[b]
    for b in range(LANES):
        out[b] = float(h[targets[sample[b]], b]) - math.log(total[b])


@jit
def worth_block(h, c, value, sample, targets, dense, scratch, bits, scale, out):
    """Value of every lane's logits ``h[:c]`` into ``out`` (float64); lane b belongs to sample ``sample[b]``."""
    if value == 0 and h.itemsize == 4:
        cross_entropy_block(h, c, sample, targets, scratch[0], scratch[1], bits, scale, out)
    else:
        logits = scratch[2]
        for b in range(LANES):
            for q in range(c):
                logits[q] = h[q, b]
            out[b] = worth(logits, c, value, targets[sample[b]], dense[sample[b]])


@jit
def buffers(widths, like):
    """Lanes before and after a layer, scratch rows, two views of one row of bits, values, and whose lane it is."""
    wide = max(widths.max(), LANES)
    h, other = np.zeros((wide, LANES), like.dtype), np.empty((wide, LANES), like.dtype)
    bits = np.empty(LANES, np.int32)
    return (
        h, other, np.empty((3, wide), like.dtype), bits, bits.view(np.float32), np.empty(LANES),
        np.zeros(LANES, np.int64), np.empty(LANES, np.int64),
    )


@jit
def walk(a, columns, offset, codes, slopes, widths, weights, biases, orders, value, targets, dense, out):
    """Marginals of every sample along its own order into ``out`` (N, n)."""
    n_samples, n = a.shape
    m, c = widths[0], widths[-1]
    h, other, scratch, bits, scale, found, sample, player = buffers(widths, columns)
    z = np.empty(m, columns.dtype)
    before, filled = 0.0, 0
    for k in range(n_samples):
        z[:] = offset[k]
        for t in range(-1, n):  # -1: the empty coalition
            i = orders[k, t] if t >= 0 else -1
            if i >= 0:
                out[k, i] = 0.0
                if a[k, i] != 0:
                    for j in range(m):
                        z[j] += a[k, i] * columns[i, j]
            if i < 0 or a[k, i] != 0:
                for j in range(m):
                    h[j, filled] = z[j]
                sample[filled], player[filled] = k, i
                filled += 1
            if filled == LANES or (k == n_samples - 1 and t == n - 1):
                finish_block(h, other, codes, slopes, widths, weights, biases)
                worth_block(h, c, value, sample, targets, dense, scratch, bits, scale, found)
                for b in range(filled):
                    if player[b] >= 0:
                        out[sample[b], player[b]] = found[b] - before
                    before = found[b]
                filled = 0


@jit
def toggle(a, columns, offset, codes, slopes, widths, weights, biases, masks, value, targets, dense, out):
    """Differences of every sample around its own mask into ``out`` (N, n)."""
    n_samples, n = a.shape
    m, c = widths[0], widths[-1]
    h, other, scratch, bits, scale, found, sample, player = buffers(widths, columns)
    z, moved = np.empty(m, columns.dtype), np.empty(m, columns.dtype)
    base, filled = 0.0, 0
    for k in range(n_samples):
        z[:] = offset[k]
        for i in range(n):
            out[k, i] = 0.0
            if masks[k, i] and a[k, i] != 0:
                for j in range(m):
                    z[j] += a[k, i] * columns[i, j]
        for i in range(-1, n):  # -1: the mask itself
            if i < 0 or a[k, i] != 0:
                step = z[0] * 0
                if i >= 0:
                    step = -a[k, i] if masks[k, i] else a[k, i]
                for j in range(m):
                    moved[j] = z[j] + step * columns[max(i, 0), j]
                for j in range(m):  # apart from the loop above, so that that one runs in vector registers
                    h[j, filled] = moved[j]
                sample[filled], player[filled] = k, i
                filled += 1
            if filled == LANES or (k == n_samples - 1 and i == n - 1):
                finish_block(h, other, codes, slopes, widths, weights, biases)
                worth_block(h, c, value, sample, targets, dense, scratch, bits, scale, found)
                for b in range(filled):
                    if player[b] < 0:
                        base = found[b]
                    else:
                        sign = -1.0 if masks[sample[b], player[b]] else 1.0
                        out[sample[b], player[b]] = sign * (found[b] - base)
                filled = 0


@jit
def put(h, lane, z, moves, first, count):
    """Pre-activations of ``z`` after each of the moves ``first .. first + count - 1``, from a lane on."""
    for j in range(len(z)):
        row, move, zj = h[j, lane : lane + count], moves[j, first : first + count], z[j]
        for b in range(count):
            row[b] = zj + move[b]


@jit
def toggle_pairs(a, columns, offset, codes, slopes, widths, weights, biases, masks, value, targets, dense, out):
    """Second differences of all pairs around every sample's own mask, summed over samples, into ``out`` (n, n).

    Only pairs of active units are visited; ``out[i, j]`` with i < j is filled.
    """
    n_samples, n = a.shape
    m, c = widths[0], widths[-1]
    h, other, scratch, bits, scale, found, sample, left = buffers(widths, columns)
    right = left.copy()
    z, zi = np.empty(m, columns.dtype), np.empty(m, columns.dtype)
    player, sign, single = np.empty(n, np.int64), np.empty(n), np.empty(n + LANES)
    moves = np.zeros((m, n + LANES), columns.dtype)  # what the t-th active player's toggle adds, by unit
    for k in range(n_samples):
        z[:], sample[:] = offset[k], k
        count = 0
        for i in range(n):
            if a[k, i] != 0:
                inside = masks[k, i]
                for j in range(m):
                    moves[j, count] = -a[k, i] * columns[i, j] if inside else a[k, i] * columns[i, j]
                    if inside:
                        z[j] += a[k, i] * columns[i, j]
                player[count], sign[count] = i, -1.0 if inside else 1.0
                count += 1
        if count == 0:
            continue
        for j in range(m):
            h[j, :] = z[j]
        finish_block(h, other, codes, slopes, widths, weights, biases)
        worth_block(h, c, value, sample, targets, dense, scratch, bits, scale, found)
        base = found[0]
        for start in range(0, count, LANES):
            put(h, 0, z, moves, start, LANES)
            finish_block(h, other, codes, slopes, widths, weights, biases)
            worth_block(h, c, value, sample, targets, dense, scratch, bits, scale, found)
            single[start : start + LANES] = found
        filled = 0
        for u in range(count):
            for j in range(m):
                zi[j] = z[j] + moves[j, u]
            w = u + 1
            while w < count or (filled and u == count - 1):
                some = max(0, min(LANES - filled, count - w))
                put(h, filled, zi, moves, w, some)
                for b in range(some):
                    left[filled + b], right[filled + b] = u, w + b
                filled += some
                w += some
                if filled == LANES or u == count - 1:
                    finish_block(h, other, codes, slopes, widths, weights, biases)
                    worth_block(h, c, value, sample, targets, dense, scratch, bits, scale, found)
                    for b in range(filled):
                        s, t = left[b], right[b]
                        second = base - single[s] - single[t] + found[b]
                        out[player[s], player[t]] += sign[s] * sign[t] * second
                    filled = 0
