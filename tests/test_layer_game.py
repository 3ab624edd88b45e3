"""The game of a layer: equal to running the whole masked model, and refusing what can't be measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mipprune as mp
from mipprune.errors import DataError, ModelStateError, UnknownLayerError
from mipprune.game import LayerGame, as_data
from mipprune.testing.cases import NETWORKS, NetworkCase
from mipprune.testing.masking import masked_model

from .test_graph import cases

Example = tuple[mp.UnitGraph, torch.Tensor, torch.Tensor]


def example(case: NetworkCase, n: int = 15) -> Example:
    """A traced case in float64 with random inputs and targets."""
    x = case.inputs(n).double()
    graph = mp.trace(case.build().double(), x)
    classes = graph.program.run([x]).shape[1]
    return graph, x, torch.arange(n) % classes


def reference(graph: mp.UnitGraph, kept: np.ndarray, x: torch.Tensor, y: torch.Tensor, value: str) -> float:
    """The value by the definition, from a whole run of the masked model."""
    with torch.no_grad():
        logits, dense = masked_model(graph, kept)(x), graph.model(x)
    if value == "cross_entropy":
        return -float(F.cross_entropy(logits, y))
    if value == "accuracy":
        return float((logits.argmax(1) == y).double().mean())
    if value == "margin":
        rows = [(row[t], max(v for j, v in enumerate(row) if j != t)) for row, t in zip(logits.tolist(), y.tolist())]
        return float(np.mean([own - other for own, other in rows]))
    return -float((logits - dense).norm(dim=1).mean())


@cases
@pytest.mark.parametrize("value", ["cross_entropy", "accuracy", "margin", "logit_distance"])
def test_values_agree_with_the_reference(case: NetworkCase, value: str) -> None:
    graph, x, y = example(case)
    rng = np.random.default_rng(0)
    for group in graph.groups:
        game = LayerGame(graph, group.name, (x, y), value)
        coalitions = rng.random((5, group.size)) < 0.6
        for row, got in zip(coalitions, game.values(coalitions), strict=True):
            kept = np.ones(graph.n_units, dtype=bool)
            kept[group.units] = row
            assert got == pytest.approx(reference(graph, kept, x, y, value), abs=1e-12)
        np.testing.assert_allclose(game.sample_values(coalitions).mean(1), game.values(coalitions), atol=1e-14)


@cases
def test_float32_is_near_float64(case: NetworkCase) -> None:
    graph, x, y = example(case)
    single = mp.trace(case.build(), x.float())
    coalitions = np.random.default_rng(1).random((6, graph.groups[0].size)) < 0.5
    a = LayerGame(graph, graph.groups[0].name, (x, y)).values(coalitions)
    b = LayerGame(single, graph.groups[0].name, (x.float(), y)).values(coalitions)
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_other_layers_can_be_masked_for_good() -> None:
    graph, x, y = example(NETWORKS[1])
    rng = np.random.default_rng(2)
    base = rng.random(graph.n_units) < 0.7
    game = LayerGame(graph, "4", (x, y), kept=base)
    own = rng.random(graph.group("4").size) < 0.5
    kept = base.copy()
    kept[graph.group("4").units] = own
    assert game.value(own) == pytest.approx(reference(graph, kept, x, y, "cross_entropy"), abs=1e-12)


def test_batching_does_not_matter() -> None:
    graph, x, y = example(NETWORKS[3])
    coalitions = np.random.default_rng(3).random((23, 6)) < 0.5
    whole = LayerGame(graph, "stem.0", (x, y)).values(coalitions)
    one_by_one = LayerGame(graph, "stem.0", (x, y), batch_bytes=1).values(coalitions)
    np.testing.assert_allclose(whole, one_by_one, rtol=0, atol=1e-13)


def test_a_callable_value() -> None:
    graph, x, y = example(NETWORKS[0])
    game = LayerGame(graph, "0", (x, y), value=lambda out, target: out[:, 0].max())
    keep = np.array([True] * 5 + [False] * 4)
    kept = np.concatenate([keep, np.ones(5, dtype=bool)])
    assert game.value(keep) == pytest.approx(masked_model(graph, kept)(x)[:, 0].max().item())
    with pytest.raises(DataError, match="per-sample"):
        game.sample_values(keep[None])


def test_players_are_named_and_counted() -> None:
    graph, x, y = example(NETWORKS[0])
    game = LayerGame(graph, "3", (x, y))
    assert (game.n_players, game.player_names[4]) == (5, "3[4]")
    assert game.value_full == pytest.approx(reference(graph, np.ones(14, dtype=bool), x, y, "cross_entropy"))


def test_every_form_of_data_is_the_same() -> None:
    graph, x, y = example(NETWORKS[0])
    dataset = TensorDataset(x, y)
    forms = [(x, y), (x.numpy(), y.numpy()), [x, y], dataset, DataLoader(dataset, batch_size=4),
             [(x[:7], y[:7]), (x[7:], y[7:])], iter([(x, y)])]
    values = [LayerGame(graph, "0", form).value(np.arange(9) < 5) for form in forms]
    np.testing.assert_allclose(values, values[0], rtol=1e-14)


def bad_data(x: torch.Tensor, y: torch.Tensor) -> dict[str, tuple[object, str]]:
    nan = x.clone()
    nan[3, 0] = float("nan")
    return {
        "empty": ((x[:0], y[:0]), "empty"),
        "no batches": ([], "empty"),
        "mismatched": ((x, y[:-1]), "15 samples .* 14 targets"),
        "wrong shape": ((x[:, :4], y), "traced with"),
        "nan": ((nan, y), "1 of 15 samples"),
        "text": ("data", "pair|expected"),
        "number": (3, "expected"),
        "class too large": ((x, y + 10), r"targets lie in .* 3 classes"),
        "negative class": ((x, y - 1), "targets lie in"),
        "float targets": ((x, y.double()), "class numbers"),
        "scalar targets": ((x, torch.tensor(1)), "first dimension"),
    }


@pytest.mark.parametrize("name", bad_data(torch.zeros(15, 6), torch.zeros(15, dtype=torch.int64)))
def test_bad_data_is_named(name: str) -> None:
    graph, x, y = example(NETWORKS[0])
    data, match = bad_data(x, y)[name]
    with pytest.raises(DataError, match=match):
        LayerGame(graph, "0", data)


def test_wrong_layer_and_value() -> None:
    graph, x, y = example(NETWORKS[0])
    with pytest.raises(UnknownLayerError, match="no prunable layer 'fc9'"):
        LayerGame(graph, "fc9", (x, y))
    with pytest.raises(DataError, match="unknown value function 'acc'"):
        LayerGame(graph, "0", (x, y), "acc")


def test_coalitions_must_fit() -> None:
    graph, x, y = example(NETWORKS[0])
    game = LayerGame(graph, "0", (x, y))
    for bad in (np.ones((2, 9)), np.ones((2, 8), dtype=bool), np.ones(9, dtype=bool)):
        with pytest.raises(DataError, match="bool array of shape"):
            game.values(bad)


class Overflow(nn.Module):
    """Finite weights, infinite activations."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.exp(1e4 * self.fc1(x)))


def test_infinite_output_names_the_place() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    graph = mp.trace(Overflow().eval(), x)
    with pytest.raises(ModelStateError, match=r"aten\.exp"):
        LayerGame(graph, "fc1", (x, torch.zeros(8, dtype=torch.int64)))


def test_data_is_cast_to_the_model() -> None:
    graph, x, y = example(NETWORKS[0])
    data = as_data((x.float(), y.to(torch.int32)), graph)
    assert data.inputs[0].dtype == torch.float64
    first, second = data.split(0.2, seed=0)
    assert (len(first), len(second)) == (12, 3)
    together = torch.cat([first.inputs[0], second.inputs[0]])
    assert torch.equal(together.sort(0).values, data.inputs[0].sort(0).values)
