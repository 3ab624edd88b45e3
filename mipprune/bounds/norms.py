"""Upper bounds of operator norms that really are upper bounds: power iteration alone only bounds from below."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from .network import Affine, Gate, MaxPool, Node, Relu

__all__ = ["convolution_norm", "matrix_norm", "node_norms"]

#: Up to this many rows or columns the Gram matrix's largest eigenvalue is computed: exact up to rounding.
EXACT_LIMIT = 1200
#: Relative allowance for the rounding of eigenvalues, singular values and Fourier sums in float64.
_ROUNDING = 1e-10


def matrix_norm(matrix: sp.csr_array, exact_limit: int = EXACT_LIMIT) -> float:
    """A number at least the spectral norm of ``matrix`` (m, n).

    The root of the Gram matrix's largest eigenvalue if the smaller side has at most ``exact_limit`` entries
    (O(min(m, n)^3); 1e-10 is added for rounding), else the smaller of two bounds that always hold: Frobenius, and
    Schur's test ``|W|^2 <= |W|_1 |W|_inf`` (largest absolute column sum times largest absolute row sum).
    """
    if matrix.nnz == 0:
        return 0.0
    size = abs(matrix)
    schur = math.sqrt(float(size.sum(0).max()) * float(size.sum(1).max()))
    bound = min(schur, float(np.linalg.norm(matrix.data)))
    if min(matrix.shape) <= exact_limit:
        wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        gram = (wide @ wide.T).toarray()
        top = scipy.linalg.eigvalsh(gram, subset_by_index=[len(gram) - 1, len(gram) - 1])[0]
        bound = min(bound, math.sqrt(max(float(top), 0.0)) * (1 + _ROUNDING))
    return bound * (1 + 1e-14)


def convolution_norm(
    kernel: np.ndarray, spatial: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> float:
    """A number at least the norm of a zero-padded convolution, at any stride, on images of shape ``spatial``.

    Our argument: on a torus of side ``m >= h + padding``, an image of side h that is continued by zeros is convolved
    around the corner exactly as it is with zero padding, at every position that the layer computes: what it reads lies
    in ``[-padding, h - 1 + padding]``, and no two places of which one is inside the image coincide modulo m.  So the
    layer is the torus' convolution between two coordinate projections (a stride drops rows), and its norm is no larger.
    The torus' convolution is block-diagonal in Fourier space (Sedghi et al., 1805.10408, for the circular case): its
    norm is the largest singular value of the kernel's transform, a (out, in) matrix, over the frequencies.

    Args:
        kernel: float64 (out, in, *sizes).
        spatial, padding, dilation: one number for each of ``sizes``.
    """
    shape = tuple(h + p for h, p in zip(spatial, padding))
    placed = np.zeros((*kernel.shape[:2], *shape))
    places = [(d * np.arange(k)) % m for d, k, m in zip(dilation, kernel.shape[2:], shape)]
    where: Any = (slice(None), slice(None), *np.ix_(*places))
    np.add.at(placed, where, kernel)
    transform = np.fft.rfftn(placed, axes=range(2, kernel.ndim)).reshape(*kernel.shape[:2], -1)
    return float(np.linalg.norm(np.moveaxis(transform, -1, 0), ord=2, axis=(1, 2)).max()) * (1 + _ROUNDING)


def node_norms(node: Node, exact_limit: int = EXACT_LIMIT) -> tuple[float, ...]:
    """Lipschitz constants (Euclidean norm) of an operation in each of its sources, every gate in [0, 1].

    A maximum of entries changes by at most the largest change of one of them, and an entry is read by at most as many
    windows as hold it: max pooling has the root of that number.
    """
    if isinstance(node, (Relu, Gate)):
        return (1.0,)
    if isinstance(node, MaxPool):
        entries = node.windows[node.windows >= 0]
        return (math.sqrt(int(np.bincount(entries).max(initial=0))),)
    norms = []
    for matrix in node.matrices:
        by_kernel = _by_kernel(node)
        small = min(matrix.shape) <= (exact_limit if by_kernel is None else min(exact_limit, 600))
        norms.append(min(matrix_norm(matrix, exact_limit if small else 0), by_kernel or math.inf))
    return tuple(norms)


def _by_kernel(node: Affine) -> float | None:
    """The bound by Fourier transform of a convolution without groups, if its rows are scaled channel by channel."""
    layer = node.layer
    if layer is None or layer.convolution is None:
        return None
    scale = layer.scale.reshape(layer.shape[0], -1)
    channels_in = layer.index.shape[1] // math.prod(layer.convolution[0])
    if channels_in != layer.shape[1] or not (scale == scale[:, :1]).all():
        return None
    entries = node.matrices[0].tocoo()
    rows, columns = entries.coords
    weight = np.zeros(math.prod(layer.shape))
    weight[np.asarray(layer.index[rows, columns]).ravel() - 1] = entries.data / layer.scale[rows]
    kernel = weight.reshape(layer.shape) * scale[:, 0].reshape(-1, *[1] * (len(layer.shape) - 1))
    return convolution_norm(kernel, *layer.convolution)
