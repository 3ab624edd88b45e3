"""The second-order repair: its derivatives and solves against explicit matrices, its promises, its judge."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mipprune as mp
from mipprune.game import as_data
from mipprune.pruning.repairing import Repairer
from mipprune.repair import CutNetwork, DenseRun, polish, recalibrate_batch_norm, refit_cut
from mipprune.repair.krylov import Krylov
from mipprune.repair.second_order import _Problem


class Net(nn.Module):
    """Convolution, batch-norm and attention-free mixing: every kind of parameter that a polish moves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.hidden, self.last = nn.Linear(6 * 16, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.norm(self.conv(x)))
        return self.last(F.gelu(self.hidden(x.flatten(1))))


def case(n: int = 40, seed: int = 0) -> tuple[CutNetwork, DenseRun]:
    torch.manual_seed(seed)
    model = Net().double().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
        model.last.weight.mul_(6)
    x = torch.randn(n, 1, 4, 4, dtype=torch.float64)
    graph = mp.trace(model, x[:1])
    kept = np.ones(graph.n_units, dtype=bool)
    kept[[1, 4, 8, 11, 15]] = False
    dense = DenseRun(graph, as_data((x, model(x).argmax(1)), graph), batch_size=16)
    return CutNetwork(graph, kept), dense


def logits_of(problem: _Problem, flat: torch.Tensor) -> torch.Tensor:
    """The logits as a function of flat weights, by plain means."""
    own = problem.cut.tensors
    parts = flat.split([own[name].numel() for name in problem.names])
    given = {name: part.reshape(own[name].shape) for name, part in zip(problem.names, parts, strict=True)}
    return problem.cut.evaluate(problem.inputs, own | given)


def explicit(problem: _Problem, t: float) -> torch.Tensor:
    """G = J' (diag(q) - q q') J / N with everything formed."""
    w = problem.weights()
    jacobian = torch.autograd.functional.jacobian(lambda v: logits_of(problem, v), w)
    q = torch.softmax(logits_of(problem, w) / t, 1)
    middle = torch.diag_embed(q) - q[:, :, None] * q[:, None, :]
    return torch.einsum("nip,nij,njq->pq", jacobian, middle, jacobian) / len(q)


def test_gradient_and_curvature_are_those_of_the_divergence() -> None:
    cut, dense = case()
    t = 4.0
    problem = _Problem(cut, dense, t)
    w = problem.weights().requires_grad_(True)
    small = torch.log_softmax(logits_of(problem, w) / t, 1)
    full = torch.log_softmax(dense.logits / t, 1)
    value = t**2 * F.kl_div(small, full, log_target=True, reduction="batchmean")
    assert problem.loss() == pytest.approx(float(value.detach()), rel=1e-10)
    torch.testing.assert_close(problem.gradient(), torch.autograd.grad(value, w)[0], atol=1e-12, rtol=1e-9)
    g = explicit(problem, t)
    curvature = problem.curvature(torch.arange(problem.n), torch.Generator().manual_seed(0))
    for v in torch.randn(3, len(g), dtype=torch.float64):
        torch.testing.assert_close(curvature.product(v), g @ v, atol=1e-12, rtol=1e-9)
    many = [problem.curvature(torch.arange(problem.n), torch.Generator().manual_seed(i)).diagonal for i in range(30)]
    mean = torch.stack(many).mean(0)  # of 240 products: the estimate has no bias
    assert float((mean - g.diagonal()).norm() / g.diagonal().norm()) < 0.15


