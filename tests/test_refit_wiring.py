"""What the parts of the refitted road hand to each other: what is shared, what is remembered, how much is tried."""

from __future__ import annotations

import dataclasses
import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

import mipprune as mp
from mipprune.curvature import RefitCurve, RefitModel, positive
from mipprune.curvature.positive import FEW, NEAR, above_largest
from mipprune.game import LabelledData, as_data
from mipprune.graph import UnitGraph
from mipprune.pruning import jury as jury_module
from mipprune.pruning import oracle as oracle_module
from mipprune.pruning import refit_search, repairing
from mipprune.pruning.jury import Jury
from mipprune.pruning.oracle import RefitOracle, softened_divergence
from mipprune.pruning.repairing import Repairer
from mipprune.pruning.search import Searcher
from mipprune.pruning.threads import threads_for
from mipprune.pruning.unit_exchange import UnitExchange
from mipprune.pruning.widths import WidthSearch
from mipprune.repair import DELIVERED, DenseRun

curves_module = importlib.import_module("mipprune.curvature.refit_curves")  # a function has the module's name


@pytest.fixture
def network() -> tuple[UnitGraph, LabelledData]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(90, 6)
    graph = mp.trace(model.eval(), x[:1])
    with torch.no_grad():
        return graph, as_data((x, model(x).argmax(1)), graph)


def half(graph: UnitGraph, first: int = 0) -> np.ndarray:
    return np.arange(graph.n_units) % 2 == first


def searcher(graph: UnitGraph, data: LabelledData) -> Searcher:
    return Searcher(
        graph=graph, data=data, surrogate="refit", pinned=np.zeros(graph.n_units, dtype=bool), min_keep=1,
        repairer=Repairer(graph, data, data, ("refit",)), solver="highs", n_jobs=1, seed=0, deadline=None,
        tick=lambda what: None,
    )


