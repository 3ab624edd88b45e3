"""The ladder of budgets under many looks at the same held-out data: networks whose true fall is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.errors import InfeasibleError
from mipprune.pruning import AccuracyCertificate, Budget, PruneResult
from mipprune.pruning.certificate import clopper_pearson_upper
from mipprune.pruning.ladder import climb_down, rungs

TOLERANCE = mp.AccuracyDrop(0.05, confidence=0.9)
N, REPETITIONS = 200, 600
RUNGS = len(tuple(rungs("macs")))
#: Misses allowed in REPETITIONS at 10%, three standard errors above.
MOST = 0.1 + 3 * (0.1 * 0.9 / REPETITIONS) ** 0.5


@pytest.fixture(scope="module")
def template(digits_flat: Any) -> PruneResult:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    data = digits_flat.train[0][:100], digits_flat.train[1][:100]
    return mp.prune(model, data, budget=mp.Macs(0.5), surrogate="additive", repair=(), progress=False)


def pipeline(template: PruneResult, lost: np.ndarray, changed: np.ndarray) -> Callable[[Budget], PruneResult]:
    """Rung k loses lost[k] and changes changed[k] of N held-out samples."""
    def at(k: int) -> PruneResult:
        found = AccuracyCertificate(N, int(changed[k]), int(lost[k]), 0.95, 1.0, 1.0)  # climb_down takes the counts
        return dataclasses.replace(template, report=dataclasses.replace(template.report, certificate=found))

    numbers: Iterator[int] = iter(range(RUNGS))
    return lambda budget: at(next(numbers))


def tied(rng: np.random.Generator, rates: np.ndarray) -> np.ndarray:
    """Every network loses the samples of the ones above it, and more."""
    return (rng.random(N)[:, None] < rates).sum(0)


def free(rng: np.random.Generator, rates: np.ndarray) -> np.ndarray:
    """Networks that have nothing to do with one another."""
    return rng.binomial(N, rates)


WORST = np.full(RUNGS, 0.0501)  # every network breaks the tolerance, by as little as can be
FALLING = np.linspace(0.01, 0.12, RUNGS)
UNEVEN = np.where(np.arange(RUNGS) % 3 == 1, 0.002, 0.051)  # the first breaks it already


@pytest.mark.parametrize("draw", [tied, free])
@pytest.mark.parametrize("rates", [WORST, FALLING, UNEVEN], ids=["worst", "falling", "uneven"])
def test_a_network_that_breaks_the_tolerance_is_seldom_returned(
    template: PruneResult, draw: Callable[..., np.ndarray], rates: np.ndarray
) -> None:
    rng = np.random.default_rng(7)
    passing = max(k for k in range(N) if clopper_pearson_upper(k, N, TOLERANCE.confidence) <= TOLERANCE.drop)
    wrong = naive = uncovered = 0
    for _ in range(REPETITIONS):
        lost = draw(rng, rates)
        changed = lost + rng.binomial(N - lost, 0.05)
        rate = rates + (1 - rates) * 0.05
        passes = [k for k in range(RUNGS) if lost[k] <= passing]
        naive += bool(passes) and rates[passes[-1]] > TOLERANCE.drop
        try:
            found = climb_down(pipeline(template, lost, changed), TOLERANCE, "macs").report.certificate
        except InfeasibleError:
            continue
        ended = next((k for k in range(RUNGS) if k not in passes), RUNGS) - 1
        assert (found.lost, found.disagreements) == (lost[ended], changed[ended])
        assert found.drop_bound == TOLERANCE.drop
        assert found.confidence == TOLERANCE.confidence
        wrong += rates[ended] > TOLERANCE.drop
        uncovered += rate[ended] > found.disagreement_bound
    assert wrong <= MOST * REPETITIONS
    assert uncovered <= MOST * REPETITIONS
    if draw is free and rates is WORST:
        assert naive > MOST * REPETITIONS  # the smallest that passes, of all: this is what the order is there for


def test_the_bound_of_the_returned_network_is_not_its_own_count_s(template: PruneResult) -> None:
    lost, changed = np.full(RUNGS, 2), np.full(RUNGS, 5)
    found = climb_down(pipeline(template, lost, changed), TOLERANCE, "macs").report.certificate
    assert found.drop_bound == 0.05 > clopper_pearson_upper(2, N, 0.9)
    assert found.disagreement_bound == clopper_pearson_upper(5, N, 1 - 0.1 / RUNGS)


@pytest.mark.parametrize(("termination", "advice"), [("optimal", "hold more data out"), ("time_limit", "cut short")])
def test_a_failure_says_whether_the_search_was_cut_short(template: PruneResult, termination: str, advice: str) -> None:
    solution = dataclasses.replace(template.report.solution, termination=termination)
    stopped = dataclasses.replace(template, report=dataclasses.replace(template.report, solution=solution))
    many = np.full(RUNGS, 100)
    with pytest.raises(InfeasibleError, match=advice):
        climb_down(pipeline(stopped, many, many), TOLERANCE, "macs")
