"""The whole road: what is asked for is met, what is reported is true, bad input is refused by name."""

from __future__ import annotations

import copy
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.demo import DigitsCNN, train
from mipprune.errors import (
    BudgetError,
    ConfigError,
    DataError,
    InfeasibleError,
    ModelStateError,
    SolverError,
    TraceError,
    UnknownLayerError,
    VerificationError,
)
from mipprune.pruning import PruneReport, measure, pipeline, search
from mipprune.pruning.baseline import magnitude_mask
from mipprune.testing.cases import NETWORKS
from mipprune.testing.masking import masked_model

Data = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def mlp(digits_flat: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))
    return train(model, *digits_flat.train, epochs=12)


@pytest.fixture(scope="module")
def cnn(digits: Any) -> nn.Module:
    torch.manual_seed(0)
    return train(DigitsCNN(), *digits.train, epochs=3)


def quick(model: nn.Module, data: Any, **options: Any) -> mp.PruneResult:
    return mp.prune(model, data, progress=False, **{"stages": 1, "repair": ("bn",), **options})


def small_data(data: Data, n: int = 200) -> Data:
    return data[0][:n], data[1][:n]


@pytest.mark.parametrize("surrogate", ["quadratic", "additive", "head"])
def test_budget_is_met_and_nearly_used(mlp: nn.Module, digits_flat: Any, surrogate: str) -> None:
    result = quick(mlp, small_data(digits_flat.train), budget=mp.Macs(0.5), surrogate=surrogate)
    ratio = result.report.ratio("macs")
    assert 0.45 < ratio <= 0.5
    assert result.report.surrogate == surrogate
    assert result.solution.bound <= result.solution.objective + 1e-9


@pytest.mark.parametrize("surrogate", ["quadratic", "additive", "head"])
def test_tolerance_is_met_on_the_real_network(mlp: nn.Module, digits_flat: Any, surrogate: str) -> None:
    data = small_data(digits_flat.train)
    result = quick(mlp, data, holdout=digits_flat.test, tolerance=mp.LossIncrease(0.1), surrogate=surrogate)
    loss = nn.functional.cross_entropy
    with torch.no_grad():
        increase = loss(result.model(data[0]), data[1]) - loss(mlp(data[0]), data[1])
    assert increase <= 0.1 + 1e-6
    assert result.report.solution.true_drop == pytest.approx(float(increase), abs=1e-5)
    assert result.solution.n_kept < 40
    assert result.solution.objective == result.solution.n_kept
    assert result.solution.bound <= result.solution.objective


def test_several_budgets_and_a_convolution_net(cnn: nn.Module, digits: Any) -> None:
    budgets = [mp.Macs(0.6), mp.Params(0.5), mp.Units(0.7)]
    result = quick(cnn, small_data(digits.train), budget=budgets, stages=2)
    for budget in budgets:
        assert result.report.ratio(budget.resource) <= budget.ratio
    assert sum(p.numel() for p in result.model.parameters()) == result.report.costs_pruned["params"]
    assert result.report.verification.max_abs_diff < 1e-4
    assert len(result.report.stages) == 2


def test_stages_only_ever_remove(cnn: nn.Module, digits: Any) -> None:
    result = quick(cnn, small_data(digits.train), budget=mp.Macs(0.4), stages=4)
    chain = [stage.kept for stage in result.report.stages]
    assert len(chain) == 4
    assert all((later <= earlier).all() for earlier, later in itertools.pairwise(chain))
    assert (chain[-1] == result.kept).all()
    stages = result.report.stages
    assert sum(stage.true_drop for stage in stages) == pytest.approx(result.report.solution.true_drop, abs=1e-6)
    assert result.report.predicted_drop == pytest.approx(sum(stage.surrogate_drop for stage in stages))
    assert f"predicted {result.report.predicted_drop:.4g}" in str(result)