def test_the_jury_takes_over_what_the_lead_has_measured(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = network
    lead = RefitOracle(graph, data, data, head=True)
    lead.settle(half(graph))
    monkeypatch.setattr(oracle_module, "Sensitivity", None)  # no other is measured
    made: list[RefitOracle] = []

    class Spied(RefitOracle):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            made.append(self)

    monkeypatch.setattr(jury_module, "RefitOracle", Spied)
    jury = Jury(SimpleNamespace(graph=graph, data=data, unseen=data, seed=0, goes_on=lambda: True), lead)  # type: ignore[arg-type]
    jury.best([half(graph), half(graph, 1)])
    jury.ranked([half(graph), half(graph, 1)])
    second, third, whole = made
    assert lead.ridges
    assert second.ridges is third.ridges is lead.ridges
    assert not whole.ridges  # judged as delivered: cross-validation for every network
    assert whole.fit.enough == DELIVERED == Repairer(graph, data, data, ("refit",)).dense.enough


def test_settling_forgets_networks_of_other_ridges(network: Any) -> None:
    graph, data = network
    oracle = RefitOracle(graph, data, None)
    before = half(graph)
    before[:8] = True
    oracle(before)
    oracle.settle(half(graph, 1))
    assert len(oracle.known) == len(oracle._best) == 1
    assert set(oracle.ridges) == set(list(oracle.fit.layers)[1:])


def test_what_is_remembered_was_built_with_the_same_repairs() -> None:
    asked: list[tuple[str, ...]] = []

    def deploy(kept: np.ndarray, names: tuple[str, ...], goes_on: Any) -> tuple[nn.Module, tuple[()]]:
        asked.append(names)
        return nn.Linear(4, 2).eval(), ()

    data = LabelledData((torch.randn(9, 4),), torch.zeros(9, dtype=torch.int64))
    search = Searcher(
        graph=None, data=data, surrogate="refit", pinned=None, min_keep=1,  # type: ignore[arg-type]
        repairer=SimpleNamespace(names=("refit", "lm"), deploy=deploy), solver="highs",  # type: ignore[arg-type]
        n_jobs=1, seed=0, deadline=None, tick=lambda what: None,
    )
    kept = np.array([True, False])
    for _ in range(2):
        search.truth(kept)
    assert search.deployed(kept)[0] is search.deployed(kept.copy())[0]
    search.deployed(~kept)
    assert asked == [("refit",), ("refit", "lm"), ("refit", "lm")]
    dataclasses.replace(search).deployed(~kept)
    assert len(asked) == 4


def test_the_report_s_divergence_is_that_before_the_head(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = network

    def sharper(cut: Any, dense: Any) -> bool:  # labels are the dense network's answers
        for node, tensor in cut.tensors.items():
            if node == dense.layers[graph.program.captured.output.name].weight:
                tensor *= 1.1
        return True

    monkeypatch.setattr(repairing, "refit_head", sharper)
    result = mp.prune(graph.model, (*data.inputs, data.targets), budget=mp.Macs(0.6), validation=data,
                      holdout=data, progress=False)
    steps = {step.name: step for step in result.report.repairs}
    assert steps["refit"].taken
    assert steps["head"].taken
    assert result.report.divergence == steps["refit"].divergence != steps["head"].divergence
    with torch.no_grad():
        logits = graph.model(*data.inputs), result.model(*data.inputs)
    assert steps["head"].divergence == pytest.approx(softened_divergence(*logits), rel=1e-5)


def test_samples_that_are_left_out_lie_between_others(network: Any) -> None:
    graph, data = network
    many = LabelledData(tuple(x.repeat(20, 1) for x in data.inputs), data.targets.repeat(20).sort().values)
    dense = DenseRun(graph, many, batch_size=2000, enough=1)
    layer = next(iter(dense.layers.values()))
    ((samples, grid),) = dense.rows(layer, 6, 0)  # 1800 rows for 6 columns of 16 each
    assert (samples, grid) == (slice(0, 1800, 16), None)
    assert set(many.targets[samples].tolist()) == set(many.targets.tolist())
    target = dense.target(layer.node, layer, 0, (samples, grid))
    assert torch.equal(target, dense.targets[0][layer.node.name][::16].T)


def test_a_mask_off_the_curves_is_predicted_anew_and_keeps_the_bound(network: Any) -> None:
    search = searcher(*network)
    everything = np.ones(search.graph.n_units, dtype=bool)
    limits = {"macs": search.graph.costs.cost("macs", np.array([4, 4]))}
    found = search.combine(search.curves(everything), objective="drop", budgets=limits)
    kept = half(search.graph) if (found.kept != half(search.graph)).any() else half(search.graph, 1)
    dense = search.truth(everything)
    (stage,) = refit_search.as_candidate(search, found, kept, dense).stages
    assert (stage.kept == kept).all()
    assert stage.objective == stage.surrogate_drop == search.refit_model.errors(kept).sum() > found.bound == stage.bound
    assert stage.true_drop == search.truth(kept).loss - dense.loss
    (same,) = refit_search.as_candidate(search, found, found.kept, dense).stages
    assert (same.objective, same.bound) == (found.objective, found.bound)


def test_out_of_time_the_search_ends_with_the_best_that_it_knows(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    search = searcher(*network)
    monkeypatch.setattr(Searcher, "floor", np.array([0, 1]))
    assert search.refit_curves
    search.deadline, search.effort = 0.0, 0.05  # too few trials for every choice of groups to empty
    loss = {half(search.graph).tobytes(): 2.0, half(search.graph, 1).tobytes(): 1.0}
    monkeypatch.setattr(RefitOracle, "_loss", lambda self, losses: losses)
    monkeypatch.setattr(RefitOracle, "losses", lambda self, kept: loss.get(kept.tobytes(), 3.0))
    limits = {"macs": search.graph.costs.cost("macs", np.array([4, 4]))}
    found = refit_search.search_widths(search, limits, half(search.graph), half(search.graph, 1))
    assert loss[found.tobytes()] == 1.0


@pytest.mark.parametrize("may_empty", [False, True])
def test_two_groups_are_worth_few_trials_and_their_emptying_some_more(
    network: Any, monkeypatch: pytest.MonkeyPatch, may_empty: bool
) -> None:
    class Done(Exception):
        pass

    def chosen(search: Any, widths: Any, limits: Any, evaluations: int) -> None:
        trials = 3 * 2 + 20 if may_empty else refit_search.FEWEST_TRIALS
        assert evaluations == int(refit_search.PATTERN_SHARE * trials)
        raise Done

    monkeypatch.setattr(refit_search, "_choose_empty", chosen)
    graph, data = network
    monkeypatch.setattr(Searcher, "floor", np.array([0 if may_empty else 1, 1]))
    search = searcher(graph, data)
    limits = {"macs": graph.costs.cost("macs", np.array([4, 4]))}
    with pytest.raises(Done):
        refit_search.search_widths(search, limits, half(graph), half(graph, 1))


def widths_of(graph: UnitGraph, limits: dict[str, int]) -> WidthSearch:
    curve = RefitCurve(np.arange(8), np.arange(9.0) ** 2, np.zeros(9))
    return WidthSearch([curve, curve], graph.costs, limits, [np.arange(1, 9)] * 2, lambda kept: 0.0)


def test_steps_are_priced_by_every_limited_resource(network: Any) -> None:
    graph, _ = network
    costs, limits = graph.costs, {"params": 100, "units": 9, "macs": 90}
    now, then = widths_of(graph, limits).priced(np.array([5, 6]), [(0, 7), (1, 2)])
    assert now.tolist() == [costs.cost(r, np.array([5, 6])) for r in limits]
    assert then.tolist() == [[costs.cost(r, np.array(k)) for r in limits] for k in ([7, 6], [5, 2])]
    assert [len(found) for found in widths_of(graph, {}).priced(np.array([5, 6]), [])] == [0, 0]


def test_widths_are_trimmed_and_filled_within_every_limit(network: Any) -> None:
    graph, _ = network
    costs = graph.costs
    limits = {"macs": costs.cost("macs", np.array([5, 5])), "units": 9}
    widths = widths_of(graph, limits)
    for counts in (widths.trimmed(()), widths.filled(np.array([1, 1]))):
        assert counts is not None
        assert widths.fits(counts)
        assert counts.sum() == 9


def test_only_what_a_limit_still_minds_is_a_saving_and_every_limit_a_price(network: Any) -> None:
    graph, _ = network
    steep, flat = (RefitCurve(np.arange(8), slope * np.arange(9.0), np.zeros(9)) for slope in (1.1, 1.0))

    def widths(limits: dict[str, int]) -> WidthSearch:
        return WidthSearch([steep, flat], graph.costs, limits, [np.arange(1, 9)] * 2, lambda kept: 0.0)

    trimmed = widths({"macs": 10**6, "units": 15}).trimmed(())  # multiply-adds would say the first group
    assert trimmed is not None
    assert trimmed.tolist() == [8, 7]
    assert widths({"units": 3, "macs": 10**6}).filled(np.array([1, 1])).tolist() == [1, 2]  # units alone: the first


class Joined(nn.Module):
    """Two layers side by side, read by one that reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(6, 4), nn.Linear(6, 5), nn.Linear(9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([self.a(x), self.b(x).tanh()], 1))


def test_the_cheapest_unit_is_thinned_out_first(network: Any) -> None:
    graph, _ = network
    curves = [RefitCurve(np.arange(8), slope * np.arange(9.0), np.zeros(9)) for slope in (1.1, 1.0)]
    widths = WidthSearch(curves, graph.costs, {"units": 15}, [np.arange(1, 9)] * 2, lambda kept: 0.0)
    thinned = UnitExchange(widths, np.zeros(16, dtype=bool)).thinned(np.ones(16, dtype=bool))
    assert thinned is not None
    assert np.flatnonzero(~thinned).tolist() == [8]


def test_a_block_of_the_precision_has_a_covariance_of_its_own() -> None:
    torch.manual_seed(0)
    for model in (Joined().eval(), nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).eval()):
        graph = mp.trace(model, torch.zeros(1, 6))
        data = as_data((torch.randn(60, 6), torch.zeros(60, dtype=torch.int64)), graph)
        regressions = [one.regression() for readers in RefitModel(graph, data)._readers for one in readers]
        assert len(regressions) == len(graph.groups)
        for one in regressions:
            assert (one.covariance is None) == isinstance(model, Joined)  # others' inputs are refitted too
            if one.covariance is not None:
                np.testing.assert_allclose(one.covariance @ one.precision, np.eye(len(one.precision)), atol=1e-8)


def test_of_equal_units_the_first_leaves() -> None:
    alike = curves_module._Reader("alike", np.eye(6), np.eye(6), np.ones((2, 6)), np.arange(6)[:, None])
    curve = curves_module._eliminate(SimpleNamespace(size=6), [alike], np.zeros(6, dtype=bool), True)  # type: ignore[arg-type]
    assert curve.order.tolist() == list(range(6))
    np.testing.assert_allclose(curve.error, 2 * np.arange(7))
    np.testing.assert_allclose(curve.lower, curve.error)


def test_blas_libraries_get_one_thread_and_their_own_number_back() -> None:
    def numbers() -> set[int]:
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        before = numbers()
        assert 2 in before
        with threads_for(0):
            assert numbers() == {1}
        assert numbers() == before


@pytest.mark.parametrize("share", [1 - NEAR / 2, 0.9])
def test_a_lanczos_value_that_falls_short_is_found_out(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    largest = FEW + 10.0
    matrix = np.diag(np.arange(1.0, largest + 1))
    monkeypatch.setattr(positive, "eigsh", lambda *_, **__: np.array([share * largest]))
    assert largest <= above_largest(matrix) <= largest * (1 + 2 * NEAR)
