"""How good a mask's network is once it is repaired: what the searches over masks ask."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..curvature import Sensitivity
from ..curvature.output_metric import TEMPERATURE
from ..game import LabelledData
from ..graph import UnitGraph
from ..repair import DELIVERED, CutNetwork, DenseRun, Sweep, fit_head
from .measure import ROWS

__all__ = ["MOST_MEMORY", "Losses", "RefitOracle", "softened_divergence"]

#: Steps of the head's fit in the oracle; it is convex, starts at the refit's weights, and has settled by then.
HEAD_STEPS = 6
#: The oracle's samples per batch, and rows per column of a layer.
ORACLE_BATCH, ENOUGH = 2048, 16
#: Networks whose intermediate values the oracle keeps, if they take no more bytes than that; and bytes that the dense
#: network's may take for others to judge beside it.
REMEMBERED, MOST_MEMORY = 3, 2**29


def softened_divergence(dense: torch.Tensor, small: torch.Tensor, temperature: float = TEMPERATURE) -> float:
    """t^2 KL(dense || small) of the probabilities at temperature t, in nats, mean over samples."""
    total = 0.0
    for some, others in zip(dense.split(ROWS), small.split(ROWS), strict=True):
        p = torch.log_softmax(some.double() / temperature, -1)
        q = torch.log_softmax(others.double() / temperature, -1)
        total += float((p.exp() * (p - q)).sum(-1).sum())
    return temperature**2 * (total / dense[..., 0].numel())


class Losses(NamedTuple):
    """Softened divergence from the dense network and cross-entropy, both in nats."""

    divergence: float
    cross_entropy: float


class RefitOracle:
    """How good a mask's network is on samples that its refit didn't see.

    The divergence from the dense network counts, with ``head`` after the head's fit: all samples take part in it, where
    few decide the cross-entropy of a good network.  With ``labels`` it is the geometric mean with the cross-entropy:
    the divergence alone ranks networks of different emptied groups wrongly.  Measured over three seeds, labels are
    worth 2 points on a small transformer at 5% and 10% MACs, and cost .3 to .8 on a chain of convolutions there.

    Two thirds of the data (drawn by ``seed``) fit, the last third (and ``unseen``, if given) judges: a wide layer
    before a classifier fits its own samples too well to be compared on them.  With ``whole``, all data fit and
    ``unseen`` judges.  Every network takes over what comes before its first difference from one of the best networks
    so far.

    Attributes:
        known: the bytes of a mask -> its losses.
        ridges: of the layers' refits, by layer name; where there is none cross-validation chooses it for every network.
    """

    def __init__(
        self, graph: UnitGraph, data: LabelledData, unseen: LabelledData | None, head: bool = False, seed: int = 0,
        labels: bool = False, whole: bool = False, ridges: Mapping[str, torch.Tensor] = MappingProxyType({}),
        sensitivity: Sensitivity | None = None,
    ) -> None:
        self.graph, self.head, self.labels = graph, head, labels
        if whole:
            assert unseen is not None
            fit, rest = data, unseen
        else:
            first = max(1, 2 * len(data) // 3)
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
            fit, rest = data.take(order[:first]), data.take(order[first:] if len(data) > 1 else order)
            if unseen is not None:
                inputs = tuple(torch.cat(pair) for pair in zip(rest.inputs, unseen.inputs, strict=True))
                rest = LabelledData(inputs, torch.cat([rest.targets, unseen.targets]))
        self.targets = rest.targets
        self.fit = DenseRun(
            graph, fit, ORACLE_BATCH, DELIVERED if whole else ENOUGH, rest,
            Sensitivity(graph, data) if sensitivity is None else sensitivity,
        )
        self.ridges = ridges
        self._best: list[tuple[float, int, Sweep]] = []
        self._calls = 0
        self.known: dict[bytes, Losses] = {}

    def __call__(self, kept: np.ndarray) -> float:
        return self._loss(self.losses(kept))

    def settle(self, kept: np.ndarray) -> None:
        """Judge networks with the ridges that cross-validation chooses for this one: far less work for each."""
        self.ridges = {}
        self.known.clear()
        self._best.clear()
        self.known[kept.tobytes()], sweep = self._repaired(CutNetwork(self.graph, kept))
        self.ridges = sweep.chosen

    def losses(self, kept: np.ndarray) -> Losses:
        """Both losses of a mask's repaired network, computed once."""
        key = kept.tobytes()
        if key not in self.known:
            self.known[key] = self._repaired(CutNetwork(self.graph, kept))[0]
        return self.known[key]

    @torch.no_grad()
    def _repaired(self, cut: CutNetwork) -> tuple[Losses, Sweep]:
        before = [old for _, _, old in self._best]
        sweep = Sweep(cut, self.fit, before=before, remember=True, ridges=self.ridges)
        sweep.run()
        losses = self._losses(self._logits(cut, sweep))
        self._calls += 1
        if REMEMBERED * sweep.memory() <= MOST_MEMORY:
            ended = (self._loss(losses), -self._calls, sweep)
            self._best = sorted([*self._best, ended], key=lambda one: one[:2])[:REMEMBERED]
        return losses, sweep

    def _losses(self, logits: torch.Tensor) -> Losses:
        entropy = float(F.cross_entropy(logits.double(), self.targets))
        return Losses(softened_divergence(self.fit.judged_logits, logits), entropy)

    def _loss(self, losses: Losses) -> float:
        return float((losses.divergence * losses.cross_entropy) ** 0.5) if self.labels else losses.divergence

    def _logits(self, cut: CutNetwork, sweep: Sweep) -> torch.Tensor:
        """On the samples that judge, after the head's fit."""
        output = self.graph.program.captured.output
        layer = self.fit.layers.get(output.name)
        if self.head and layer is not None and layer.is_linear and self.fit.logits.ndim == 2:
            features = [env[layer.data] for env in sweep.envs]
            fitted = [x[:n] for x, n in zip(features, self.fit.fitted, strict=True)]
            fit_head(cut, self.fit, torch.cat(fitted), max_iter=HEAD_STEPS)
            judged = torch.cat([x[n:] for x, n in zip(features, self.fit.fitted, strict=True)])
            bias = None if layer.bias is None else cut.tensors[layer.bias]
            return F.linear(judged, cut.tensors[layer.weight], bias)
        return torch.cat([env[output.name][n:] for env, n in zip(sweep.envs, self.fit.fitted, strict=True)])
