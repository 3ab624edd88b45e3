"""Training and pruning together: budgets met exactly, momentum carried, resumed runs equal undisturbed ones."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import mipprune as mp
from mipprune.curvature import hessian_top_eigenvalues
from mipprune.testing.cases import NETWORKS
from mipprune.train import CubicSchedule, TrainAndPruneReport, loop, train_and_prune
from mipprune.train.state import TrainingState

Data = tuple[torch.Tensor, torch.Tensor]
FAST: dict[str, Any] = {"epochs": 4, "batch_size": 16, "progress": False, "schedule": CubicSchedule(0.25, 0.5, 2)}


def problem(name: str = "mlp", n: int = 96) -> tuple[nn.Module, Data]:
    """Labels that a random linear map of the input decides."""
    case = next(c for c in NETWORKS if c.name == name)
    model, x = case.build(), case.inputs(n)
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    torch.manual_seed(5)
    return model, (x, (x.flatten(1) @ torch.randn(x[0].numel(), classes)).argmax(1))


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual_net", "depthwise"])
def test_the_budget_is_met_and_the_plan_tells_the_truth(name: str) -> None:
    model, data = problem(name)
    before = copy.deepcopy(model.state_dict())
    graph = mp.trace(model, data[0][:1])
    result = train_and_prune(model, data, budget=[mp.Macs(0.3), mp.Units(0.9)], flatness=0.01, **FAST)
    report = result.report
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert report.termination == "finished"
    assert report.ratio("macs") <= 0.3
    assert report.ratio("units") <= 0.9
    small = mp.trace(result.model, data[0][:1]).costs
    assert all(small.cost(r, small.sizes) == report.costs_pruned[r] for r in ("params", "macs"))
    assert {r: graph.costs.cost(r, graph.costs.sizes) for r in small.resources} == report.costs_dense
    shapes = [tuple(t.shape) for t in result.plan.apply(model).state_dict().values()]
    assert shapes == [tuple(t.shape) for t in result.model.state_dict().values()]
    assert [e.epoch for e in report.events] in ([1], [1, 2])  # so few units may meet the last limit at once
    counts = [graph.costs.sizes, *(e.counts for e in report.events)]
    assert all((a >= b).all() for a, b in itertools.pairwise(counts))
    assert result.plan.n_kept == counts[-1].sum() == report.costs_pruned["units"]
    assert report.losses[-1] < report.losses[0]
    assert len(report.radii) == len(report.losses) == 4
    assert TrainAndPruneReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert "top Hessian eigenvalue" in str(result)


def test_the_sharpness_is_that_of_the_final_network() -> None:
    model, (x, y) = problem()
    result = train_and_prune(model, (x, y), budget=mp.Units(0.5), holdout=(x, y), **FAST)
    assert result.report.n_holdout == len(x)
    with torch.no_grad():
        logits = result.model(x)
    assert result.report.accuracy == float((logits.argmax(1) == y).double().mean())
    assert result.report.loss == pytest.approx(float(nn.functional.cross_entropy(logits.double(), y)))
    top = hessian_top_eigenvalues(result.model, (x, y)).values[0]
    assert result.report.sharpness.top_eigenvalue == pytest.approx(top, rel=1e-3)
    assert not result.report.radii


def test_the_penalty_flattens() -> None:
    model, data = problem()
    options = {**FAST, "epochs": 12, "lr": 1e-2}
    plain, flat = (train_and_prune(model, data, budget=mp.Units(0.6), flatness=mu, **options) for mu in (0.0, 1.0))
    assert flat.report.sharpness.top_eigenvalue < 0.5 * plain.report.sharpness.top_eigenvalue


def test_momentum_goes_with_the_units() -> None:
    """Removing units in two goes keeps the moments of the same weights as the plan of the joint mask."""
    model, (x, y) = problem("cnn")
    dense = mp.trace(model, x[:1])
    student = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(student.parameters())
    nn.functional.cross_entropy(student(x), y).backward()
    optimizer.step()
    state = TrainingState(student, optimizer, np.ones(dense.n_units, dtype=bool))
    mask = np.ones(dense.n_units, dtype=bool)
    rng = np.random.default_rng(0)
    for _ in range(2):
        small = mp.trace(state.model.eval(), x[:1])
        kept = np.ones(small.n_units, dtype=bool)
        kept[[rng.choice(np.arange(g.size)) + g.offset for g in small.groups]] = False
        mask[np.flatnonzero(mask)[~kept]] = False  # units keep their order
        state.remove(dense, small, kept)
        np.testing.assert_array_equal(state.kept, mask)
    plan = mp.PrunePlan.from_mask(dense, mask)
    at_once = plan.apply(student)
    moments = mp.transfer_optimizer(plan, student, at_once, optimizer)
    for a, b in zip(state.model.parameters(), at_once.parameters(), strict=True):
        assert torch.equal(a, b)
        for key, value in moments.state[b].items():
            assert torch.equal(state.optimizer.state[a][key], value)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_ends_in_the_same_bits(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network has dropout and two pruning events; the run is interrupted inside the epoch after ``stop``."""
    model, data = problem()
    options = {**FAST, "budget": mp.Units(0.5), "flatness": 0.05, "seed": 3}
    whole = train_and_prune(model, data, **options)
    path = tmp_path / "run.safetensors"
    calls, original = [0], loop.TrainingRun._step

    def step(self: Any, *args: Any) -> tuple[float, float]:
        calls[0] += 1
        if calls[0] > 5 * stop + 2:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingRun, "_step", step)
        part = train_and_prune(model, data, checkpoint=path, **options)
    assert part.report.termination == "interrupted"
    assert len(part.report.losses) == stop
    torch.manual_seed(99)  # a resumed process has another global state
    resumed = train_and_prune(model, data, checkpoint=path, **options)
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    same = [dataclasses.replace(r.report, seconds=0.0, events=()) for r in (whole, resumed)]
    assert same[0] == same[1]
    assert [e.objective for e in whole.report.events] == [e.objective for e in resumed.report.events]
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    model, data = problem()
    path = tmp_path / "run.safetensors"
    train_and_prune(model, data, budget=mp.Units(0.5), checkpoint=path, **FAST)
    content = path.read_bytes()
    with pytest.raises(mp.errors.DataError, match=r"flatness=0\.0, but this run has flatness=0\.1"):
        train_and_prune(model, data, budget=mp.Units(0.5), checkpoint=path, flatness=0.1, **FAST)
    other = copy.deepcopy(model)
    nn.init.normal_(other[0].weight)
    with pytest.raises(mp.errors.DataError, match="identity"):
        train_and_prune(other, data, budget=mp.Units(0.5), checkpoint=path, **FAST)
    assert path.read_bytes() == content
    for bad in (b"nothing of the kind", content[:200], safetensors.torch.save({"a": torch.zeros(1)})):
        path.write_bytes(bad)
        with pytest.raises(mp.errors.DataError, match="not a checkpoint"):
            train_and_prune(model, data, budget=mp.Units(0.5), checkpoint=path, **FAST)


