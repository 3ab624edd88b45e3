"""Which directions of a residual stream carry it: principal components of what its norms read."""

from __future__ import annotations

import numpy as np
import torch

from ..game.data import LabelledData
from ..graph import Stream, UnitGraph
from .output_metric import PROBES, TEMPERATURE, enough, pulled_back

__all__ = ["minded_part", "projected_errors", "stream_basis", "stream_projection"]

#: Share of plain variance in the metric of a stream's directions.
PLAIN = 0.3


def stream_basis(
    graph: UnitGraph, data: LabelledData, stream: Stream, plain: float = PLAIN, minded: torch.Tensor | None = None
) -> torch.Tensor:
    """Orthonormal directions of a stream of width n, the most important first: float64 (n, n - 1).

    Leading eigenvectors of ``C^(1/2) A C^(1/2)``, C the covariance of the normalised stream (mean over coordinates 0,
    variance 1) and A what errors in it cost: the Gauss-Newton matrix of the softened divergence, blended with ``plain``
    parts of the identity; both summed over the layer-norms that read the stream.  With ``plain=1`` these are
    principal components, as SliceGPT (2401.15024) takes them between RMS norms.  In general they are the
    directions of reduced-rank regression (Izenman 1975) as it sees them, in whitened coordinates: orthonormal, which
    keeps what the norms divide by, and within the stream's own space, so that nothing is lost where that is small (our
    choice; the regression's own coefficients do as well and keep neither).  The mean over coordinates, which
    layer-norm removes anyway, is left out.

    Args:
        graph: the traced network.
        data: samples; targets aren't used.
        stream: of the network, see :func:`mipprune.graph.find_streams`.
        plain: parts of the identity in A.
        minded: float64 (n, n), the Gauss-Newton matrix where it's known already.
    """
    names = stream.sources
    n = graph.groups[stream.group].size
    device = data.inputs[0].device
    total = torch.zeros(n, n, dtype=torch.float64, device=device)
    first = {name: torch.zeros(n, dtype=torch.float64, device=device) for name in names}
    rows = dict.fromkeys(names, 0)
    for part in data.batches(256):
        values = graph.program.values(dict(zip(graph.program.captured.inputs, part.inputs, strict=True)), names)
        for name, value in values.items():
            x = value.double().reshape(-1, n)
            x = x - x.mean(1, keepdim=True)
            x = x / x.std(1, correction=0, keepdim=True).clamp_min(1e-12)
            total += x.T @ x / x.shape[0] * len(part) / len(data)
            first[name] += x.sum(0)
            rows[name] += len(x)
    for name in names:
        mean = first[name] / rows[name]
        total -= torch.outer(mean, mean)
    ones = torch.full((n, 1), n**-0.5, dtype=torch.float64, device=device)
    metric = torch.eye(n, dtype=torch.float64, device=device)
    if plain < 1:
        minded = _minded(graph, data, stream) if minded is None else minded
        metric = plain * metric + (1 - plain) * minded * (n / minded.trace().clamp_min(1e-30))
    value, vector = torch.linalg.eigh(total)
    root = vector * value.clamp_min(0).sqrt() @ vector.T  # C^(1/2)
    white = root @ metric @ root - 2 * n * len(names) * ones @ ones.T  # the direction of the mean comes last
    return torch.linalg.eigh(white)[1].flip(1)[:, : n - 1]


def _minded(graph: UnitGraph, data: LabelledData, stream: Stream) -> torch.Tensor:
    """Gauss-Newton matrix (n, n) of the softened divergence in the normalised stream, summed over its norms' inputs."""
    n = graph.groups[stream.group].size
    total = torch.zeros(n, n, dtype=torch.float64, device=data.inputs[0].device)
    for values, gradients in pulled_back(graph, enough(data), stream.sources, TEMPERATURE, PROBES, 0, 256):
        for name, gradient in gradients.items():
            total += minded_part(values[name], gradient)
    return total


def minded_part(value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """What a gradient in a stream's ``value`` (..., n) adds to that matrix of the normalised stream."""
    rows = (gradient * value.std(-1, correction=0, keepdim=True)).double().reshape(-1, value.shape[-1])
    return rows.T @ rows


def stream_projection(basis: torch.Tensor, count: int) -> torch.Tensor:
    """Projection (n, count), float64, to a stream of ``count`` units: the first count - 1 directions of ``basis``.

    They are turned so that their coordinates sum to 0: layer-norm's removal of the mean then takes nothing away.
    """
    n = len(basis)
    if count >= n:
        return torch.eye(n, dtype=basis.dtype, device=basis.device)
    fill = torch.eye(count, dtype=basis.dtype, device=basis.device)
    fill[:, 0] = 1
    turn = torch.linalg.qr(fill)[0][:, 1:]  # (count, count - 1), orthogonal to the vector of ones
    return basis[:, : count - 1] @ turn.T


def projected_errors(cov: np.ndarray, metric: np.ndarray, gain: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Cost of a stream of 0 to n units for one reader: float64 (n + 1,), entry k that of k units.

    With C the centred covariance of the reader's inputs, A = W' M W / 2 its weights in the metric, and the features
    F = U_k' diag(1/gain) of the first k - 1 directions: ``tr(A (C - C F' (F C F')^+ F C))``, the least squares error of
    reading x off F x.
    """
    n = len(cov)
    features = basis.T / gain  # (n - 1, n)
    out = np.full(n + 1, float((metric * cov).sum()))
    out[n] = 0.0
    cross = features @ cov  # (n - 1, n)
    second = cross @ features.T
    ridge = 1e-9 * np.trace(second) / max(1, n - 1)
    lower = np.linalg.cholesky(second + ridge * np.eye(n - 1))
    white = np.linalg.solve(lower, cross)  # nested: the first rows belong to the first directions
    saved = np.cumsum(np.einsum("kn,nm,km->k", white, metric, white))
    out[2:n] = np.maximum(out[0] - saved[: n - 2], 0)
    return out
