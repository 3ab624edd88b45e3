"""The diagnosis resumes the dense network where a mask first acts: the same as running it whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mipprune as mp
from mipprune.curvature.output_metric import ENOUGH
from mipprune.game import LabelledData
from mipprune.pruning.diagnosis import BATCH, diagnose
from mipprune.testing.cases import NETWORKS, NetworkCase


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_each_mask_alone(case: NetworkCase) -> None:
    n = BATCH + 3
    model, x = case.build(), case.inputs(n)
    graph = mp.trace(model, x[:2])
    with torch.no_grad():
        data = LabelledData((x,), torch.arange(n) % graph.program.run([x]).shape[1])
    kept = np.random.default_rng(0).random(graph.n_units) < 0.6
    kept[graph.groups[-1].units] = True
    found = diagnose(graph, kept, data)
    for number, group in enumerate(graph.groups):
        gates = torch.ones(graph.n_units)
        gates[group.units] = torch.from_numpy(kept[group.units].copy()).float()
        with torch.no_grad():
            logits = graph.program.run([x], gates).double()
        assert found.loss[number] == pytest.approx(float(F.cross_entropy(logits, data.targets)), rel=1e-4)
        assert found.accuracy[number] == pytest.approx(float((logits.argmax(1) == data.targets).double().mean()))


def test_many_samples_are_thinned_out_evenly() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)).eval()
    x = torch.randn(2 * ENOUGH, 4)
    y = torch.arange(2 * ENOUGH) // ENOUGH  # sorted by class
    graph = mp.trace(model, x[:2])
    kept = np.ones(graph.n_units, dtype=bool)
    right = (model(x).argmax(1) == y).double()
    assert diagnose(graph, kept, LabelledData((x,), y)).accuracy[0] == pytest.approx(float(right.mean()), abs=0.08)
