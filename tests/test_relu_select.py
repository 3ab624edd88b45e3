"""The ReLU network inside the program: its logits are the masked network's, and its optimum is that of enumeration."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.bounds import piecewise_linear, value_ranges
from mipprune.demo import train
from mipprune.errors import BudgetError, InfeasibleError, SolverError, UnknownLayerError
from mipprune.game import as_data
from mipprune.relu import Margin, MeanLoss, ReluSolution, pool, select
from mipprune.relu.masked_rows import MaskedRows
from mipprune.relu.oracle import network_oracle
from mipprune.relu.requirement import losses, margins
from mipprune.relu.sound import SoundProgram
from mipprune.relu.task import Task
from mipprune.solver import LinearMip, LinearOutcome, MipBuilder, solve_linear
from mipprune.testing import masked_model

from .test_bounds_intervals import CASES


def _mlp(seed: int, widths: tuple[int, ...] = (5, 6, 5, 3)) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


class Instance:
    """A small network, samples labelled by the network itself (so the dense one meets margins), all its masks."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], samples: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = model.eval()
        self.x = 4.0 * torch.randn(samples, *shape, generator=generator)  # large: the classes vary
        with torch.no_grad():
            self.y = self.model(self.x).argmax(1)
        self.graph = mp.trace(self.model, self.x[:1])

    @property
    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x, self.y

    def logits(self, masks: np.ndarray) -> np.ndarray:
        """(M, N, C) by changing weights and running the model's own forward."""
        with torch.no_grad():
            return np.stack([masked_model(self.graph, m).double()(self.x.double()).numpy() for m in masks])

    def masks(self, min_keep: int = 1) -> np.ndarray:
        every = np.array(list(itertools.product([False, True], repeat=self.graph.n_units)))
        counts = np.stack([every[:, g.units].sum(1) for g in self.graph.groups])
        return every[(counts >= min_keep).all(0)]


@pytest.fixture(scope="module")
def small() -> Instance:
    return Instance(_mlp(0, (5, 5, 4, 3)), (5,), 6)


def _task(graph: mp.UnitGraph, x: torch.Tensor, y: torch.Tensor, keep: np.ndarray | None = None) -> Task:
    n = graph.n_units
    data = as_data((x, y), graph)
    return Task(
        piecewise_linear(graph), x.double().flatten(1).numpy(), y.numpy(), network_oracle(graph, data),
        tuple(np.arange(g.units.start, g.units.stop) for g in graph.groups), np.zeros(len(graph.groups), dtype=int),
        np.zeros(n, dtype=bool) if keep is None else keep, np.zeros((0, n), dtype=bool),
    )


# -- exactness of the rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_in_the_program_are_those_of_the_masked_network(case: Any) -> None:
    """With the gates fixed, the largest and smallest logit that the rows allow are both the network's logit."""
    model, x = case.build(), case.inputs(1)
    graph = mp.trace(model, x)
    network = piecewise_linear(graph)
    flat = x.double().flatten(1).numpy()
    builder = MipBuilder()
    rows = MaskedRows(builder, network, value_ranges(network, flat, flat), flat, np.zeros(network.n_units, dtype=bool))
    logit = rows.outputs[0].entry(0)
    column = builder.add_columns(1, lower=-np.inf, upper=np.inf)
    logit.add_row(builder, column, [1.0], lower=0.0, upper=0.0)
    mip = builder.build()
    rng = np.random.default_rng(0)
    for kept in [np.ones(network.n_units, bool), *(rng.random(network.n_units) < 0.6 for _ in range(3))]:
        with torch.no_grad():
            expected = float(masked_model(graph, kept).double()(x.double())[0, 0])
        for sign in (1.0, -1.0):
            outcome = solve_linear(_with_gates(mip, rows.gates, kept, column, sign))
            assert outcome.termination == "optimal"
            assert outcome.x is not None
            assert outcome.x[column[0]] == pytest.approx(expected, abs=1e-6)


