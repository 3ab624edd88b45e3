"""What held-out data prove about a pruned network, whatever the data's distribution: exact binomial bounds."""

from __future__ import annotations

import dataclasses

import torch
from scipy.stats import beta
from torch import nn

from ..errors import DataError
from ..game import LabelledData
from ..records import Record
from ..surgery.verify import first_tensor

__all__ = ["AccuracyCertificate", "certify_accuracy", "clopper_pearson_upper"]


def clopper_pearson_upper(events: int, trials: int, confidence: float) -> float:
    """Exact one-sided upper confidence bound on a probability (Clopper and Pearson 1934).

    The largest p for which ``events`` or fewer of ``trials`` still have probability at least 1 - ``confidence``; the
    true probability lies above it in at most that share of all samples, at every p and every number of trials.
    """
    if not 0 <= events <= trials or trials < 1:
        raise DataError(f"{events} events in {trials} trials make no sense")
    if not 0 < confidence < 1:
        raise DataError(f"a confidence lies between 0 and 1, got {confidence}")
    return 1.0 if events == trials else float(beta.ppf(confidence, events + 1, trials - events))


@dataclasses.dataclass(frozen=True, eq=False)
class AccuracyCertificate(Record):
    """Bounds for new inputs from the distribution of the held-out data, each at ``confidence`` by itself.

    They hold if nothing about the pruned network was chosen on these data (but see :meth:`of_ladder`); independent
    samples are all they assume.

    Attributes:
        n_samples: held-out samples.
        disagreements: samples on which the two networks' classes differ.
        lost: samples that the dense network got right and the pruned one doesn't.
        disagreement_bound: P(classes differ) is at most this.
        drop_bound: the accuracy falls by at most this; P(dense right, pruned wrong) bounds the fall.
    """

    n_samples: int
    disagreements: int
    lost: int
    confidence: float
    disagreement_bound: float
    drop_bound: float

    def at(self, confidence: float) -> AccuracyCertificate:
        """The same counts at another confidence."""
        return dataclasses.replace(
            self, confidence=confidence,
            disagreement_bound=clopper_pearson_upper(self.disagreements, self.n_samples, confidence),
            drop_bound=clopper_pearson_upper(self.lost, self.n_samples, confidence),
        )

    def of_ladder(self, drop: float, looks: int) -> AccuracyCertificate:
        """What is left of the bounds when these data decided which of ``looks`` networks this is.

        Tests in a fixed order up to the first failure prove that the accuracy falls by at most ``drop``, the limit
        that was tested, and nothing below it: the count of the network at which they ended is selected.  No test was
        about disagreement, so its bound is made to hold for all ``looks`` networks at once (union bound).
        """
        each = 1 - (1 - self.confidence) / looks
        return dataclasses.replace(
            self, drop_bound=drop,
            disagreement_bound=clopper_pearson_upper(self.disagreements, self.n_samples, each),
        )

    def __str__(self) -> str:
        return (f"{self.disagreements} of {self.n_samples} held-out predictions changed; with {self.confidence:.0%} "
                f"confidence at most {self.disagreement_bound:.2%} of new ones do, and accuracy falls by at most "
                f"{self.drop_bound:.2%}")


@torch.no_grad()
def certify_accuracy(
    dense: nn.Module, small: nn.Module, data: LabelledData, confidence: float = 0.95
) -> AccuracyCertificate:
    """Compare two networks on data that no choice between networks has seen."""
    changed = lost = 0
    for part in data.batches():
        a, b = (first_tensor(model(*part.inputs)).argmax(1) for model in (dense, small))
        changed += int((a != b).sum())
        lost += int(((a == part.targets) & (b != part.targets)).sum())
    n = len(data)
    return AccuracyCertificate(n, changed, lost, confidence, clopper_pearson_upper(changed, n, confidence),
                       clopper_pearson_upper(lost, n, confidence))
