"""The bound that is read off drawn masks keeps its confidence, also where gaps take few values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

import mipprune as mp
from mipprune.bounds import measured_gaps, sampled_pruning
from mipprune.bounds.sampled import order_statistic
from mipprune.errors import BudgetError

Data = tuple[torch.Tensor, torch.Tensor]


def _problem() -> tuple[nn.Module, Data]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    return model, (torch.randn(8, 6), torch.zeros(8))


@pytest.mark.parametrize(("n", "delta", "confidence"), [(90, 0.05, 0.99), (360, 0.05, 0.99), (45, 0.2, 0.9)])
@pytest.mark.parametrize("few_values", [False, True])
def test_the_place_keeps_its_confidence(n: int, delta: float, confidence: float, few_values: bool) -> None:
    """A bound fails when it is exceeded with more than delta; that may happen in 1 - confidence of the draws."""
    j = order_statistic(n, delta, confidence)
    rng = np.random.default_rng(0)
    draws = np.sort(rng.geometric(0.3, (4000, n)) if few_values else rng.exponential(size=(4000, n)), 1)
    above = 0.7 ** draws[:, j - 1] if few_values else np.exp(-draws[:, j - 1])
    assert (above > delta + 1e-12).mean() <= 1 - confidence + 3 * math.sqrt((1 - confidence) / 4000)
    assert binom.sf(j - 1, n, 1 - delta) <= 1 - confidence < binom.sf(j - 2, n, 1 - delta)  # the least such place


@pytest.mark.parametrize("what", ["neurons", "weights"])
def test_fresh_masks_stay_within(what: str) -> None:
    model, data = _problem()
    graph = mp.trace(model, data[0][:1])
    bound = sampled_pruning(graph, data, keep=0.7, delta=0.1, what=what, seed=1)
    proved = mp.bounds.random_pruning(graph, data, keep=0.7, delta=0.1, what=what)
    assert (bound.values < proved.values).all()
    assert bound.rms < proved.rms
    assert bound == sampled_pruning(graph, data, keep=0.7, delta=0.1, what=what, seed=1)
    assert mp.bounds.GapBound.from_dict(bound.to_dict()) == bound
    if what == "neurons":
        gaps = measured_gaps(graph, data[0], np.random.default_rng(2).random((2000, graph.n_units)) < 0.7)
        assert (gaps <= bound.values).mean(0).min() >= 0.9
        assert (np.sqrt((gaps**2).mean(1)) <= bound.rms).mean() >= 0.9
        assert (gaps.max(1) <= bound.worst).mean() >= 0.9
        assert np.median(bound.values / np.quantile(gaps, 0.9, axis=0)) < 1.3


def test_too_few_masks_are_refused() -> None:
    model, data = _problem()
    with pytest.raises(BudgetError, match="at least 90 masks"):
        sampled_pruning(model, data, keep=0.7, n_masks=89)
    assert sampled_pruning(model, data, keep=0.7, n_masks=90).rms > 0
    with pytest.raises(BudgetError, match="confidence"):
        sampled_pruning(model, data, keep=0.7, confidence=1.0)
    with pytest.raises(BudgetError, match="'neurons' or 'weights'"):
        sampled_pruning(model, data, keep=0.7, what="heads")
    with pytest.raises(BudgetError, match="keep"):
        sampled_pruning(model, data, keep=0.0, what="weights")