def test_the_curvature_is_the_hessian_where_the_networks_agree() -> None:
    """At the dense network itself the residual is 0, and so is what Gauss-Newton leaves out."""
    cut, dense = case(12)
    whole = CutNetwork(cut.graph, np.ones(cut.graph.n_units, dtype=bool))
    problem = _Problem(whole, dense, 4.0)
    full = torch.log_softmax(dense.logits / 4, 1)

    def value(flat: torch.Tensor) -> torch.Tensor:
        return 16 * F.kl_div(torch.log_softmax(logits_of(problem, flat) / 4, 1), full, log_target=True,
                             reduction="batchmean")

    w = problem.weights()
    v = torch.randn(len(w), dtype=torch.float64)
    hessian = torch.autograd.functional.hvp(value, w, v)[1]
    curvature = problem.curvature(torch.arange(problem.n), torch.Generator())
    torch.testing.assert_close(curvature.product(v), hessian, atol=1e-10, rtol=1e-8)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 12), rank=st.integers(0, 12), shift=st.floats(1e-3, 10), seed=st.integers(0, 999))
def test_a_krylov_space_solves_all_damped_systems(size: int, rank: int, shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(size, min(rank, size), generator=generator, dtype=torch.float64)
    a, b = half @ half.T, torch.randn(size, generator=generator, dtype=torch.float64)
    space = Krylov(lambda v: a @ v, b, 3 * size)
    for c in (shift, 4 * shift):
        exact = torch.linalg.solve(a + c * torch.eye(size, dtype=torch.float64), b)
        torch.testing.assert_close(space.solve(c), exact, atol=1e-6, rtol=1e-6)


def test_a_krylov_space_ends_when_the_residual_is_small_enough() -> None:
    values = torch.logspace(-4, 2, 60, dtype=torch.float64)
    b = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for enough in (0.3, 0.03):
        space = Krylov(lambda v: values * v, b, 60, enough, 0.5)
        x = space.solve(0.5)
        assert float((b - (values + 0.5) * x).norm() / b.norm()) <= enough
        assert len(space.basis) < 60
        shorter = Krylov(lambda v: values * v, b, len(space.basis) - 1)
        assert float((b - (values + 0.5) * shorter.solve(0.5)).norm() / b.norm()) > enough  # not later than that
    nothing = Krylov(lambda v: values * v, torch.zeros_like(b), 5)
    assert (nothing.solve(1.0) == 0).all()


def test_one_step_is_the_damped_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all samples and iterations, the first step is the best of the explicit solutions."""
    monkeypatch.setattr("mipprune.repair.second_order._ENOUGH", 0.0)
    cut, dense = case()
    problem = _Problem(cut, dense, 4.0)
    w, g, gradient = problem.weights(), explicit(problem, 4.0), problem.gradient()
    generator = torch.Generator().manual_seed(3)
    samples = torch.randperm(problem.n, generator=generator)
    diagonal = problem.curvature(samples, generator).diagonal
    scale = (diagonal.clamp_min(1e-4 * diagonal.mean()) * diagonal.mean()).sqrt()
    losses = {}
    for power in range(-9, 10):
        damping = 0.1 * 4.0**power
        problem.assign(w - torch.linalg.solve(g + damping * torch.diag(scale), gradient))
        losses[damping] = problem.loss()
    problem.assign(w)
    loss = polish(cut, dense, steps=1, iterations=len(w), seed=3)[1]
    assert loss == pytest.approx(min(losses.values()), rel=1e-6)


def test_steps_only_go_down_and_repeat() -> None:
    cut, dense = case()
    refit_cut(cut, dense)
    again = copy.copy(cut)
    again.tensors = {name: value.clone() for name, value in cut.tensors.items()}
    losses = polish(cut, dense, steps=5)
    assert len(losses) == 6
    assert all(b <= a for a, b in itertools.pairwise(losses))
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] == pytest.approx(_Problem(cut, dense, 4.0).loss(), rel=1e-10)
    assert polish(again, dense, steps=5) == losses
    assert all(torch.equal(cut.tensors[name], again.tensors[name]) for name in cut.tensors)


def test_the_judge_has_the_last_word() -> None:
    cut, dense = case()
    problem = _Problem(cut, dense, 4.0)
    said = iter([3.0, 2.0, 1.0, 1.5, 1.5, 1.5, 1.5, 1.5])
    seen: list[torch.Tensor] = []

    def judge() -> float:
        seen.append(problem.weights())
        return next(said)

    losses = polish(cut, dense, steps=9, judge=judge, patience=3)
    assert len(losses) == 1 + 5  # three steps without a new best
    assert torch.equal(problem.weights(), seen[2])
    cut, dense = case()
    problem = _Problem(cut, dense, 4.0)
    before = problem.weights()
    polish(cut, dense, steps=2, judge=iter([1.0, 2.0, 2.0]).__next__)
    assert torch.equal(problem.weights(), before)  # worse by the judge: as if nothing had been


def test_told_to_stop_it_stops() -> None:
    cut, dense = case()
    left = iter([True, True, False])
    assert len(polish(cut, dense, steps=9, goes_on=left.__next__)) == 3


def test_a_step_that_lowers_nothing_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cut, dense = case()
    before = {name: value.clone() for name, value in cut.tensors.items()}
    gradient = _Problem.gradient
    monkeypatch.setattr(_Problem, "gradient", lambda problem: -gradient(problem))  # every step goes uphill
    losses = polish(cut, dense, steps=2)
    assert losses[0] == losses[1] == losses[2]
    assert all(torch.equal(value, before[name]) for name, value in cut.tensors.items())


def test_nothing_to_gain_nothing_moves() -> None:
    cut, dense = case()
    whole = CutNetwork(cut.graph, np.ones(cut.graph.n_units, dtype=bool))
    before = {name: value.clone() for name, value in whole.tensors.items()}
    losses = polish(whole, dense, steps=2)
    assert losses[0] == pytest.approx(0, abs=1e-12)
    for name, value in whole.tensors.items():
        torch.testing.assert_close(value, before[name], atol=1e-9, rtol=1e-9)


def test_a_repair_starts_from_the_renewed_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics are renewed in the module; the tensors that later repairs change follow."""
    torch.manual_seed(0)
    model = Net().eval()
    x = torch.randn(60, 1, 4, 4)
    recalibrate_batch_norm(model, as_data((x, torch.zeros(60, dtype=torch.int64)), mp.trace(model, x[:1])))
    y = model(x).argmax(1)
    with torch.no_grad():
        model.norm.running_mean.add_(2)  # there is something to renew
    graph = mp.trace(model, x[:1])
    data = as_data((x, y), graph)
    kept = np.ones(graph.n_units, dtype=bool)
    kept[[1, 4, 8]] = False
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        "mipprune.pruning.repairing.polish", lambda cut, *_, **__: seen.append(cut.run([x]))
    )
    repairer = Repairer(graph, data, data, ("bn", "lm"))
    with_bn = mp.PrunePlan.from_mask(graph, kept).apply(model)
    recalibrate_batch_norm(with_bn, data)
    taken = [step.name for step in repairer.deploy(kept)[1] if step.taken]
    assert "bn" in taken
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], with_bn(x).detach(), atol=1e-5, rtol=1e-5)


def test_prune_polishes_what_it_chose() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 3)).eval()
    x = torch.randn(300, 6)
    with torch.no_grad():
        model[4].weight.mul_(8)
    options: dict[str, Any] = {"budget": mp.Macs(0.3), "validation": (x[200:], model(x[200:]).argmax(1)),
                               "progress": False}
    data = (x[:200], model(x[:200]).argmax(1))
    names = ("refit", "head", "lm")
    result = mp.prune(model, data, repair=names, **options)
    steps = result.report.repairs
    assert [step.name for step in steps] == ["cut", *names]
    taken = [step.loss for step in steps if step.taken]
    assert all(b < a for a, b in itertools.pairwise(taken))
    assert steps[-1].taken
    assert result.report.ratio("macs") <= 0.3
    again = mp.prune(model, data, repair=names, **options)
    assert (again.kept == result.kept).all()
    assert torch.equal(again.model(x), result.model(x))
    late = mp.prune(model, data, repair=names, time_limit=1e-9, **options)
    assert late.solution.termination == "time_limit"
    assert "lm" not in [step.name for step in late.report.repairs]
