"""What makes refits cheap changes nothing, or says by how much: rows, ridges, networks built once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mipprune as mp
from mipprune.game import as_data
from mipprune.pruning.measure import measure
from mipprune.pruning.oracle import RefitOracle, softened_divergence
from mipprune.pruning.repairing import Repairer
from mipprune.pruning.search import Searcher
from mipprune.repair import CutNetwork, DenseRun, refit_cut
from mipprune.repair.dense import PLENTY


class Convolutions(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.last = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.b(self.a(x).relu()).relu().mean((2, 3)))


@pytest.fixture
def convolutions() -> Any:
    """A trained-like network, smooth images (neighbouring positions alike) and half of each layer's channels."""
    torch.manual_seed(0)
    model = Convolutions().eval()
    x = F.avg_pool2d(torch.randn(400, 1, 10, 10), 3, 1)
    graph = mp.trace(model, x[:1])
    kept = np.ones(graph.n_units, dtype=bool)
    kept[::2] = False
    return model, graph, as_data((x, model(x).argmax(1)), graph), kept


def seen(dense: DenseRun, name: str) -> torch.Tensor:
    """How often every sample (rows) and position (columns) of a layer is looked at."""
    layer = dense.layers[name]
    shape = dense.targets[0][name].shape
    count = torch.zeros(len(dense.data), shape[2:].numel(), dtype=torch.int64)
    begin = 0
    for batch, size in enumerate(dense.sizes):
        numbers = torch.arange(size * count.shape[1]).reshape(size, 1, *shape[2:])
        for rows in dense.rows(layer, dense.graph.program.dense_tensors()[layer.weight][0].numel(), batch):
            chosen = layer.on_grid(numbers[rows[0]], rows[1]).flatten()
            count.view(-1)[begin * count.shape[1] + chosen] += 1
        begin += size
    return count


@pytest.mark.parametrize("batch_size", [64, 1000])
def test_positions_are_left_out_long_before_samples(convolutions: Any, batch_size: int) -> None:
    _, graph, data, _ = convolutions
    first, second, last = (layer.node.name for layer in DenseRun(graph, data).layers.values())
    everything = DenseRun(graph, data, batch_size)
    assert (seen(everything, first) == 1).all()
    some = DenseRun(graph, data, batch_size, enough=200)  # 400 * 64 positions: a quarter are 711 rows for 9 columns
    count = seen(some, first)
    assert set(count.unique().tolist()) == {0, 1}
    assert (count.sum(1) == 16).all()  # a quarter of every sample
    assert (count.sum(0) > 0).all()  # and every position of some
    starts = [some.rows(some.layers[first], 9, batch)[0][1] for batch in range(len(some.sizes))]
    assert len(set(starts)) == min(len(starts), 4)  # a part of the batch has other positions in the next one
    assert (seen(some, second) == 1).all()  # a quarter would be 178 rows for each of 36 columns
    few = DenseRun(graph, data, batch_size, enough=4)
    assert few.rows(few.layers[last], 6, 0) == [(slice(0, few.sizes[0]), None)]  # 67 rows a column of 4 * PLENTY
    count = seen(few, first)
    assert 9 * 4 * PLENTY <= count.sum() <= 2.5 * 9 * 4 * PLENTY


def test_a_quarter_of_the_positions_refits_nearly_as_well(convolutions: Any) -> None:
    model, graph, data, kept = convolutions
    errors = []
    for enough in (None, 50):
        cut = CutNetwork(graph, kept)
        refit_cut(cut, DenseRun(graph, data, enough=enough))
        errors.append(float((cut.run(data.inputs) - model(*data.inputs)).square().mean()))
    cut = CutNetwork(graph, kept)
    assert errors[1] < 1.1 * errors[0] < 0.2 * float((cut.run(data.inputs) - model(*data.inputs)).square().mean())


def test_settled_ridges_are_those_of_cross_validation_and_others_judge_alike(convolutions: Any) -> None:
    _, graph, data, kept = convolutions
    free, settled = RefitOracle(graph, data, None, head=True), RefitOracle(graph, data, None, head=True)
    settled(np.ones(graph.n_units, dtype=bool))
    settled.settle(kept)
    assert set(settled.ridges) == set(settled.fit.layers) - {next(iter(settled.fit.layers))}  # all that read fewer
    assert settled(kept) == free(kept)
    rng = np.random.default_rng(0)
    for _ in range(6):
        other = rng.permutation(kept)
        again = RefitOracle(graph, data, None, head=True, ridges=settled.ridges)
        assert settled(other) == pytest.approx(again(other), rel=1e-9)  # whatever was judged before
        assert settled(other) == pytest.approx(free(other), rel=0.3)


def test_every_step_tells_the_divergence_of_the_network_it_made(convolutions: Any) -> None:
    model, graph, data, kept = convolutions
    small, steps = Repairer(graph, data, data, ("refit",)).deploy(kept)
    assert [(step.name, step.taken) for step in steps] == [("cut", True), ("refit", True)]
    assert steps[1].divergence == pytest.approx(softened_divergence(model(*data.inputs), small(*data.inputs)))
    assert steps[0].divergence > steps[1].divergence > 0


def test_the_chosen_network_is_built_once(convolutions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, data, _ = convolutions
    built: list[bytes] = []
    deploy = Repairer.deploy

    def counted(self: Repairer, kept: np.ndarray, *rest: Any, **more: Any) -> Any:
        built.append(kept.tobytes())
        return deploy(self, kept, *rest, **more)

    monkeypatch.setattr(Repairer, "deploy", counted)
    seen = (*data.inputs, data.targets)
    result = mp.prune(model, seen, budget=mp.Macs(0.4), validation=seen, progress=False)
    report = result.report
    assert built.count(result.kept.tobytes()) == 1
    assert [s for s in report.repairs if s.taken][-1].loss == pytest.approx(measure(result.model, data).loss)
    assert report.divergence == [s for s in report.repairs if s.taken and s.name != "head"][-1].divergence


@pytest.mark.parametrize("options", [
    {"budget": mp.Macs(0.4)}, {"budget": mp.Macs(0.4), "repair": ()}, {"tolerance": mp.LossIncrease(0.02)},
], ids=["refitted", "as cut", "tolerance"])
def test_more_effort_looks_at_more_networks(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(150, 10)
    looked: list[str] = []
    for kind, name in ((RefitOracle, "losses"), (Searcher, "truth")):
        original = getattr(kind, name)

        def spy(self: Any, kept: np.ndarray, *, original: Any = original, name: str = name) -> Any:
            looked.append(name)
            return original(self, kept)

        monkeypatch.setattr(kind, name, spy)
    found = []
    for effort in (0.1, 4.0):
        looked.clear()
        mp.prune(model, (x, model(x).argmax(1)), progress=False, effort=effort, **options)
        found.append(len(looked))
    assert found[1] > 1.3 * found[0]
