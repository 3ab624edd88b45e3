"""Selection without repair: sketched expansions, units that come back, and exchanges judged by the loss itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mipprune as mp
from mipprune.costs import CostModel, TabulatedCost
from mipprune.curvature import expand_gates, sketch_gates
from mipprune.game import LabelledData, as_data
from mipprune.pruning import joint_search
from mipprune.pruning.gate_search import GateSearch
from mipprune.pruning.joint import JointProblem
from mipprune.pruning.joint_search import JointSearch
from mipprune.pruning.multiples import allowed_counts
from mipprune.testing.cases import NETWORKS

from .test_joint import costs_of


def tanh_net() -> tuple[mp.UnitGraph, LabelledData]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    with torch.no_grad():
        model[4].weight *= 30  # sure of itself, so that the temperature matters
    x = torch.randn(40, 4).double()
    graph = mp.trace(model, x[:1])
    return graph, as_data((x, model(x).argmax(1)), graph)


# -- the sketch --------------------------------------------------------------------------------------------------------


def test_sketch_against_the_exact_expansion() -> None:
    graph, data = tanh_net()
    exact = expand_gates(graph, data, joint=True)
    one = sketch_gates(graph, data, exact.kept, seed=3)
    np.testing.assert_allclose(one.gradient, exact.gradient, atol=1e-12)
    assert one.loss == pytest.approx(exact.loss)
    assert np.linalg.eigvalsh(one.joint).min() > -1e-12
    many = sketch_gates(graph, data, exact.kept, probes=600)
    np.testing.assert_allclose(many.joint, exact.joint, atol=0.03 * exact.joint.max())
    assert abs(one.joint - exact.joint).max() > 0.03 * exact.joint.max()  # so that 600 probes did help
    assert (sketch_gates(graph, data, exact.kept, seed=3).joint == one.joint).all()
    assert (sketch_gates(graph, data, exact.kept, seed=4).joint != one.joint).any()


def test_sketch_knows_units_that_are_off() -> None:
    graph, data = tanh_net()
    kept = np.array([1, 0, 1, 1, 0, 1, 0, 1], dtype=bool)

    def loss(gates: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(graph.program.run(data.inputs, gates), data.targets)

    gates = torch.tensor(kept).double()
    want = torch.autograd.functional.jacobian(loss, gates)
    found = sketch_gates(graph, data, kept, batch_size=7, temperature=2.0, probes=400)
    np.testing.assert_allclose(found.gradient, -want.numpy(), atol=1e-12)
    p = torch.softmax(graph.program.run(data.inputs, gates) / 2, 1)
    curvature = np.zeros((8, 8))
    for k in range(len(data)):
        part = data.take(slice(k, k + 1)).inputs
        rows = torch.autograd.functional.jacobian(lambda g, one=part: graph.program.run(one, g)[0], gates)
        curvature += (rows.T @ (torch.diag(p[k]) - torch.outer(p[k], p[k])) @ rows).numpy() / len(data)
    np.testing.assert_allclose(found.joint, curvature, atol=0.05 * curvature.max())
    hot = sketch_gates(graph, data, kept, temperature=50.0, probes=400).joint
    assert abs(hot - curvature).max() > 0.1 * curvature.max()


# -- units that come back ----------------------------------------------------------------------------------------------


def test_units_may_come_back() -> None:
    better = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        costs = costs_of(5, 4)
        start, pinned = rng.random(9) < 0.6, np.zeros(9, dtype=bool)
        start[0] = start[5] = pinned[5] = True
        root, limits = rng.normal(size=(14, 9)), {"macs": int(0.6 * costs.cost("macs", costs.sizes))}
        args = (rng.normal(size=9), root.T @ root / 14, costs, limits, start, pinned, 1)
        narrow, wide = JointProblem(*args), JointProblem(*args, np.ones(9, dtype=bool))
        masks = [np.array(bits) for bits in itertools.product([False, True], repeat=9)]
        masks = [m for m in masks if m[pinned].all() and (costs.counts(m) >= 1).all() and wide._fits(costs.counts(m))]
        best = min(wide.value(m) for m in masks)
        found, inside = wide.solve(), narrow.solve()
        assert any((found == m).all() for m in masks)
        assert any((inside == m).all() for m in masks)
        assert not (inside & ~start).any()
        assert wide.bound(found, 1) <= best + 1e-9 <= wide.value(found) + 2e-9
        assert wide.bound(found, 1) > best - 2  # it says something
        better += wide.value(found) < min(narrow.value(m) for m in masks if not (m & ~start).any()) - 1e-9
        for mask in masks[::17]:
            z = start.astype(float) - mask
            assert wide.value(mask) == pytest.approx(float(args[0] @ z + 0.5 * z @ args[1] @ z))
    assert better >= 7


def test_costs_that_end_at_the_size() -> None:
    """A table has no entry for one unit more than there are; nothing may look there."""
    table = np.add.outer(np.arange(4), 2 * np.arange(3))
    cost = TabulatedCost(0, np.array([0]), np.array([1]), (table,))
    costs = CostModel(("a", "b"), np.array([3, 2]), {"latency": cost})
    problem = JointProblem(
        np.array([0.1, 0.2, 0.3, 0.1, 0.9]), np.eye(5), costs, {"latency": 5}, np.ones(5, dtype=bool),
        np.zeros(5, dtype=bool), 1,
    )
    assert problem.solve().tolist() == [True, True, True, False, True]


# -- exchanges ---------------------------------------------------------------------------------------------------------


def quadratic(seed: int, n: int) -> tuple[Callable[[np.ndarray], float], Callable[[np.ndarray], Any]]:
    """A loss that isn't quadratic, and its expansion: judge, expand."""
    rng = np.random.default_rng(seed)
    root, wanted = rng.normal(size=(n, n)) / np.sqrt(n), 0.5 + rng.random(n)

    def judge(kept: np.ndarray) -> float:
        gap = root @ (wanted * (1.0 - kept))
        return float(np.sqrt(1 + gap @ gap))

    def expand(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inner = root * wanted
        gap, loss = inner @ (1.0 - kept), judge(kept)
        return inner.T @ gap / loss, inner.T @ inner / loss

    return judge, expand


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6), step=st.sampled_from([1, 2]), empty=st.booleans(), share=st.floats(0.2, 0.8),
    resources=st.sampled_from([("macs",), ("params",), ("macs", "units")]),
)
def test_exchanges_keep_every_promise(
    seed: int, step: int, empty: bool, share: float, resources: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(seed)
    costs = costs_of(6, 4, 6)
    pinned = rng.random(16) < 0.1
    fewest = np.maximum(costs.counts(pinned), [0 if empty else 1, 1, 1])
    allowed = allowed_counts(costs.sizes, fewest, np.full(3, step))
    counts = np.array([rng.choice(widths) for widths in allowed])
    kept = np.zeros(16, dtype=bool)
    for group, units in enumerate(np.split(np.arange(16), [6, 10])):
        order = sorted(rng.permutation(units), key=lambda u: not pinned[u])
        kept[order[: counts[group]]] = True
    limits = {r: max(costs.cost(r, counts), int(share * costs.cost(r, costs.sizes))) for r in resources}
    judge, expand = quadratic(seed, 16)
    seen: list[bytes] = []

    def watched(trial: np.ndarray) -> float:
        now = costs.counts(trial)
        assert all(costs.cost(r, now) <= limit for r, limit in limits.items())
        assert trial[pinned].all()
        assert all(k in widths for k, widths in zip(now, allowed, strict=True))
        seen.append(trial.tobytes())
        return judge(trial)

    def searched(goes_on: Callable[[], bool] = lambda: True) -> GateSearch:
        walk = GateSearch(costs, limits, allowed, pinned, expand, watched, kept, judge(kept), seed)
        walk.run(6, goes_on)
        return walk

    first = searched()
    assert first.loss == judge(first.kept) <= judge(kept)
    assert len(set(seen)) == len(seen) == first.judged
    assert kept.tobytes() not in seen
    assert (searched().kept == first.kept).all()
    seen.clear()
    assert searched(lambda: False).loss == judge(kept)
    assert not seen


def test_exchanges_come_near_the_optimum() -> None:
    costs = costs_of(5, 4)
    limit = int(0.5 * costs.cost("macs", costs.sizes))
    allowed = allowed_counts(costs.sizes, np.ones(2, dtype=int), np.ones(2, dtype=int))
    masks = [np.array(bits) for bits in itertools.product([False, True], repeat=9)]
    masks = [m for m in masks if (costs.counts(m) >= 1).all() and costs.cost("macs", costs.counts(m)) <= limit]
    hits, gained = 0, 0.0
    for seed in range(10):
        judge, expand = quadratic(seed, 9)
        kept = max(masks, key=judge)
        walk = GateSearch(
            costs, {"macs": limit}, allowed, np.zeros(9, dtype=bool), expand, judge, kept, judge(kept), seed
        )
        walk.run(12)
        best = min(map(judge, masks))
        hits += walk.loss <= best + 1e-9
        gained += (judge(kept) - walk.loss) / (judge(kept) - best)
        assert walk.judged < 60  # of about 250 masks
    assert hits >= 7
    assert gained >= 9.5


def test_whole_groups_are_emptied() -> None:
    """A group of eight that does harm: exchanges of a few units at a time would take several rounds."""
    costs = costs_of(8, 8)
    limit = int(0.6 * costs.cost("macs", costs.sizes))
    worth = np.concatenate([np.full(8, -0.05), np.ones(8)])

    def judge(kept: np.ndarray) -> float:
        return float(10 - worth @ kept - 4 * (not kept[:8].any()))

    kept = np.concatenate([np.ones(8, dtype=bool), np.arange(8) < 2])
    allowed = allowed_counts(costs.sizes, np.array([0, 1]), np.ones(2, dtype=int))
    walk = GateSearch(
        costs, {"macs": limit}, allowed, np.zeros(16, dtype=bool), lambda kept: (worth, np.zeros((16, 16))), judge,
        kept, judge(kept),
    )
    walk.run(1)
    assert not walk.kept[:8].any()
    assert walk.kept[8:].all()


def test_ctrl_c_leaves_the_best() -> None:
    costs = costs_of(5, 4)
    allowed = allowed_counts(costs.sizes, np.ones(2, dtype=int), np.ones(2, dtype=int))
    judge, expand = quadratic(1, 9)
    values: list[float] = []

    def interrupted(trial: np.ndarray) -> float:
        if len(values) == 3:
            raise KeyboardInterrupt
        values.append(judge(trial))
        return values[-1]

    kept = np.array([1, 1, 0, 0, 0, 1, 1, 0, 0], dtype=bool)
    limit = {"macs": costs.cost("macs", costs.counts(kept))}
    walk = GateSearch(costs, limit, allowed, np.zeros(9, dtype=bool), expand, interrupted, kept, judge(kept))
    with pytest.raises(KeyboardInterrupt):
        walk.run(9)
    assert walk.loss == judge(walk.kept) == min([judge(kept), *values])


# -- prune -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlp(digits_flat: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(digits_flat.train[0]), digits_flat.train[1]).backward()
        optimizer.step()
    return model.eval()


def pruned(model: nn.Module, digits_flat: Any, **options: Any) -> mp.PruneResult:
    x, y = digits_flat.train
    given = {"budget": mp.Macs(0.35), "repair": (), "progress": False, "holdout": digits_flat.test}
    return mp.prune(model, (x[:300], y[:300]), **(given | options))


def test_exchanges_improve_on_the_chain(
    mlp: nn.Module, digits_flat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[JointSearch] = []
    problems: list[JointProblem] = []
    real = JointSearch._chain

    def watched(self: JointSearch, stages: int) -> JointProblem:
        runs.append(self)
        problems.append(real(self, stages))
        return problems[-1]

    monkeypatch.setattr(JointSearch, "_chain", watched)
    monkeypatch.setattr(joint_search, "SKETCH_SAMPLES", 30)  # so that the chain leaves something to be done
    asked = {"pin": ["2"], "budget": [mp.Macs(0.5), mp.Params(0.55)], "stages": 2, "surrogate": "joint"}
    result = pruned(mlp, digits_flat, **asked)
    chain, best = runs[0].found
    assert runs[0].score(best.quality) < runs[0].score(chain.quality)
    assert (result.kept == best.kept).all()
    assert result.kept[16:].all()
    assert result.report.ratio("macs") <= 0.5
    assert result.report.ratio("params") <= 0.55
    report, last = result.report, result.report.stages[-1]
    assert report.solution.bound <= last.bound <= last.objective == report.solution.objective
    assert last.objective == pytest.approx(problems[0].value(result.kept))
    assert problems[0].may.all()  # so that the bound speaks of the mask that the exchanges found
    assert sum(s.true_drop for s in report.stages) == pytest.approx(report.solution.true_drop, abs=1e-6)
    assert not report.solution.proved
    assert report.solution.termination == "iteration_limit"
    again = pruned(mlp, digits_flat, **asked)
    assert (again.kept == result.kept).all()


def test_what_is_repaired_decides_how(mlp: nn.Module, digits_flat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh statistics of a network without batch-norm are no repair; after a refit the cut network says little."""
    walks: list[GateSearch] = []
    run = GateSearch.run

    def watched(self: GateSearch, *arguments: Any) -> None:
        walks.append(self)
        run(self, *arguments)

    monkeypatch.setattr(GateSearch, "run", watched)
    plain, fresh = pruned(mlp, digits_flat), pruned(mlp, digits_flat, repair=("bn",))
    assert (plain.kept == fresh.kept).all()
    assert len(walks) == 2
    pruned(mlp, digits_flat, repair=("refit",), surrogate="joint", stages=1)
    assert len(walks) == 2


def test_never_worse_than_the_baseline(mlp: nn.Module, digits_flat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain that keeps the units that are worth least: the search starts from the magnitude baseline instead."""
    expand = JointSearch._expand

    def lying(self: JointSearch, kept: np.ndarray, *probes: int) -> tuple[np.ndarray, np.ndarray]:
        gradient, curvature = expand(self, kept)
        return -gradient - curvature.diagonal(), 1e-6 * curvature

    monkeypatch.setattr(JointSearch, "_expand", lying)
    monkeypatch.setattr(joint_search, "FEWEST_ROUNDS", 0)
    monkeypatch.setattr(joint_search, "MOST_ROUNDS", 0)
    result = pruned(mlp, digits_flat, budget=mp.Macs(0.5))
    assert result.report.pruned.loss == pytest.approx(result.report.baseline.loss)


def test_time_that_runs_out_in_a_round_ends_it() -> None:
    costs = costs_of(5, 4)
    judge, expand = quadratic(1, 9)
    kept = np.array([1, 1, 0, 0, 0, 1, 1, 0, 0], dtype=bool)
    allowed = allowed_counts(costs.sizes, np.ones(2, dtype=int), np.ones(2, dtype=int))
    limit = {"macs": costs.cost("macs", costs.counts(kept))}
    answers = iter([True, True, False])
    walk = GateSearch(costs, limit, allowed, np.zeros(9, dtype=bool), expand, lambda trial: 9.0, kept, judge(kept))
    walk.run(1, lambda: next(answers))
    assert walk.judged == 1
    assert (walk.kept == kept).all()


@pytest.mark.parametrize("units", ["fine", "branches"])
def test_residual_networks(units: str) -> None:
    case = next(c for c in NETWORKS if c.name == "residual_net")
    model, x = case.build().eval(), case.inputs(64)
    y = model(x).argmax(1)
    options = {"allow_empty": True} if units == "fine" else {"units": units}
    result = mp.prune(model, (x, y), budget=mp.Macs(0.7), repair=(), surrogate="joint", progress=False, **options)
    assert result.report.ratio("macs") <= 0.7


def test_ctrl_c_among_the_exchanges(mlp: nn.Module, digits_flat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[GateSearch] = []
    real = GateSearch._judged

    def interrupted(self: GateSearch, trial: np.ndarray) -> bool:
        walks[:] = [self]
        if real(self, trial):
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(GateSearch, "_judged", interrupted)
    monkeypatch.setattr(joint_search, "SKETCH_SAMPLES", 30)
    result = pruned(mlp, digits_flat, stages=1, surrogate="joint")
    assert result.solution.termination == "interrupted"
    assert (result.kept == walks[0].kept).all()


def test_time_runs_out_among_the_exchanges(
    mlp: nn.Module, digits_flat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = GateSearch.run

    def late(self: GateSearch, rounds: int, goes_on: Callable[[], bool]) -> None:
        run(self, 3, lambda: True)
        search = goes_on.__self__  # type: ignore[attr-defined]
        search.deadline = 0.0
        assert not goes_on()

    monkeypatch.setattr(GateSearch, "run", late)
    result = pruned(mlp, digits_flat, time_limit=1000)
    assert result.solution.termination == "time_limit"
    assert result.report.ratio("macs") <= 0.35
    assert len(result.report.stages) == 8
