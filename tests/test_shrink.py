"""Within a tolerance with refits: both measures hold, and the search beyond the curves only makes networks smaller."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mipprune as mp
from mipprune.demo import train
from mipprune.graph import UnitGraph
from mipprune.pruning import delivery, pipeline, search, shrink
from mipprune.pruning.baseline import magnitude_mask
from mipprune.pruning.repairing import Repairer
from mipprune.repair import CutNetwork, refit_cut

NATS = 0.05


@pytest.fixture(scope="module")
def mlp(digits_flat: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))
    return train(model, *digits_flat.train, epochs=12)


@pytest.fixture
def searcher(mlp: nn.Module, digits_flat: Any) -> search.Searcher:
    graph, data, _ = pipeline.prepare(mlp, digits_flat.train, 0.2, None, 0)
    return search.Searcher(
        graph=graph, data=data, surrogate="refit", pinned=np.zeros(graph.n_units, dtype=bool), min_keep=1,
        repairer=Repairer(graph, data, data, ("refit",)), solver="highs", n_jobs=1, seed=0, deadline=None,
        tick=lambda what: None,
    )


@pytest.fixture
def start(searcher: search.Searcher) -> search.Candidate:
    """Found within a fifth of the tolerance."""
    found: list[search.Candidate] = []
    oracle = shrink.RiseOracle(searcher)
    search.within_tolerance(searcher, NATS / 5, "macs", 1, found, rise=oracle)
    assert oracle(found[-1].kept) <= NATS / 5
    assert found[-1].stages
    return found[-1]


def cost(graph: UnitGraph, kept: np.ndarray, resource: str = "macs") -> int:
    return graph.costs.cost(resource, graph.costs.counts(kept))


def test_the_oracle_measures_the_rise_on_samples_that_the_refit_did_not_see(searcher: search.Searcher) -> None:
    oracle = shrink.RiseOracle(searcher)
    everything = np.ones(searcher.graph.n_units, dtype=bool)
    assert oracle(everything) == pytest.approx(0.0, abs=1e-9)
    kept = magnitude_mask(searcher.graph, {"macs": cost(searcher.graph, everything) // 3}, searcher.pinned, 1)
    cut = CutNetwork(searcher.graph, kept)
    refit_cut(cut, oracle.fit)
    order = torch.randperm(len(searcher.data), generator=torch.Generator().manual_seed(0))
    unseen = searcher.data.take(order[2 * len(searcher.data) // 3 :])
    plain = F.cross_entropy(cut.run(unseen.inputs).double(), unseen.targets)
    dense = F.cross_entropy(searcher.graph.program.run(unseen.inputs).double(), unseen.targets)
    assert oracle(kept) == pytest.approx(float(plain - dense), abs=1e-5)
    assert oracle(kept) > 0


def test_shrinking_saves_and_stays_within_both_measures(searcher: search.Searcher, start: search.Candidate) -> None:
    oracle = shrink.RiseOracle(searcher)
    found = shrink.shrink(searcher, oracle, start, NATS, "macs")
    assert cost(searcher.graph, found.kept) < cost(searcher.graph, start.kept)
    assert oracle.ridges  # settled at the start's network
    dense = searcher.truth(np.ones(searcher.graph.n_units, dtype=bool)).loss
    assert oracle(found.kept) <= NATS
    assert found.quality.loss == pytest.approx(searcher.truth(found.kept).loss)
    assert found.quality.loss <= dense + NATS
    last = found.stages[-1]
    assert last.objective == cost(searcher.graph, found.kept)
    assert last.bound <= last.objective
    assert last.max_drop is not None
    assert last.surrogate_drop == pytest.approx(float(searcher.refit_model.errors(found.kept).sum()))
    assert last.surrogate_drop <= last.max_drop
    assert last.true_drop == pytest.approx(found.quality.loss - dense)


def test_where_nothing_smaller_passes_the_start_stays(
    searcher: search.Searcher, start: search.Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    real = shrink.UnitExchange.run

    def run(self: Any, kept: np.ndarray, *rest: Any, **named: Any) -> Any:
        tried.append(cost(searcher.graph, kept))
        return real(self, kept, *rest, **named)

    monkeypatch.setattr(shrink.UnitExchange, "run", run)
    hopeless = shrink.RiseOracle(searcher)
    monkeypatch.setattr(shrink.RiseOracle, "_loss", lambda self, losses: 1.0)
    assert shrink.shrink(searcher, hopeless, start, NATS, "macs") is start
    assert tried == sorted(tried)  # the steps are halved
    assert len(tried) > 1
    assert max(tried) < cost(searcher.graph, start.kept)


def test_pinned_units_stay(searcher: search.Searcher, start: search.Candidate) -> None:
    pinned = np.zeros(searcher.graph.n_units, dtype=bool)
    pinned[np.flatnonzero(start.kept)[::2]] = True
    held = dataclasses.replace(searcher, pinned=pinned)
    found = shrink.shrink(held, shrink.RiseOracle(held), start, NATS, "units")
    assert found.kept[pinned].all()
    assert found.kept.sum() < start.kept.sum()


def test_prune_uses_it_and_compares_at_the_same_cost(mlp: nn.Module, digits_flat: Any) -> None:
    seen: dict[str, Any] = {}
    real = delivery.magnitude_mask

    def spy(graph: UnitGraph, limits: dict[str, int], *rest: Any) -> np.ndarray:
        seen.update(limits=limits)
        return real(graph, limits, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "magnitude_mask", spy)
        result = mp.prune(
            mlp, digits_flat.train, holdout=digits_flat.test, tolerance=mp.LossIncrease(NATS), progress=False
        )
    assert seen["limits"] == {"units": int(result.kept.sum())}
    report = result.report
    assert report.pruned_calibration.loss <= report.dense_calibration.loss + NATS
    assert report.solution.bound <= report.solution.objective == result.kept.sum()
