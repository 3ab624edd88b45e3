"""Never silent: frozen, tied, unused and free parameters, untaken branches, time limits, ignored modules."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mipprune as mp
from mipprune.errors import PlanError, TraceError
from mipprune.graph import Context, Value, register_rule
from mipprune.graph.attention_module import PrunableMultiheadAttention
from mipprune.graph.registry import RULES
from mipprune.surgery import PrunePlan
from mipprune.testing.architectures.sequence import Attention, Recurrent, TorchEncoder

X = torch.randn(3, 4, dtype=torch.float64)


def half(graph: mp.UnitGraph) -> np.ndarray:
    """Every other unit, and the first of each group."""
    kept = np.arange(graph.n_units) % 2 == 0
    kept[[g.offset for g in graph.groups]] = True
    return kept


def test_frozen_parameters_are_cut_and_stay_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double().eval()
    model[0].requires_grad_(False)
    graph = mp.trace(model, X)
    small = PrunePlan.from_mask(graph, half(graph)).apply(model)
    assert small[0].weight.shape == (3, 4)
    assert [p.requires_grad for p in small.parameters()] == [False, False, True, True]
    assert torch.allclose(small(X), graph.program.run([X], torch.from_numpy(half(graph)).double()))


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        return self.head(h + torch.tanh(self.mix(h)))


def test_tied_embeddings_stay_tied() -> None:
    torch.manual_seed(0)
    model, x = TiedEmbedding().double().eval(), torch.randint(0, 9, (4, 5))
    graph = mp.trace(model, x)
    assert [g.size for g in graph.groups] == [6]
    small = PrunePlan.from_mask(graph, half(graph)).apply(model)
    assert small.head.weight is small.table.weight
    assert small.table.weight.shape == (9, 3)
    assert small.table.embedding_dim == 3
    assert torch.allclose(small(x), graph.program.run([x], torch.from_numpy(half(graph)).double()))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.extra, self.out = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.use_extra = False
        self.spare = nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.out(self.extra(x) if self.use_extra else x)


def test_untaken_branches_and_unused_parameters_are_listed() -> None:
    graph = mp.trace(Branching().eval(), X.float())
    listed = {p.module: p for p in graph.pinned}
    assert "doesn't use" in listed["extra"].reason
    assert listed["extra"].n_units == 6
    assert "doesn't use" in listed[""].reason  # the model's own spare parameter
    assert [g.name for g in graph.groups] == ["inp"]


def test_the_time_limit_names_where_tracing_was() -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.tracing = False

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(100_000 if torch.compiler.is_exporting() else 1):
                x = self.fc(x)
            return x

    start = time.monotonic()
    with pytest.raises(TraceError, match=r"time_limit.*linear.*test_coverage_edges\.py"):
        mp.trace(Slow().eval(), X.float(), time_limit=1.0)
    assert time.monotonic() - start < 60


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(torch.tanh(self.fc(x)) * 0.9)


def test_a_module_with_an_unknown_operation_can_be_ignored() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), Odd(), nn.Linear(6, 7), nn.ReLU(),
                          nn.Linear(7, 2)).double().eval()
    with pytest.raises(TraceError, match=r"ignore=\['3'\]"):
        mp.trace(model, X)
    graph = mp.trace(model, X, ignore=["3"])
    assert [g.name for g in graph.groups] == ["0", "2", "4"]
    assert "erfinv" in next(p.reason for p in graph.pinned if p.module == "3.fc")
    small = PrunePlan.from_mask(graph, half(graph)).apply(model)
    assert torch.allclose(small(X), graph.program.run([X], torch.from_numpy(half(graph)).double()))


def test_prune_hands_on_what_to_ignore() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), Odd(), nn.Linear(6, 2)).eval()
    x = torch.randn(40, 4)
    settings = {"budget": mp.Units(0.5), "stages": 1, "repair": (), "progress": False}
    with pytest.raises(TraceError, match="ignore="):
        mp.prune(model, (x, (x[:, 0] > 0).long()), **settings)
    result = mp.prune(model, (x, (x[:, 0] > 0).long()), ignore=["3"], **settings)
    assert len(result.model[0].weight) + len(result.model[2].weight) <= 7
    assert len(result.model[3].fc.weight) == 6


@pytest.mark.parametrize("mask", ["none", "bool", "float", "padding"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_our_attention_is_torchs(mask: str, batch_first: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(8, 2, batch_first=batch_first).double().eval()
    ours = PrunableMultiheadAttention(theirs)
    q, kv = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(3, 5, 8, dtype=torch.float64)
    if not batch_first:
        q, kv = q.transpose(0, 1), kv.transpose(0, 1)
    settings: dict[str, Tensor] = {}
    if mask == "bool":
        settings["attn_mask"] = torch.ones(5, 5, dtype=torch.bool).triu(1)
    elif mask == "float":
        settings["attn_mask"] = torch.randn(6, 5, 5, dtype=torch.float64)
    elif mask == "padding":
        settings["key_padding_mask"] = torch.tensor([[False] * 4 + [True]] * 3)
    for inputs in ((q, q, q), (q, kv, kv)):
        for weights in (True, False):
            expected, found = (m(*inputs, need_weights=weights, **settings) for m in (theirs, ours))
            torch.testing.assert_close(found[0], expected[0])
            if weights:
                torch.testing.assert_close(found[1], expected[1])
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_attention_with_widths_of_its_own() -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(8, 2, kdim=3, vdim=5, batch_first=True).double().eval()
    inputs = [torch.randn(2, 4, d, dtype=torch.float64) for d in (8, 3, 5)]
    torch.testing.assert_close(PrunableMultiheadAttention(theirs)(*inputs), theirs(*inputs))


def test_only_cut_attentions_are_replaced() -> None:
    model, x = TorchEncoder().eval(), torch.randn(2, 5, 4)
    graph = mp.trace(model, x)
    kept = np.ones(graph.n_units, dtype=bool)
    kept[graph.group("encoder.layers.1.self_attn").offset] = False
    small = PrunePlan.from_mask(graph, kept).apply(model)
    first, second = (layer.self_attn for layer in small.encoder.layers)
    assert type(first) is nn.MultiheadAttention
    assert type(second) is PrunableMultiheadAttention
    assert (second.num_heads, second.in_proj_weight.shape) == (1, (12, 8))
    assert list(small.state_dict()) == list(model.state_dict())


def test_attributes_follow_heads_and_hidden_units() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.rnn, self.out = Attention(8, 4), nn.LSTM(8, 5, 2, bidirectional=True), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn((x + self.attention(x)).transpose(0, 1))[0][-1])

    torch.manual_seed(0)
    model, x = Model().double().eval(), torch.randn(3, 6, 8, dtype=torch.float64)
    graph = mp.trace(model, x)
    assert [g.size for g in graph.groups] == [4, 5]
    kept = half(graph)
    plan = PrunePlan.from_mask(graph, kept)
    small = plan.apply(model)
    assert (small.attention.num_heads, small.attention.head_dim) == (2, 2)
    assert (small.rnn.hidden_size, small.rnn.input_size) == (3, 8)
    assert torch.allclose(small(x), graph.program.run([x], torch.from_numpy(kept).double()))
    with pytest.raises(PlanError, match="dense"):
        plan.apply(small)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_masked_recurrence_is_torchs_when_everything_is_kept(kind: type[nn.RNNBase], settings: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Recurrent(lambda *a, **k: kind(*a, **k, **settings))).double().eval()
    model[0].head = nn.Linear(12 if "num_layers" in settings else 6, 4).double()
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    graph = mp.trace(model, x)
    ones = torch.ones(graph.n_units, dtype=torch.float64)
    assert torch.allclose(graph.program.run([x], ones), model(x))
    kept = half(graph)
    small = PrunePlan.from_mask(graph, kept).apply(model)
    assert torch.allclose(graph.program.run([x], torch.from_numpy(kept).double()), small(x))


def test_a_rule_for_an_operation_of_ones_own() -> None:
    """As in docs/extending/operation.md."""

    @torch.library.custom_op("mylib::scaled_linear", mutates_args=())
    def scaled_linear(x: Tensor, weight: Tensor, scale: float) -> Tensor:
        return F.linear(x, weight) * scale

    @scaled_linear.register_fake
    def _(x: Tensor, weight: Tensor, scale: float) -> Tensor:
        return x.new_empty(*x.shape[:-1], len(weight))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.mid, self.out = nn.Linear(4, 6), nn.Linear(6, 5, bias=False), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(scaled_linear(F.relu(self.inp(x)), self.mid.weight, 0.5))

    @register_rule("mylib.scaled_linear.default")
    def rule(context: Context, x: Value, weight: Value, scale: float) -> Tensor:
        rows = context.contract(x, x.labels.ndim - 1, weight, 1, 0, factor=math.prod(context.shape[:-1]))
        return context.spread(rows, len(context.shape) - 1, context.shape)

    try:
        torch.manual_seed(0)
        model = Model().double().eval()
        graph = mp.trace(model, X)
        assert [g.size for g in graph.groups] == [6, 5]
        kept = half(graph)
        small = PrunePlan.from_mask(graph, kept).apply(model)
        assert small.mid.weight.shape == (3, 3)
        assert torch.allclose(small(X), graph.program.run([X], torch.from_numpy(kept).double()))
        assert graph.macs() == 4 * 6 + 6 * 5 + 5 * 2
    finally:
        RULES.pop("mylib.scaled_linear.default", None)


def test_recurrence_with_projections_is_left_alone_with_the_reason() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.rnn, self.out = nn.Linear(4, 5), nn.LSTM(5, 6, proj_size=3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(F.relu(self.embed(x)).transpose(0, 1))[0][-1])

    graph = mp.trace(Projected().eval(), torch.randn(2, 5, 4))
    assert not graph.groups
    assert "projections" in next(p.reason for p in graph.pinned if p.module == "embed")