def test_the_magnitude_baseline_keeps_the_largest(mlp: nn.Module, digits_flat: Any) -> None:
    graph = mp.trace(mlp, digits_flat.train[0][:1])
    keep = np.zeros(graph.n_units, dtype=bool)
    keep[5] = True
    mask = magnitude_mask(graph, {"macs": graph.macs() // 2}, keep, min_keep=2)
    assert graph.macs(mask) <= graph.macs() // 2
    assert mask[5]
    norms = torch.cat([mlp[0].weight.norm(dim=1), mlp[2].weight.norm(dim=1)]).detach().numpy()
    for group in graph.groups:
        own, free = mask[group.units], ~keep[group.units]
        assert norms[group.units][own & free].min() > norms[group.units][~own].max()
    shares = graph.costs.counts(mask) / graph.costs.sizes
    assert abs(shares[0] - shares[1]) < 0.1


def test_everything_reported_is_recomputed(cnn: nn.Module, digits: Any) -> None:
    data, held = small_data(digits.train), small_data(digits.test)
    result = quick(cnn, data, holdout=held, budget=mp.Macs(0.7), repair=())
    graph = mp.trace(cnn, data[0][:1])
    with torch.no_grad():
        masked = masked_model(graph, result.kept)(held[0])
        torch.testing.assert_close(result.model(held[0]), masked, atol=1e-5, rtol=1e-5)
        accuracy = float((masked.argmax(1) == held[1]).double().mean())
    report = result.report
    assert report.pruned.accuracy == pytest.approx(accuracy)
    assert report.dense.accuracy == pytest.approx(float((cnn(held[0]).argmax(1) == held[1]).double().mean()))
    assert report.costs_pruned["macs"] == graph.macs(result.kept)
    assert [layer.kept for layer in report.layers] == graph.costs.counts(result.kept).tolist()
    again = PruneReport.from_dict(report.to_dict())
    assert again == report
    assert str(again) == str(result)


def test_batch_norm_repair_helps_and_is_said(cnn: nn.Module, digits: Any) -> None:
    data = digits.train
    with_bn = quick(cnn, data, holdout=digits.test, budget=mp.Macs(0.5))
    without = quick(cnn, data, holdout=digits.test, budget=mp.Macs(0.5), repair=())
    assert with_bn.report.repair == ("bn",)
    assert without.report.repair == ()
    assert with_bn.report.pruned_calibration.loss < without.report.pruned_calibration.loss


def test_the_model_is_left_alone(cnn: nn.Module, digits: Any) -> None:
    before = copy.deepcopy(cnn.state_dict())
    result = quick(cnn, small_data(digits.train), budget=mp.Macs(0.5))
    assert all(torch.equal(before[k], v) for k, v in cnn.state_dict().items())
    assert not cnn.training
    assert result.model is not cnn


def test_same_seed_same_answer(mlp: nn.Module, digits_flat: Any) -> None:
    runs = [quick(mlp, small_data(digits_flat.train), budget=mp.Macs(0.5), seed=3) for _ in range(2)]
    assert (runs[0].kept == runs[1].kept).all()
    assert runs[0].report.dense.loss == runs[1].report.dense.loss


def test_layers_and_pins(mlp: nn.Module, digits_flat: Any) -> None:
    data = small_data(digits_flat.train)
    only = quick(mlp, data, tolerance=mp.LossIncrease(0.1), layers=["2"])
    assert [layer.kept == layer.size for layer in only.report.layers] == [True, False]
    pinned = quick(mlp, data, tolerance=mp.LossIncrease(0.1), pin=["2"])
    assert [layer.kept == layer.size for layer in pinned.report.layers] == [False, True]
    floor = quick(mlp, data, budget=mp.Units(0.5), min_keep=10)
    assert min(layer.kept for layer in floor.report.layers) >= 10


@pytest.mark.parametrize("resource", ["params", "macs"])
def test_other_costs_can_be_minimised(mlp: nn.Module, digits_flat: Any, resource: str) -> None:
    data = small_data(digits_flat.train)
    result = quick(mlp, data, tolerance=mp.LossIncrease(0.1), minimize=resource)
    assert result.solution.objective == result.report.costs_pruned[resource]
    assert result.report.ratio(resource) < 1


def test_parallel_layers_give_the_same(mlp: nn.Module, digits_flat: Any) -> None:
    data = small_data(digits_flat.train)
    one, two = (quick(mlp, data, budget=mp.Macs(0.5), surrogate="head", n_jobs=n) for n in (1, 2))
    assert (one.kept == two.kept).all()


def test_result_can_be_saved_and_loaded(mlp: nn.Module, digits_flat: Any, tmp_path: Path) -> None:
    result = quick(mlp, small_data(digits_flat.train), budget=mp.Macs(0.5))
    result.save(tmp_path / "small.safetensors")
    again = mp.load(tmp_path / "small.safetensors", copy.deepcopy(mlp))
    x = digits_flat.test[0]
    assert torch.equal(again(x), result.model(x))


@pytest.mark.parametrize("case", [c for c in NETWORKS if c.name not in ("mlp", "cnn")], ids=lambda c: c.name)
def test_untrained_odd_networks(case: Any) -> None:
    model, x = case.build(), case.inputs(40)
    y = model(x).argmax(1)
    result = quick(model, (x, y), budget=mp.Params(0.7))
    assert result.report.ratio("params") <= 0.7


# -- interruption ------------------------------------------------------------------------------------------------------


def test_time_limit_returns_a_network_within_budget(cnn: nn.Module, digits: Any) -> None:
    result = mp.prune(cnn, small_data(digits.train), budget=mp.Macs(0.5), time_limit=1e-6, progress=False)
    assert result.solution.termination == "time_limit"
    assert result.report.ratio("macs") <= 0.5
    assert not result.solution.proved


def test_time_limit_keeps_the_tolerance(mlp: nn.Module, digits_flat: Any) -> None:
    data = small_data(digits_flat.train)
    result = mp.prune(mlp, data, tolerance=mp.LossIncrease(0.1), time_limit=0.5, progress=False)
    assert result.report.pruned_calibration.loss - result.report.dense_calibration.loss <= 0.1 + 1e-9


@pytest.fixture
def interrupt_second_stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C arrives while the second stage is being measured."""
    calls = []
    real = search.layer_surrogates

    def stop(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(search, "layer_surrogates", stop)
    yield
    assert len(calls) == 2


@pytest.mark.usefixtures("interrupt_second_stage")
def test_interrupt_returns_the_best_so_far(mlp: nn.Module, digits_flat: Any) -> None:
    result = quick(  # 1 stage, then 4
        mlp, small_data(digits_flat.train), budget=mp.Macs(0.5), surrogate="quadratic", stages=None
    )
    assert result.solution.termination == "interrupted"
    assert len(result.report.stages) == 1
    assert result.report.ratio("macs") <= 0.5


@pytest.mark.usefixtures("interrupt_second_stage")
def test_interrupt_before_any_chain_ends(mlp: nn.Module, digits_flat: Any) -> None:
    result = quick(mlp, small_data(digits_flat.train), budget=mp.Macs(0.5), stages=3)
    assert result.solution.termination == "interrupted"
    assert result.solution.solver == "magnitude"
    assert result.report.ratio("macs") <= 0.5


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_a_real_ctrl_c(cnn: nn.Module, digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    within = pipeline.within_tolerance

    def begin(*arguments: Any) -> None:  # tracing may take longer than any timer on a busy machine
        timer.start()
        within(*arguments)

    monkeypatch.setattr(pipeline, "within_tolerance", begin)
    try:
        result = mp.prune(cnn, digits.train, tolerance=mp.LossIncrease(0.05), stages=40, progress=False)
    finally:
        timer.cancel()
    assert result.solution.termination == "interrupted"
    assert result.report.solution.true_drop is not None
    assert result.report.solution.true_drop <= 0.05


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1.5, 0, -1, "x", float("nan"), True])
@pytest.mark.parametrize("kind", [mp.Macs, mp.Params, mp.Units])
def test_impossible_budgets(kind: type[mp.Macs], ratio: Any) -> None:
    with pytest.raises(BudgetError, match="above 0 and at most 1"):
        kind(ratio)


@pytest.mark.parametrize("nats", [-0.1, float("nan"), float("inf"), "x"])
def test_impossible_tolerances(nats: Any) -> None:
    with pytest.raises(BudgetError, match="number of nats"):
        mp.LossIncrease(nats)


def bad_calls() -> dict[str, tuple[dict[str, Any], type[Exception], str]]:
    budget = {"budget": mp.Macs(0.5)}
    return {
        "nothing asked": ({}, BudgetError, "exactly one of"),
        "both asked": ({**budget, "tolerance": mp.LossIncrease(0.1)}, BudgetError, "exactly one of"),
        "number as budget": ({"budget": 0.5}, BudgetError, r"Macs\(ratio\)"),
        "number as tolerance": ({"tolerance": 0.5}, BudgetError, r"LossIncrease\(nats\)"),
        "twice the same": ({"budget": [mp.Macs(0.5), mp.Macs(0.4)]}, BudgetError, "one budget per resource"),
        "below the minimum": ({"budget": mp.Macs(0.001)}, InfeasibleError, r"can't go below .* of the dense"),
        "pinned too much": ({**budget, "pin": ["0", "2"]}, InfeasibleError, "pin fewer layers"),
        "wrong layer": ({**budget, "layers": ["fc1"]}, UnknownLayerError, "no prunable layer 'fc1'"),
        "wrong pin": ({**budget, "pin": ["4"]}, UnknownLayerError, "network's output"),
        "min_keep 0": ({**budget, "min_keep": 0}, BudgetError, "at least 1"),
        "surrogate": ({**budget, "surrogate": "cubic"}, ConfigError, "unknown surrogate 'cubic'"),
        "repair": ({**budget, "repair": ("sgd",)}, ConfigError, "repair"),
        "repair as text": ({**budget, "repair": "bn"}, ConfigError, "sequence"),
        "stages": ({**budget, "stages": 0}, ConfigError, "stages"),
        "time": ({**budget, "time_limit": 0}, ConfigError, "time_limit"),
        "effort 0": ({**budget, "effort": 0}, ConfigError, "effort"),
        "effort inf": ({**budget, "effort": float("inf")}, ConfigError, "effort"),
        "effort as text": ({**budget, "effort": "much"}, ConfigError, "effort"),
        "minimize": ({"tolerance": mp.LossIncrease(0.1), "minimize": "drop"}, BudgetError, "minimize"),
        "holdout share": ({**budget, "holdout": 1.5}, ConfigError, "between 0 and 1"),
        "solver": ({**budget, "solver": "gurobi"}, SolverError, "gurobi"),
    }


@pytest.mark.parametrize("name", bad_calls())
def test_bad_options_are_named(mlp: nn.Module, digits_flat: Any, name: str) -> None:
    options, error, match = bad_calls()[name]
    with pytest.raises(error, match=match):
        quick(mlp, small_data(digits_flat.train), **options)


def test_bad_data(mlp: nn.Module, digits_flat: Any) -> None:
    x, y = small_data(digits_flat.train)
    for data, match in (((x[:0], y[:0]), "empty"), ((x, y[:5]), "samples"), ((x[:, :3], y), "doesn't run on inputs"),
                        ((x, y + 5), "classes"), ([], "empty"), (None, "expected")):
        with pytest.raises((DataError, TraceError), match=match):
            quick(mlp, data, budget=mp.Macs(0.5))
    with pytest.raises(DataError, match="held-out data"):
        quick(mlp, (x, y), holdout=(x[:0], y[:0]), budget=mp.Macs(0.5))


def test_bad_models(digits_flat: Any) -> None:
    data = small_data(digits_flat.train)
    with pytest.raises(ModelStateError, match="Dropout"):
        quick(nn.Sequential(nn.Linear(64, 8), nn.Dropout(), nn.Linear(8, 10)), data, budget=mp.Macs(0.5))
    broken = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)).eval()
    with torch.no_grad():
        broken[0].bias[1] = float("inf")
    with pytest.raises(ModelStateError, match=r"'0\.bias'"):
        quick(broken, data, budget=mp.Macs(0.5))
    with pytest.raises(BudgetError, match="no prunable unit"):
        quick(nn.Sequential(nn.Linear(64, 10)).eval(), data, budget=mp.Macs(0.5))
    with pytest.raises(ModelStateError, match="no parameters"):
        quick(nn.Sequential(nn.ReLU()), data, budget=mp.Macs(0.5))


def test_a_model_that_surgery_breaks_is_never_returned(digits_flat: Any) -> None:
    class Hidden(nn.Module):
        """Its forward depends on a number that tracing sees as a constant and surgery doesn't repair."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 12), nn.Linear(12, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x))) * (self.a.out_features / 12)

    torch.manual_seed(0)
    with pytest.raises(VerificationError, match="differs"):
        quick(Hidden().eval(), small_data(digits_flat.train), budget=mp.Macs(0.5))


def test_measure_refuses_nan(mlp: nn.Module, digits_flat: Any) -> None:
    from mipprune.game.data import LabelledData

    x, y = small_data(digits_flat.train)
    broken = copy.deepcopy(mlp)
    with torch.no_grad():
        broken[0].weight.fill_(np.nan)
    with pytest.raises(ModelStateError, match="nan"):
        measure.measure(broken, LabelledData((x,), y))
