"""The original OAMIP form: the dense network solves it, its rows and objective are what they say, solvers agree."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.bounds import Affine, Gate, PiecewiseLinear, Relu, interval_ranges
from mipprune.errors import BudgetError, TraceError
from mipprune.relu import OamipOptions, select
from mipprune.relu.oamip import OamipProgram, mask_of, solve_oamip
from mipprune.relu.requirement import losses
from mipprune.solver import LinearOutcome, solve_linear
from mipprune.testing.cases import NetworkCase

from .test_bounds_intervals import CASES
from .test_relu_select import Instance, _mlp, _task


@pytest.fixture(scope="module")
def small() -> Instance:
    return Instance(_mlp(0, (5, 6, 5, 3)), (5,), 6)


def _scored(network: PiecewiseLinear, x: np.ndarray, scores: np.ndarray, epsilon: float) -> np.ndarray:
    """Logits with ``relu(a - (1 - s) U+)`` for every scored ReLU, U of the unpruned network: plain loops."""
    upper = interval_ranges(network, x - epsilon, x + epsilon, keep=np.ones(network.n_units, bool)).upper
    values = [x]
    for node in network.nodes:
        if isinstance(node, Affine):
            values.append(sum((m @ values[s].T).T for s, m in zip(node.sources, node.matrices)) + node.bias)
        elif isinstance(node, Relu):
            values.append(values[node.source])  # the gate behind it does the rest
        else:
            assert isinstance(node, Gate)
            inner = network.node_of(node.source)
            cap = np.maximum(upper[inner.sources[0]], 0.0)
            values.append(np.maximum(values[node.source] - (1 - scores[node.units]) * cap, 0.0))
    return values[-1]


def _sparsity(scores: np.ndarray, groups: Any) -> float:
    means = sorted((float((scores[units] - 2).mean()) for units in groups), reverse=True)
    return sum(means[: max(len(means) - 1, 1)])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_dense_network_is_a_solution(case: NetworkCase) -> None:
    model, x = case.build(), case.inputs(2)
    graph = mp.trace(model, x[:1])
    with torch.no_grad():
        logits = model.double()(x.double()).numpy()
    task = _task(graph, x, torch.from_numpy(logits.argmax(1)))
    if case.name == "residual_net":
        with pytest.raises(TraceError, match="pin the layers"):
            OamipProgram(task, OamipOptions())
        return
    program = OamipProgram(task, OamipOptions(loss_weight=3.0))
    point = program.dense_point()
    assert program.mip.violation(point) <= 1e-9
    np.testing.assert_allclose(point[program.loss.logits], logits, atol=1e-9)
    largest = max(len(graph.groups) - 1, 1)
    expected = 3.0 * losses(logits, logits.argmax(1)).mean() - largest
    assert program.objective(point) == pytest.approx(expected)
    assert program.mip.c @ point == pytest.approx(expected)


@pytest.mark.parametrize("epsilon", [1e-4, 0.05])
def test_solution_rows_and_objective_are_what_they_say(small: Instance, epsilon: float) -> None:
    task = _task(small.graph, small.x, small.y)
    result = solve_oamip(task, OamipOptions(2.0, epsilon), solver="highs", time_limit=None, threads=1, seed=0)
    assert result.closed
    assert result.termination == "optimal"
    assert ((result.scores >= 0) & (result.scores <= 1)).all()
    assert (result.scores < 0.999).any()  # something is gained over the dense network
    logits = _scored(task.network, task.x, result.scores, epsilon)
    expected = 2.0 * losses(logits, task.targets).mean() + _sparsity(result.scores, task.groups)
    assert result.objective == pytest.approx(expected, abs=1e-5)
    assert result.objective < result.program.objective(result.program.dense_point()) - 1e-3


def test_no_scores_that_the_rows_allow_beat_the_bound(small: Instance) -> None:
    task, epsilon = _task(small.graph, small.x, small.y), 0.3
    result = solve_oamip(task, OamipOptions(2.0, epsilon), solver="highs", time_limit=None, threads=1, seed=0)
    program, rng = result.program, np.random.default_rng(0)
    allowed = 0
    for width in (0.03, 0.2, 1.0):
        for _ in range(8):
            scores = 1.0 - width * rng.random(task.n_units)
            lower, upper = program.mip.lower.copy(), program.mip.upper.copy()
            lower[program.rows.gates] = upper[program.rows.gates] = scores
            outcome = solve_linear(dataclasses.replace(program.mip, lower=lower, upper=upper))
            if outcome.x is None:  # a score too low for the big-M of the unpruned network
                assert outcome.termination == "infeasible"
                continue
            allowed += 1
            logits = _scored(task.network, task.x, scores, epsilon)
            np.testing.assert_allclose(outcome.x[program.loss.logits], logits, atol=1e-5)
            value = 2.0 * losses(logits, task.targets).mean() + _sparsity(scores, task.groups)
            assert value >= result.bound - 1e-6
    assert 4 <= allowed < 24


@pytest.mark.parametrize("layer", [None, "0"])
def test_solvers_agree(small: Instance, layer: str | None) -> None:
    found = [select(small.graph, small.data, "oamip", layer=layer, solver=solver) for solver in ("highs", "scip")]
    assert all(solution.proved for solution in found)
    assert found[0].objective == pytest.approx(found[1].objective, rel=3e-4, abs=3e-4)
    for solution in found:
        assert solution.scores is not None
        assert solution.kept.tolist() == (solution.scores >= 0.1).tolist() or layer is None
        if layer is None:
            np.testing.assert_allclose(solution.logits, small.logits(solution.kept[None])[0], atol=1e-9)


def test_a_larger_loss_weight_keeps_more_of_the_loss(small: Instance) -> None:
    found = [
        solve_oamip(_task(small.graph, small.x, small.y), OamipOptions(weight), solver="highs", time_limit=None,
                    threads=1, seed=0)
        for weight in (0.1, 10.0)
    ]
    loss = [losses(_scored(r.program.task.network, r.program.task.x, r.scores, 1e-4), small.y.numpy()).mean()
            for r in found]
    assert loss[1] < loss[0]
    assert found[0].scores.mean() < found[1].scores.mean()


def test_convolutions_share_a_score_per_channel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(),
                          nn.Linear(4, 3))
    instance = Instance(model, (1, 6, 6), 3)
    solution = select(model, instance.data, "oamip", oamip=OamipOptions(0.5))
    assert solution.proved
    assert solution.scores is not None
    assert solution.scores.shape == (7,)
    np.testing.assert_allclose(solution.logits, instance.logits(solution.kept[None])[0], atol=1e-9)


def test_the_threshold_never_empties_a_layer(small: Instance) -> None:
    task = _task(small.graph, small.x, small.y)
    task.min_keep[:] = 2
    scores = np.linspace(0.0, 0.09, task.n_units)
    kept = mask_of(scores, task, 0.1)
    assert [int(kept[units].sum()) for units in task.groups] == [2, 2]
    assert kept[task.groups[0]][-2:].all()
    assert mask_of(np.full(task.n_units, 0.1), task, 0.1).all()


def test_out_of_time_the_dense_scores_are_an_answer(small: Instance) -> None:
    solution = select(small.graph, small.data, "oamip", time_limit=1e-6)
    assert solution.termination == "time_limit"
    assert solution.kept.all()
    assert not solution.proved


def test_ctrl_c_returns_what_there_is(small: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mipprune.relu.oamip.solve_linear", interrupted)
    solution = select(small.graph, small.data, "oamip")
    assert solution.termination == "interrupted"
    assert solution.kept.all()


def test_without_time_for_the_relaxation_the_program_itself_is_solved(
    small: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def slow_when_relaxed(mip: Any, *rest: Any) -> LinearOutcome:
        seen.append(bool(mip.integer.any()))
        if not mip.integer.any():
            return LinearOutcome(None, np.inf, -np.inf, "time_limit", 0.0)
        return solve_linear(mip, *rest)

    monkeypatch.setattr("mipprune.relu.oamip.solve_linear", slow_when_relaxed)
    solution = select(small.graph, small.data, "oamip")
    assert seen[:2] == [False, True]
    assert solution.proved


def test_impossible_options() -> None:
    with pytest.raises(BudgetError, match="threshold"):
        OamipOptions(threshold=2.0)