def _with_gates(mip: LinearMip, gates: np.ndarray, kept: np.ndarray, column: np.ndarray, sign: float) -> LinearMip:
    lower, upper, cost = mip.lower.copy(), mip.upper.copy(), np.zeros(mip.n_columns)
    lower[gates] = upper[gates] = kept
    cost[column] = sign
    fields = {name: getattr(mip, name) for name in ("constant", "integer", "indptr", "indices", "values", "row_lower",
                                                    "row_upper")}
    return LinearMip(c=cost, lower=lower, upper=upper, **fields)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["margin", "loss"])
def test_every_mask_that_meets_the_requirement_is_a_solution(case: Any, kind: str) -> None:
    model, x = case.build(), case.inputs(3)
    graph = mp.trace(model, x[:1])
    with torch.no_grad():
        y = model(x).argmax(1)
    keep = np.arange(graph.n_units) % 5 == 0
    task = _task(graph, x, y, keep)
    rng = np.random.default_rng(1)
    masks = (rng.random((20, graph.n_units)) < 0.7) | keep
    logits = task.oracle(masks)
    second = np.sort(margins(logits, task.targets), axis=1)[:, 1]  # half of the masks reach the median of these
    mean = losses(logits, task.targets).mean(1)
    requirement = Margin(float(np.median(second)), 1) if kind == "margin" else MeanLoss(float(np.median(mean)))
    program = SoundProgram(task, requirement)
    met = requirement.met(logits, task.targets)
    for mask, good in zip(masks, met):
        violation = program.mip.violation(program.point(mask))
        assert (violation <= 1e-7) == good
        if program.loss is not None and good:  # tangents anywhere leave it a solution
            matrix, lower = program.loss.tangents(rng.normal(size=logits.shape[1:]), program.mip.n_columns)
            assert (matrix @ program.point(mask) >= lower - 1e-9).all()
    assert met.any()
    assert not met.all()


# -- optima ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["highs", "scip", "cbc"])
@pytest.mark.parametrize("seed", range(3))
def test_enumeration_agrees_on_margins(seed: int, solver: str) -> None:
    instance = Instance(_mlp(seed, (5, 5, 4, 3)), (5,), 8, seed)
    masks = instance.masks()
    logits = instance.logits(masks)
    ranked = np.sort(margins(logits, instance.y.numpy()), axis=1)
    for violated, share in ((0, 0.96), (2, 0.98), (4, 0.9)):
        margin = float(np.quantile(ranked[:, violated], share))  # few masks reach it
        met = Margin(margin, violated).met(logits, instance.y.numpy())
        solution = select(instance.graph, instance.data, margin=margin, max_violated=violated, solver=solver)
        assert solution.proved
        assert solution.n_kept == solution.objective == masks[met].sum(1).min()
        assert solution.bound <= solution.objective
        np.testing.assert_allclose(solution.logits, instance.logits(solution.kept[None])[0], atol=1e-9)


@pytest.mark.parametrize("solver", ["highs", "scip"])
@pytest.mark.parametrize("seed", range(2))
def test_enumeration_agrees_on_losses(seed: int, solver: str) -> None:
    instance = Instance(_mlp(seed, (4, 5, 4, 3)), (4,), 5, seed)
    masks = instance.masks()
    mean = losses(instance.logits(masks), instance.y.numpy()).mean(1)
    for limit in np.quantile(mean, [0.02, 0.3]):
        solution = select(instance.graph, instance.data, max_loss=float(limit), solver=solver)
        assert solution.proved
        assert solution.n_kept == masks[mean <= limit + 1e-9].sum(1).min()
        assert solution.loss <= limit + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_fifteen_gates_and_ten_real_samples(seed: int, digits_flat: Any) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 10))
    train(model, *digits_flat.train, epochs=60)
    x, y = digits_flat.calibration
    index = [int((y == c).nonzero()[0]) for c in range(10)]
    graph = mp.trace(model, x[:1])
    data = x[index], y[index]
    oracle = network_oracle(graph, as_data(data, graph))
    masks = np.array(list(itertools.product([False, True], repeat=15)))
    masks = masks[masks[:, :9].any(1) & masks[:, 9:].any(1)]
    logits = np.concatenate([oracle(part) for part in np.array_split(masks, 40)])
    for more in (0, 2):
        dense = select(graph, data).requirement
        assert isinstance(dense, Margin)
        solution = select(graph, data, max_violated=dense.max_violated + more)
        met = Margin(0.1, dense.max_violated + more).met(logits, y[index].numpy())
        assert solution.proved
        assert solution.n_kept == masks[met].sum(1).min()


