"""The last word on a search's networks: what led within a structure, labels between structures."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.game import LabelledData, as_data
from mipprune.pruning import jury as jury_module
from mipprune.pruning.jury import Jury
from mipprune.pruning.oracle import Losses, RefitOracle
from mipprune.pruning.refit_search import _by_emptied


@pytest.fixture
def searcher() -> Any:
    """What the jury needs of one, for a network of two hidden layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x, fresh = torch.randn(90, 6), torch.randn(50, 6)
    graph = mp.trace(model, x[:1])
    data, unseen = (as_data((v, model(v).argmax(1)), graph) for v in (x, fresh))
    return SimpleNamespace(graph=graph, data=data, unseen=unseen, seed=0, goes_on=lambda: True)


def masks(graph: Any, number: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.permutation(np.arange(graph.n_units) < 10) for _ in range(number)]


def lead(searcher: Any, labels: bool = False) -> RefitOracle:
    return RefitOracle(searcher.graph, searcher.data, searcher.unseen, head=True, labels=labels)


def splits(searcher: Any, labels: bool = False) -> list[RefitOracle]:
    return [RefitOracle(searcher.graph, searcher.data, searcher.unseen, True, seed, labels) for seed in range(3)]


@pytest.mark.parametrize("labels", [False, True])
def test_one_structure_is_compared_by_what_led_over_three_splits(searcher: Any, labels: bool) -> None:
    some = masks(searcher.graph, 12)
    mean = [np.mean([split(kept) for split in splits(searcher, labels)]) for kept in some]
    jury = Jury(searcher, lead(searcher, labels))
    for i, j in itertools.combinations(range(12), 2):
        assert jury.best([some[i], some[j]]) is (some[i] if mean[i] <= mean[j] else some[j])


def test_several_structures_are_compared_by_labels_of_validation_data_on_what_is_delivered(searcher: Any) -> None:
    some = masks(searcher.graph, 6)
    found = Jury(searcher, lead(searcher)).ranked(some)
    repairer = mp.pruning.repairing.Repairer(searcher.graph, searcher.data, searcher.unseen, ("refit", "head"))
    loss = [repairer.deploy(kept)[1][-1].loss for kept in some]
    assert (found[0] == some[int(np.argmin(loss))]).all()
    assert [k.tolist() for k in found] == [some[i].tolist() for i in np.argsort(loss)]


def test_without_validation_data_the_splits_labels_count(searcher: Any) -> None:
    searcher.unseen = None
    some = masks(searcher.graph, 6)
    mean = [np.mean([split.losses(kept).cross_entropy for split in splits(searcher)]) for kept in some]
    found = Jury(searcher, lead(searcher)).ranked(some)
    assert [k.tolist() for k in found] == [some[i].tolist() for i in np.argsort(mean)]


@pytest.mark.parametrize("labels", [False, True])
def test_out_of_time_the_search_s_own_split_decides(
    searcher: Any, monkeypatch: pytest.MonkeyPatch, labels: bool
) -> None:
    first, some = lead(searcher, labels), masks(searcher.graph, 6)
    searcher.goes_on = lambda: False
    jury = Jury(searcher, first)
    monkeypatch.setattr(jury_module, "RefitOracle", None)  # no other is made
    assert jury.best(some) is min(some, key=first)
    assert [k.tolist() for k in jury.ranked(some)] == [k.tolist() for k in sorted(some, key=first)]


def test_where_memory_is_short_the_first_split_judges_alone(
    searcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lead(searcher)
    values = first.fit.targets[0].values()
    assert len(first.fit.targets) == 1
    assert first.fit.memory() == sum(v.numel() * v.element_size() for v in values) > 1000
    monkeypatch.setattr(jury_module, "MOST_MEMORY", 1000)
    some = masks(searcher.graph, 6)
    jury = Jury(searcher, first)
    monkeypatch.setattr(jury_module, "RefitOracle", None)  # no other is made
    assert jury.best(some) is min(some, key=first)
    assert jury.ranked(some)[0] is min(some, key=lambda kept: first.losses(kept).cross_entropy)


def test_masks_of_one_structure_meet_first(searcher: Any) -> None:
    some = masks(searcher.graph, 4)
    for kept in some[:2]:
        kept[:8] = False
    loss = {id(kept): value for kept, value in zip(some, (2.0, 1.0, 3.0, 4.0), strict=True)}
    found = list(_by_emptied(searcher.graph.costs, some, lambda kept: loss[id(kept)]))
    assert [found[0] is some[1], found[1] is some[2]] == [True, True]


def test_the_oracle_remembers_both_losses(searcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = RefitOracle(searcher.graph, searcher.data, searcher.unseen, head=True, labels=True)
    (kept,) = masks(searcher.graph, 1)
    losses = oracle.losses(kept)
    monkeypatch.setattr(RefitOracle, "_repaired", None)
    assert oracle.losses(kept.copy()) is losses
    assert oracle(kept) == pytest.approx((losses.divergence * losses.cross_entropy) ** 0.5)
    assert isinstance(losses, Losses)
    assert min(losses) > 0


def test_whole_data_are_fitted_and_only_validation_data_judge(searcher: Any) -> None:
    oracle = RefitOracle(searcher.graph, searcher.data, searcher.unseen, head=True, whole=True)
    assert (len(oracle.fit.data), len(oracle.targets)) == (90, 50)
    (kept,) = masks(searcher.graph, 1)
    again = RefitOracle(
        searcher.graph, searcher.data, LabelledData(searcher.unseen.inputs, searcher.unseen.targets * 0), True,
        whole=True,
    )
    assert again.losses(kept).divergence == oracle.losses(kept).divergence
    assert again.losses(kept).cross_entropy != oracle.losses(kept).cross_entropy
