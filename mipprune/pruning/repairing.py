"""The repairs of ``prune``, one after another, each kept only where unseen loss says so."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..curvature import Sensitivity
from ..game import LabelledData
from ..graph import UnitGraph
from ..records import Record
from ..repair import (
    DELIVERED,
    MOST_WEIGHTS,
    CutNetwork,
    DenseRun,
    count_weights,
    polish,
    recalibrate_batch_norm,
    refit_cut,
    refit_head,
)
from ..surgery import PrunePlan
from .measure import logits_on, rate
from .oracle import softened_divergence

__all__ = ["REPAIRS", "RepairStep", "Repairer"]

REPAIRS = ("bn", "refit", "head", "lm")


@dataclasses.dataclass(frozen=True, eq=False)
class RepairStep(Record):
    """What one repair did.

    Attributes:
        name: ``"bn"``, ``"refit"``, ``"head"`` or ``"lm"``; the first step is ``"cut"``, the network as surgery left
            it.
        loss, accuracy: of the repaired network on the data that judges, whether or not it was taken.
        divergence: of the dense network's outputs from its outputs there
            (:func:`~mipprune.pruning.oracle.softened_divergence`), in nats.
        taken: whether the network went on from here.
        seconds: wall-clock time.
    """

    name: str
    loss: float
    accuracy: float
    divergence: float
    taken: bool
    seconds: float


class Repairer:
    """Repairs networks cut from one dense network, with the dense network's activations computed once.

    Args:
        data: what repairs are fitted to.
        judge: what decides whether a repair is taken: data that the repairs don't see, if there are any.
        names: the repairs, out of :data:`REPAIRS`; they run in that order.
        seed: of what is sampled.
    """

    def __init__(
        self, graph: UnitGraph, data: LabelledData, judge: LabelledData, names: Sequence[str], seed: int = 0
    ) -> None:
        self.graph, self.data, self.judge, self.names = graph, data, judge, tuple(names)
        self.sensitivity = Sensitivity(graph, data, seed)  # measured when first asked for, by a repair or by the search
        self._judging = "calibration data" if judge is data else "validation data"

    @functools.cached_property
    def dense(self) -> DenseRun:
        """The dense network's values on the data that repairs are fitted to."""
        return DenseRun(self.graph, self.data, enough=DELIVERED, sensitivity=self.sensitivity)

    @functools.cached_property
    def _dense_logits(self) -> torch.Tensor:
        return logits_on(self.graph.model, self.judge)

    def deploy(
        self, kept: np.ndarray, names: Sequence[str] | None = None, goes_on: Callable[[], bool] = lambda: True
    ) -> tuple[nn.Module, tuple[RepairStep, ...]]:
        """The smaller network of a mask, repaired (by ``names`` only, if given), and what every repair did.

        Only ``"lm"`` asks whether it ``goes_on``, before every step; of its steps the best by the judging data stays.
        The others are part of what a mask was chosen for, so a network that is delivered without them could break the
        tolerance it was found to keep.
        """
        begin = time.perf_counter()
        small = PrunePlan.from_mask(self.graph, kept).apply(self.graph.model)
        training = small.training
        small.eval()
        steps = [self._step("cut", small, begin, math.inf)]
        if not kept.all():
            cut = CutNetwork(self.graph, kept)
            wanted = self.names if names is None else names
            for name in (n for n in REPAIRS if n in wanted and (n != "lm" or goes_on())):
                self._try(name, small, cut, steps, goes_on)
        return small.train(training), tuple(steps)

    def _try(
        self, name: str, small: nn.Module, cut: CutNetwork, steps: list[RepairStep], goes_on: Callable[[], bool]
    ) -> None:
        begin = time.perf_counter()
        before = {key: value.clone() for key, value in small.state_dict().items()}
        if name == "bn":
            changed = bool(recalibrate_batch_norm(small, self.data))
        else:
            cut.read(small)  # batch-norm statistics that an earlier repair renewed there alone
            tensors = {key: value.clone() for key, value in cut.tensors.items()}
            changed = self._change(name, cut, goes_on)
            cut.write(small)
        if not changed:
            return
        steps.append(self._step(name, small, begin, next(step.loss for step in reversed(steps) if step.taken)))
        if steps[-1].taken:
            return
        small.load_state_dict(before)
        if name != "bn":
            with torch.no_grad():
                for key, value in tensors.items():
                    cut.tensors[key].copy_(value)

    def _step(self, name: str, small: nn.Module, begin: float, limit: float) -> RepairStep:
        """What a repair did; it is taken if the loss is below the ``limit``."""
        logits = logits_on(small, self.judge)
        now = rate(logits, self.judge, self._judging)
        divergence = softened_divergence(self._dense_logits, logits)
        return RepairStep(name, now.loss, now.accuracy, divergence, now.loss < limit, time.perf_counter() - begin)

    def _change(self, name: str, cut: CutNetwork, goes_on: Callable[[], bool]) -> bool:
        if name == "refit":
            return refit_cut(cut, self.dense) > 0
        if name == "head":
            return refit_head(cut, self.dense)
        if count_weights(cut) > MOST_WEIGHTS:
            return False
        polish(cut, self.dense, judge=lambda: self._loss(cut), goes_on=goes_on)
        return True

    @torch.no_grad()
    def _loss(self, cut: CutNetwork) -> float:
        """Cross-entropy on the data that judge, as :func:`measure` has it."""
        total = 0.0
        for part in self.judge.batches():
            total += float(F.cross_entropy(cut.run(part.inputs).double(), part.targets, reduction="sum"))
        return total / len(self.judge)