def test_enumeration_agrees_on_convolutions_with_pooling() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )
    instance = Instance(model, (1, 6, 6), 4)
    masks = instance.masks()
    logits = instance.logits(masks)
    margin = float(np.quantile(margins(logits, instance.y.numpy()).min(1), 0.95))
    solution = select(model, instance.data, margin=margin, max_violated=0)
    met = Margin(margin, 0).met(logits, instance.y.numpy())
    assert solution.proved
    assert solution.n_kept == masks[met].sum(1).min()


def test_pins_minimum_counts_and_forbidden_masks(small: Instance) -> None:
    masks = small.masks(min_keep=2)
    first = small.graph.groups[0]
    masks = masks[masks[:, first.units].all(1)]
    met = Margin(0.0, 1).met(small.logits(masks), small.y.numpy())
    least = int(masks[met].sum(1).min())
    best = masks[met][masks[met].sum(1) == least]
    common: dict[str, Any] = {"margin": 0.0, "max_violated": 1, "pin": first.name, "min_keep": 2}
    solution = select(small.graph, small.data, **common)
    assert solution.n_kept == least
    second = select(small.graph, small.data, forbidden=best, **common)
    assert second.proved
    assert second.n_kept == least + 1


def test_a_decoupled_layer_is_judged_by_its_head(small: Instance) -> None:
    group = small.graph.groups[1]
    head = mp.fit_linear_head(small.graph, group.name, as_data(small.data, small.graph))
    solution = select(small.graph, small.data, layer=group.name, head=head, max_violated=1)
    others = np.ones(small.graph.n_units, dtype=bool)
    others[group.units] = False
    assert solution.kept[others].all()
    activations = head.activations * solution.kept[group.units]
    np.testing.assert_allclose(solution.logits, activations @ head.weight.T + head.bias, atol=1e-5)  # float32
    best = min(
        sum(mask) for mask in itertools.product([0, 1], repeat=group.size) if sum(mask) and
        solution.requirement.met((head.activations * mask) @ head.weight.T + head.bias, small.y.numpy())
    )
    assert solution.proved
    assert solution.kept[group.units].sum() == best


# -- incumbents, failures, records -------------------------------------------------------------------------------------


def test_out_of_time_there_is_a_verified_incumbent_with_its_bound(digits_flat: Any) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    x, y = (part[:40] for part in digits_flat.train)
    train(model, x, y, epochs=200)
    graph = mp.trace(model, x[:1])
    solution = select(graph, (x, y), margin=0.1, time_limit=3.0)
    assert solution.termination == "time_limit"
    assert not solution.proved
    assert 2 <= solution.bound < solution.objective == solution.n_kept < 40
    with torch.no_grad():
        logits = masked_model(graph, solution.kept).double()(x.double()).numpy()
    assert (margins(logits, y.numpy()) < 0.1).sum() <= solution.requirement.max_violated <= 10
    np.testing.assert_allclose(solution.logits, logits, atol=1e-9)


@pytest.mark.parametrize(("proved", "reported"), [(2.3, 3.0), (2.0 + 1e-8, 2.0), (-np.inf, 2.0)])
def test_the_solver_s_bound_is_rounded_up(
    small: Instance, monkeypatch: pytest.MonkeyPatch, proved: float, reported: float
) -> None:
    def out_of_time(*_: Any) -> LinearOutcome:
        return LinearOutcome(None, np.inf, proved, "time_limit", 0.0)

    monkeypatch.setattr("mipprune.relu.sound.solve_linear", out_of_time)
    dense = float(margins(small.logits(np.ones((1, 9), dtype=bool))[0], small.y.numpy()).min())
    solution = select(small.graph, small.data, margin=0.9 * dense)
    assert solution.objective == 4
    assert solution.bound == reported
    assert solution.termination == "time_limit"


