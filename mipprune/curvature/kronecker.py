"""K-FAC: one Kronecker product per linear or convolution layer stands for its block of the Gauss-Newton matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import ConfigError, DataError, ModelStateError, UnknownLayerError
from ..records import Record, frozen_array
from .checks import checked_samples
from .probes import Probes, probed_layers

__all__ = ["KroneckerBlock", "KroneckerFactors", "kfac_factors", "merge_positions", "output_roots", "second_moment",
           "spectral_radius"]

METHODS = ("exact", "monte_carlo", "sketch")
SHARINGS = ("reduce", "expand")


@dataclasses.dataclass(frozen=True, eq=False)
class KroneckerBlock(Record):
    """The factors of one layer: its Gauss-Newton block is taken to be ``a (x) g``.

    Attributes:
        layer: module path.
        a: float64 (d, d), second moment of the layer's inputs (of patches, for a convolution; a constant 1 is appended
            where the layer has a bias).  (groups, d, d) for a grouped convolution.
        g: float64 (o, o), second moment of the loss's derivatives at the layer's outputs.  (groups, o, o) for a
            grouped convolution.
    """

    layer: str
    a: np.ndarray
    g: np.ndarray

    @property
    def top_eigenvalue(self) -> float:
        """``lambda_max(a) lambda_max(g)``, the largest over groups."""
        return float((np.linalg.eigvalsh(self.a)[..., -1] * np.linalg.eigvalsh(self.g)[..., -1]).max())


@dataclasses.dataclass(frozen=True, eq=False)
class KroneckerFactors(Record):
    """What :func:`kfac_factors` found.

    Attributes:
        blocks: one per layer, in the order of their calls.
        skipped: modules whose parameters no block covers (batch-norm, embeddings, recurrent layers, ...).
        method, sharing: how the derivatives were made and positions treated, see :func:`kfac_factors`.
        n_samples: samples that the moments are means over.
    """

    blocks: tuple[KroneckerBlock, ...]
    skipped: tuple[str, ...]
    method: str
    sharing: str
    n_samples: int


def kfac_factors(
    model: nn.Module, data: Any, *, method: str = "exact", sharing: str = "reduce", n_draws: int = 1,
    layers: Iterable[str] | None = None, batch_size: int = 256, seed: int = 0,
) -> KroneckerFactors:
    """K-FAC factors of the mean cross-entropy for every Linear and Conv layer.

    The Gauss-Newton block of a layer is the mean over samples of the outer product of ``sum_t a_t (x) g_t``, with t
    over the positions at which the weights are used.  K-FAC (1503.05671) takes a and g to be independent; with one
    sample and one position that is exact.  Two ways to treat T positions (2311.00636 compares them):

    * ``"expand"`` takes them to be uncorrelated: ``E[sum_t a_t a_t'] (x) E[mean_t g_t g_t']`` (1602.01407).
    * ``"reduce"`` takes them to act together: ``E[(mean_t a_t)(mean_t a_t)'] (x) E[(sum_t g_t)(sum_t g_t)']``; exact
      for one sample if all g_t are equal.  Derivatives before an average pooling act together, so its radius is the
      nearer one there.

    With class probabilities p, the output curvature is ``B = diag(p) - p p' = sum_c r_c r_c'``,
    ``r_c = sqrt(p_c) (e_c - p)``, and g runs over the back-propagated r.

    Args:
        model: a classifier in evaluation mode with logits of shape (N, C); not changed.
        data: anything :func:`mipprune.prune` takes; the targets aren't used.
        method: ``"exact"`` back-propagates all C roots r_c; ``"monte_carlo"`` the derivative of the log-likelihood at
            ``n_draws`` labels drawn from the model; ``"sketch"`` the sum of all r_c with ``n_draws`` sets of random
            signs.  The last two are unbiased for the factors, and cost ``n_draws`` passes.
        layers: module paths; all Linear and Conv1d/2d/3d layers by default.
        sharing: ``"reduce"`` or ``"expand"``; they agree where every layer has one position.
        seed: of the draws, one per sample, so that the result doesn't depend on ``batch_size`` beyond rounding.

    Raises:
        ConfigError: an unknown method or sharing, fewer than one draw.
        UnknownLayerError: a name that isn't a Linear or Conv layer of the model.
        DataError: no samples, inputs that don't fit, or logits that aren't of shape (N, C).
        ModelStateError: the model is in training mode, or a weight or a factor isn't finite.
    """
    if method not in METHODS or sharing not in SHARINGS or n_draws < 1:
        raise ConfigError(f"kfac_factors: expected method in {METHODS}, sharing in {SHARINGS} and n_draws >= 1, "
                          f"got {method!r}, {sharing!r}, {n_draws}")
    samples = checked_samples(model, data, "K-FAC factors are means over independent samples")
    chosen = _chosen(model, layers)
    sums: dict[str, list[Any]] = {}
    draws = torch.from_numpy(np.random.default_rng(seed).random((len(samples), n_draws))).to(samples.targets.device)
    start = 0
    with Probes({name: model.get_submodule(name) for name in chosen}) as probes:
        for part in samples.batches(batch_size):
            logits = probes.run(model, part.inputs)
            own = draws[start : start + len(part)]
            start += len(part)
            for name, rows in probes.inputs().items():
                sums.setdefault(name, [0.0, 0.0])[0] += second_moment(rows.detach().double(), sharing, outputs=False)
            for root in output_roots(logits.detach(), method, own):
                for name, rows in probes.pull_back(logits, root).items():
                    sums[name][1] += second_moment(rows.double(), sharing, outputs=True)
    passes = 1 if method == "exact" else n_draws
    blocks = [
        KroneckerBlock(name, _factor(a / len(samples), name), _factor(g / len(samples) / passes, name))
        for name, (a, g) in sums.items()
    ]
    covered = {id(p) for b in blocks for p in model.get_submodule(b.layer).parameters(recurse=False)}
    skipped = tuple(
        name for name, module in model.named_modules()
        if any(id(p) not in covered for p in module.parameters(recurse=False))
    )
    return KroneckerFactors(tuple(blocks), skipped, method, sharing, len(samples))


def spectral_radius(factors: KroneckerFactors, aggregate: str = "sum") -> float:
    """Estimate of the Gauss-Newton matrix's largest eigenvalue from its K-FAC blocks.

    For a positive semidefinite matrix with diagonal blocks M_l, ``max_l lambda(M_l) <= lambda(M) <= sum_l lambda(M_l)``
    (restrict x to a block; for the upper side write M = R'R and use ``|R x| <= sum_l |R_l| |x_l|`` and Cauchy-Schwarz).
    ``"sum"`` is the upper estimate, which is near when the layers' top directions act together, ``"max"`` the lower.

    Args:
        factors: of :func:`kfac_factors`.
        aggregate: ``"sum"`` or ``"max"``.

    Raises:
        ConfigError: another aggregate.
    """
    tops = [block.top_eigenvalue for block in factors.blocks]
    if aggregate == "sum":
        return float(sum(tops))
    if aggregate == "max":
        return float(max(tops, default=0.0))
    raise ConfigError(f"aggregate: expected 'sum' or 'max', got {aggregate!r}")


def second_moment(rows: torch.Tensor, sharing: str, outputs: bool) -> torch.Tensor:
    """Sum over samples of the rows' outer products: (groups, d, d) of rows (N, T, groups, d)."""
    rows = merge_positions(rows, sharing, outputs)
    return torch.einsum("ntgi,ntgj->gij", rows, rows)


def merge_positions(rows: torch.Tensor, sharing: str, outputs: bool) -> torch.Tensor:
    """Rows (N, T', groups, d) whose sum of outer products is what ``sharing`` makes of T positions (kfac_factors)."""
    if sharing == "reduce":
        return rows.sum(1, keepdim=True) if outputs else rows.mean(1, keepdim=True)
    return rows / rows.shape[1] ** 0.5 if outputs else rows


def output_roots(logits: torch.Tensor, method: str, draws: torch.Tensor) -> Iterator[torch.Tensor]:
    """Vectors r of shape (N, C), differentiable in the logits, with ``E[r r'] = diag(p) - p p'`` for each sample.

    ``"exact"`` yields C of them, to be summed; the others one per column of ``draws``, to be averaged.  A label that is
    drawn depends on p in a way that differentiation doesn't see; random signs don't, so that the derivative of a
    sketched moment is unbiased too.

    Args:
        draws: uniform numbers in [0, 1), float64 (N, n_draws): the label's quantile, or the seed of the signs.
    """
    if logits.ndim != 2:
        raise DataError(f"K-FAC needs logits of shape (N, C), the model's outputs have shape {tuple(logits.shape)}")
    logp = torch.log_softmax(logits, 1)
    p, root = logp.exp(), (0.5 * logp).exp()
    classes = p.shape[1]
    eye = torch.eye(classes, dtype=p.dtype, device=p.device)
    if method == "exact":
        for c in range(classes):
            yield root[:, c : c + 1] * (eye[c] - p)
        return
    for column in draws.T:
        if method == "monte_carlo":
            label = torch.searchsorted(p.detach().double().cumsum(1), column[:, None].contiguous())
            yield eye[label[:, 0].clamp_max(classes - 1)] - p
        else:
            weights = _signs(column, classes).to(p.dtype) * root
            yield weights - weights.sum(1, keepdim=True) * p


def _signs(column: torch.Tensor, classes: int) -> torch.Tensor:
    """Independent random signs (N, classes), a function of each sample's own number only."""
    words = (column.cpu().numpy() * 2.0**53).astype(np.uint64)
    signs = np.stack([np.random.default_rng(int(w)).integers(0, 2, classes) for w in words]) * 2 - 1
    return torch.from_numpy(signs).to(column.device)


def _chosen(model: nn.Module, layers: Iterable[str] | None) -> list[str]:
    known = probed_layers(model)
    if layers is None:
        return list(known)
    names = list(layers)
    for name in names:
        if name not in known:
            raise UnknownLayerError(f"{name!r} isn't a Linear or Conv layer of the model; those are {list(known)}")
    return names


def _factor(value: Any, name: str) -> np.ndarray:
    array = value.cpu().numpy()
    if not np.isfinite(array).all():
        raise ModelStateError(f"the K-FAC factors of layer {name!r} aren't finite; look for overflow in its weights "
                              "or inputs")
    return frozen_array(array[0] if len(array) == 1 else array)
