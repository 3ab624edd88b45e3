"""Odd networks and bad moments on the refitted road: half precision, dead layers, much data, Ctrl-C, no time left."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.curvature import refit_curves
from mipprune.game import LabelledData, as_data
from mipprune.graph import UnitGraph
from mipprune.pruning import diagnosis, measure, oracle, pipeline
from mipprune.pruning.diagnosis import diagnose
from mipprune.pruning.measure import rate
from mipprune.pruning.oracle import softened_divergence


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def labelled(model: nn.Module, x: torch.Tensor) -> tuple[UnitGraph, LabelledData]:
    graph = mp.trace(model, x[:1])
    with torch.no_grad():
        return graph, as_data((x, model(x).argmax(1)), graph)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_find_the_same_curves(dtype: torch.dtype) -> None:
    x = torch.randn(200, 6)
    expected = refit_curves(*labelled(perceptron(), x))
    graph, data = labelled(perceptron().to(dtype), x.to(dtype))
    for curve, other in zip(refit_curves(graph, data), expected, strict=True):
        np.testing.assert_allclose(curve.error, other.error, rtol=0.1, atol=0.02 * other.error.max())


def test_half_precision_is_pruned() -> None:
    model, x = perceptron().to(torch.bfloat16), torch.randn(120, 6).to(torch.bfloat16)
    result = mp.prune(model, (x, model(x).argmax(1)), budget=mp.Macs(0.6), progress=False)
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    assert result.report.surrogate == "refit"


def test_units_that_never_vary_cost_nothing() -> None:
    model = perceptron()
    nn.init.constant_(model[2].bias, -1000.0)  # the last layer reads zeros alone
    first, second = refit_curves(*labelled(model, torch.randn(60, 6)))
    assert (first.error == 0).all()
    assert (second.error < 1e-20).all()


def test_many_logits_are_rated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, others, y = torch.randn(50, 4), torch.randn(50, 4), torch.randint(0, 4, (50,))
    data = LabelledData((torch.zeros(50, 1),), y)
    whole = rate(logits, data, "data"), softened_divergence(logits, others)
    assert whole[0].loss == pytest.approx(float(nn.functional.cross_entropy(logits.double(), y)), rel=1e-12)
    for module in (measure, oracle):
        monkeypatch.setattr(module, "ROWS", 7)
    assert rate(logits, data, "data").loss == pytest.approx(whole[0].loss, rel=1e-12)
    assert rate(logits, data, "data").accuracy == whole[0].accuracy
    assert softened_divergence(logits, others) == pytest.approx(whole[1], rel=1e-12)


def test_the_diagnosis_takes_fewer_samples_at_a_time_where_values_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = labelled(perceptron(), torch.randn(40, 6))
    kept = np.arange(graph.n_units) % 2 == 0
    expected = diagnose(graph, kept, data)
    sizes: list[int] = []
    values = type(graph.program).values

    def spy(self: Any, env: dict[str, Any], *rest: Any) -> Any:
        sizes.append(len(next(iter(env.values()))))
        return values(self, env, *rest)

    monkeypatch.setattr(type(graph.program), "values", spy)
    monkeypatch.setattr(diagnosis, "MOST_MEMORY", 10 * 4 * (8 + 8 + 8 + 8 + 3) + 1)  # ten samples' values
    found = diagnose(graph, kept, data)
    assert sizes[:4] == [10, 10, 10, 10]
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-6)


def test_an_interrupt_while_the_result_is_measured_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = pipeline.as_candidate

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return candidate(*arguments)

    monkeypatch.setattr(pipeline, "as_candidate", interrupted)
    model, x = perceptron(), torch.randn(80, 6)
    result = mp.prune(model, (x, model(x).argmax(1)), budget=mp.Macs(0.5), progress=False)
    assert result.solution.termination == "interrupted"
    assert result.report.ratio("macs") <= 0.5
    assert len(result.report.stages) == 1


def test_a_search_that_ends_with_the_time_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[np.ndarray] = []

    def late(search: Any, limits: Any, by_curves: np.ndarray, plain: np.ndarray) -> np.ndarray:
        search.deadline = 0.0
        found.append(plain)
        return plain

    monkeypatch.setattr(pipeline, "search_widths", late)
    model, x = perceptron(), torch.randn(80, 6)
    result = mp.prune(model, (x, model(x).argmax(1)), budget=mp.Macs(0.5), time_limit=600, progress=False)
    assert result.solution.termination == "time_limit"
    assert (result.kept == found[0]).all()  # what the search ended with