def test_sharpness_aware_step_is_that_of_the_neighbour() -> None:
    """One SAM step in closed form: the gradient is taken at w + r g / |g|, the step from w."""
    model, (x, y) = problem()
    seen: list[torch.Tensor] = []

    class Recorder(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.extend(p.grad.clone() for p in self.param_groups[0]["params"])
            seen.extend(p.detach().clone() for p in self.param_groups[0]["params"])

    start = [p.detach().clone() for p in model.parameters()]
    grads = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    norm = torch.sqrt(sum((g**2).sum() for g in grads))
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, g in zip(moved.parameters(), grads, strict=True):
            p += 0.3 * g / norm
    expected = torch.autograd.grad(nn.functional.cross_entropy(moved(x), y), list(moved.parameters()))
    graph = mp.trace(model, x[:1])
    data = mp.game.as_data((x, y), graph)
    run = loop.TrainingRun(graph, data, data, {}, mp.train.FlatnessPenalty(0.0), {}, 1, 1.0, 0.3, 96, (), 1, "highs", 0)
    state = TrainingState(model, Recorder(model.parameters(), lr=1.0), np.ones(graph.n_units, dtype=bool))
    run._step(state, data, torch.zeros(len(x), 1))
    for found, wanted in zip(seen, [*expected, *start], strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_schedule_is_cubic_and_complete() -> None:
    shares = CubicSchedule(0.2, 0.8, 4).shares(10)
    assert shares == pytest.approx({2: 1 - 0.75**3, 4: 1 - 0.5**3, 6: 1 - 0.25**3, 8: 1.0})
    assert CubicSchedule(0.25, 0.75, 6).shares(1) == {0: 1.0}
    assert CubicSchedule(0.5, 0.5, 1).shares(8) == {4: 1.0}
    for bad in ((-0.1, 0.5, 1), (0.6, 0.5, 1), (0.1, 1.0, 1), (0.1, 0.5, 0)):
        with pytest.raises(mp.errors.ConfigError, match="schedule"):
            CubicSchedule(*bad)


def test_errors_say_what_to_do() -> None:
    model, data = problem()
    with pytest.raises(mp.errors.BudgetError, match="Macs"):
        train_and_prune(model, data, budget=0.5, **FAST)  # type: ignore[arg-type]
    with pytest.raises(mp.errors.InfeasibleError, match="min_keep") as caught:
        train_and_prune(model, data, budget=mp.Units(0.1), min_keep=4, **{**FAST, "epochs": 10**9})  # before training
    assert caught.value.nearest == pytest.approx(8 / 14)
    with pytest.raises(mp.errors.InfeasibleError, match="pin fewer"):
        train_and_prune(model, data, budget=mp.Units(0.5), pin=["0"], **FAST)
    with pytest.raises(mp.errors.UnknownLayerError, match="no prunable layer"):
        train_and_prune(model, data, budget=mp.Units(0.5), pin=["7"], **FAST)
    with pytest.raises(mp.errors.ConfigError, match="epochs"):
        train_and_prune(model, data, budget=mp.Units(0.5), epochs=0)
    with pytest.raises(mp.errors.ConfigError, match="mu >= 0"):
        train_and_prune(model, data, budget=mp.Units(0.5), flatness=-1.0, **FAST)
    with pytest.raises(mp.errors.ModelStateError, match="diverged"):
        train_and_prune(model, data, budget=mp.Units(0.9), flatness=1e300, **FAST)


_KILLED = """
import os, signal, sys
import mipprune as mp, mipprune.records, mipprune.train.loop as loop
from tests.test_train_and_prune import RUN, problem
path, steps, writes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
step, replace, seen = loop.TrainingRun._step, os.replace, [0, 0]
def dying_step(*args):
    seen[0] += 1
    if seen[0] == steps:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*args)
def dying_replace(*args):  # the new file is written, the old one not yet replaced
    seen[1] += 1
    if seen[1] == writes:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(*args)
loop.TrainingRun._step, os.replace = dying_step, dying_replace
model, data = problem("cnn")
mp.train_and_prune(model, data, checkpoint=path, **RUN).save(path + ".done")
"""
RUN: dict[str, Any] = {**FAST, "budget": mp.Units(0.3), "flatness": 0.05, "seed": 3}


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL inside an epoch, then while a checkpoint is written, then inside the last epoch; batch-norm, momentum,
    eigenvectors and pruning events between them.
    """
    path = tmp_path / "run.safetensors"
    epochs, ends = [], []
    for steps, writes in ((7, 0), (0, 2), (6, 0), (0, 0)):  # five steps an epoch
        command = [sys.executable, "-c", _KILLED, str(path), str(steps), str(writes)]
        ends.append(subprocess.run(command, cwd=Path(__file__).parent.parent, timeout=300, check=False).returncode)
        with safetensors.safe_open(path, framework="pt") as file:
            epochs.append(json.loads(file.metadata()["mipprune.training"])["epoch"])
    assert ends == [-signal.SIGKILL] * 3 + [0]
    assert epochs == [1, 2, 3, 4]
    model, data = problem("cnn")
    whole = train_and_prune(model, data, **RUN)
    assert {e.epoch for e in whole.report.events} == {1, 2}
    killed = mp.load(str(path) + ".done", model)
    for a, b in zip(whole.model.state_dict().values(), killed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
