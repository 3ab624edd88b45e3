"""Kinds of cells that follow one paper each; a new kind needs no more than one of these sections and a function."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from ..config import POSITIVE, SEED, SHARE
from .drawn import DRAWN
from .kinds import AT_LEAST_0, Kind, of_network, register_kind

__all__ = ["GtapSection", "InteractionsSection", "OamipSection", "RanksSection", "TrainAndPruneSection"]


@dataclasses.dataclass(frozen=True)
class GtapSection:
    """``[[gtap]]``: the units of one layer that a form of GTAP (2311.10468) keeps.

    Attributes:
        layer: module path.
        algorithm: which of the three loops, see :func:`mipprune.gtap_top_n`.
        keep: share of the layer's units that stay.
        p: keep rate of the masks; the target density by default.
        method: ``"dropout"``, or a method of :func:`mipprune.semivalue`.
        n_evals: budget of the whole run in coalition evaluations.
        samples: how many calibration samples the game looks at, from the first; all by default.
        seed: of the sampling.
    """

    layer: str
    algorithm: Literal["top_n", "iterated_pruning", "iterated_building"] = "top_n"
    keep: Annotated[float, SHARE] = 0.25
    p: Annotated[float, SHARE] | None = None
    method: Literal["dropout", "auto", "one_toggle", "reuse", "sample_one_toggle"] = "dropout"
    n_evals: Annotated[int, POSITIVE] = 6000
    samples: Annotated[int, POSITIVE] | None = None
    seed: Annotated[int, SEED] = 0


@dataclasses.dataclass(frozen=True)
class RanksSection:
    """``[[ranks]]``: the ranks that Shapley Pruning (2407.15875) compares, against the best set of every size.

    Attributes:
        layer: module path; at most 20 units, for all coalitions are valued.
        k: of the k-partial ranks.
        n_evals: budget of each sampled rank in coalition evaluations.
        samples, seed: as in ``[[gtap]]``.
    """

    layer: str
    k: Annotated[int, POSITIVE] = 2
    n_evals: Annotated[int, POSITIVE] = 4000
    samples: Annotated[int, POSITIVE] | None = None
    seed: Annotated[int, SEED] = 0


@dataclasses.dataclass(frozen=True)
class InteractionsSection:
    """``[[interactions]]``: all pairs of one layer (:func:`mipprune.interactions`, Banzhaf), drawn as a graph.

    Attributes:
        layer, n_evals, samples, seed: as in ``[[gtap]]``.
        p: chance of the other units to be in.
    """

    layer: str
    p: Annotated[float, SHARE] = 0.5
    n_evals: Annotated[int, POSITIVE] = 6000
    samples: Annotated[int, POSITIVE] | None = None
    seed: Annotated[int, SEED] = 0


@dataclasses.dataclass(frozen=True)
class OamipSection:
    """``[[oamip]]``: units chosen with the ReLU network inside the program (:func:`mipprune.relu.select`).

    Attributes:
        formulation: ``"oamip"``, the scores and threshold of 2002.07259, or ``"sound"``, exact for every mask.
        layer: only this layer, judged by a linear head; all layers by default.
        threshold: of the scores of ``"oamip"``.
        loss_weight: lambda of ``"oamip"``.
        margin: of ``"sound"``, in logits.
        samples: calibration samples inside the program, from the first.
        time_limit: seconds; a cell that it ends depends on the machine's speed.
        seed: of the solver.
    """

    formulation: Literal["oamip", "sound"] = "oamip"
    layer: str | None = None
    threshold: Annotated[float, SHARE] = 0.1
    loss_weight: Annotated[float, AT_LEAST_0] = 5.0
    margin: Annotated[float, AT_LEAST_0] = 0.1
    samples: Annotated[int, POSITIVE] = 10
    time_limit: Annotated[float, POSITIVE] | None = None
    seed: Annotated[int, SEED] = 0

    def settled(self) -> OamipSection:
        """Without the keys that the formulation doesn't read, so that they don't make cells."""
        if self.formulation == "oamip":
            return dataclasses.replace(self, margin=0.1)
        return dataclasses.replace(self, threshold=0.1, loss_weight=5.0)


@dataclasses.dataclass(frozen=True)
class TrainAndPruneSection:
    """``[[train_and_prune]]``: one run of :func:`mipprune.train_and_prune`, whose keywords these are.

    Attributes:
        units: share of the units that the network ends with.
    """

    units: Annotated[float, SHARE] = 0.5
    flatness: Annotated[float, AT_LEAST_0] = 0.0
    weight_decay: Annotated[float, AT_LEAST_0] = 0.0
    sharpness_aware: Annotated[float, AT_LEAST_0] = 0.0
    epochs: Annotated[int, POSITIVE] = 30
    seed: Annotated[int, SEED] = 0


_HOME = "mipprune.study.paper_compute"
register_kind(Kind("gtap", GtapSection, f"{_HOME}:gtap", of_network, drawn=DRAWN["gtap"]))
register_kind(Kind("ranks", RanksSection, f"{_HOME}:ranks", of_network, drawn=DRAWN["ranks"]))
register_kind(Kind("interactions", InteractionsSection, f"{_HOME}:interactions", of_network))
register_kind(Kind("oamip", OamipSection, f"{_HOME}:oamip", of_network, OamipSection.settled,
                   drawn=DRAWN["oamip"]))
register_kind(Kind("train_and_prune", TrainAndPruneSection, f"{_HOME}:train_and_prune", of_network,
                   drawn=DRAWN["train_and_prune"]))