def test_ctrl_c_returns_the_incumbent(small: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mipprune.relu.sound.solve_linear", interrupted)
    solution = select(small.graph, small.data, margin=0.0)
    assert solution.termination == "interrupted"
    assert solution.requirement is not None
    assert solution.requirement.met(small.logits(solution.kept[None])[0], small.y.numpy())
    monkeypatch.setattr("mipprune.relu.incumbent.Incumbents._exchange", interrupted)
    assert select(small.graph, small.data, margin=0.0).termination == "interrupted"


def test_a_start_is_used(small: Instance) -> None:
    optimum = select(small.graph, small.data, margin=0.0, max_violated=1)
    again = select(small.graph, small.data, margin=0.0, max_violated=1, start=optimum.kept, time_limit=20)
    assert again.n_kept == optimum.n_kept


def test_what_cannot_be_met_is_an_error(small: Instance) -> None:
    with pytest.raises(InfeasibleError, match="no mask meets the requirement") as error:
        select(small.graph, small.data, margin=1e3, max_violated=0)
    assert error.value.requirement == "margin"
    with pytest.raises(InfeasibleError, match="mean loss of 1e-09"):
        select(small.graph, small.data, max_loss=1e-9)
    with pytest.raises(SolverError, match="allow more time"):
        select(small.graph, small.data, margin=1e3, max_violated=0, time_limit=1e-6)


def test_by_default_as_many_samples_may_miss_as_the_dense_network_misses(small: Instance) -> None:
    wrong = small.y.clone()
    wrong[:2] = (wrong[:2] + 1) % 3
    solution = select(small.graph, (small.x, wrong), margin=0.0)
    assert isinstance(solution.requirement, Margin)
    assert solution.requirement.max_violated == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formulation": "exact"}, "formulation must be"),
        ({"time_limit": 0}, "time_limit"),
        ({"max_violated": 7}, "max_violated"),
        ({"max_violated": 1.5}, "max_violated"),
        ({"max_violated": 1, "max_loss": 1.0}, "leave it out"),
        ({"start": np.ones(3, dtype=bool)}, "start"),
        ({"forbidden": np.ones((1, 3), dtype=bool)}, "forbidden"),
    ],
)
def test_settings_that_make_no_sense(small: Instance, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        select(small.graph, small.data, **settings)


def test_an_unknown_layer(small: Instance) -> None:
    with pytest.raises(UnknownLayerError, match="no prunable layer"):
        select(small.graph, small.data, layer="7")


def test_the_record_goes_to_json_and_back(small: Instance) -> None:
    solution = select(small.graph, small.data, margin=0.0)
    assert ReluSolution.from_dict(solution.to_dict()) == solution
    assert "units kept (proved optimal)" in str(solution)


@pytest.mark.slow
def test_the_document_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parent.parent / "docs" / "relu.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    assert "units kept (proved optimal)" in capsys.readouterr().out
    assert names["small"](names["x"]).shape == (10, 3)


def test_a_pool_holds_the_smallest_masks_in_order(small: Instance) -> None:
    masks = small.masks()
    met = masks[Margin(0.0, 1).met(small.logits(masks), small.y.numpy())]
    sizes = np.sort(met.sum(1))
    found = pool(small.graph, small.data, 4, slack=1, margin=0.0, max_violated=1)
    assert all(solution.proved for solution in found)
    assert len({solution.kept.tobytes() for solution in found}) == len(found)
    assert [s.n_kept for s in found] == sizes[: min(4, (sizes <= sizes[0] + 1).sum())].tolist()
    apart = pool(small.graph, small.data, 3, slack=9, min_distance=3, margin=0.0, max_violated=1)
    for i, solution in enumerate(apart):
        assert all((solution.kept != other.kept).sum() >= 3 for other in apart[:i])
    with pytest.raises(SolverError, match="formulation='sound'"):
        pool(small.graph, small.data, 2, formulation="oamip")
