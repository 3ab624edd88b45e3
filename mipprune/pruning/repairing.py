"""The repairs of ``prune``, one after another, each kept only where unseen loss says so."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..game import LabelledData
from ..graph import UnitGraph
from ..records import Record
from ..repair import (
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
from .measure import Quality, measure

__all__ = ["REPAIRS", "RepairStep", "Repairer"]

REPAIRS = ("bn", "refit", "head", "lm")


@dataclasses.dataclass(frozen=True, eq=False)
class RepairStep(Record):
    """What one repair did.

    Attributes:
        name: ``"bn"``, ``"refit"``, ``"head"`` or ``"lm"``; the first step is ``"cut"``, the network as surgery left
            it.
        loss, accuracy: of the repaired network on the data that judges, whether or not it was taken.
        taken: whether the network went on from here.
        seconds: wall-clock time.
    """

    name: str
    loss: float
    accuracy: float
    taken: bool
    seconds: float


class Repairer:
    """Repairs networks cut from one dense network, with the dense network's activations computed once.

    Args:
        data: what repairs are fitted to.
        judge: what decides whether a repair is taken: data that the repairs don't see, if there are any.
        names: the repairs, out of :data:`REPAIRS`; they run in that order.
    """

    def __init__(self, graph: UnitGraph, data: LabelledData, judge: LabelledData, names: Sequence[str]) -> None:
        self.graph, self.data, self.judge, self.names = graph, data, judge, tuple(names)
        self._judging = "calibration data" if judge is data else "validation data"
        self._dense: DenseRun | None = None

    @property
    def dense(self) -> DenseRun:
        if self._dense is None:
            self._dense = DenseRun(self.graph, self.data)
        return self._dense

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
        best = measure(small, self.judge, self._judging)
        steps = [RepairStep("cut", best.loss, best.accuracy, True, time.perf_counter() - begin)]
        if not kept.all():
            cut = CutNetwork(self.graph, kept)
            wanted = self.names if names is None else names
            for name in (n for n in REPAIRS if n in wanted and (n != "lm" or goes_on())):
                best = self._try(name, small, cut, best, steps, goes_on)
        return small.train(training), tuple(steps)

    def _try(
        self, name: str, small: nn.Module, cut: CutNetwork, best: Quality, steps: list[RepairStep],
        goes_on: Callable[[], bool],
    ) -> Quality:
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
            return best
        after = measure(small, self.judge, self._judging)
        taken = after.loss < best.loss
        steps.append(RepairStep(name, after.loss, after.accuracy, taken, time.perf_counter() - begin))
        if taken:
            return after
        small.load_state_dict(before)
        if name != "bn":
            with torch.no_grad():
                for key, value in tensors.items():
                    cut.tensors[key].copy_(value)
        return best

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
