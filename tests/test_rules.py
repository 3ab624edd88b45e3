"""Operations one by one: which units they leave, and that what they leave can really be cut out."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import mipprune as mp
from mipprune.surgery import PrunePlan
from mipprune.testing.counting import counted_costs


class Net(nn.Module):
    """Two layers, 12 units between them, and whatever a test puts in."""

    def __init__(self, forward: Callable[..., Tensor], width: int, between: int, modules: dict[str, Any]) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(4, between), nn.Linear(width, 3)
        self.side = nn.Linear(4, between)
        self.heads, self.width, self.part = 3, between, between // 3
        for name, value in modules.items():
            setattr(self, name, value)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def net(forward: Callable[..., Tensor], width: int = 12, between: int = 12, /, **modules: Any) -> Net:
    torch.manual_seed(0)
    return Net(forward, width, between, modules).eval().double()


def check(model: nn.Module, x: Tensor) -> mp.UnitGraph:
    """Trace, and hold masks against surgery and costs against torch's counter on random plans."""
    graph = mp.trace(model, x[:1])
    rng = np.random.default_rng(0)
    for density in (0.3, 0.6, 0.9):
        kept = rng.random(graph.n_units) < density
        kept[[g.offset + int(rng.integers(g.size)) for g in graph.groups]] = True
        small = PrunePlan.from_mask(graph, kept).apply(model)
        gates = torch.from_numpy(kept).double()
        with torch.no_grad():
            torch.testing.assert_close(graph.program.run([x], gates), small(x), rtol=0, atol=1e-11)
            each = graph.program.run([x], gates.repeat(len(x), 1))
            torch.testing.assert_close(each, small(x), rtol=0, atol=1e-11)
        assert (graph.macs(kept), graph.params(kept)) == counted_costs(small, x)
    return graph


def image(m: Net, x: Tensor) -> Tensor:
    """The 12 units as channels of a 2x2 image."""
    return m.inp(x)[:, :, None, None] * torch.ones(1, 1, 2, 2, dtype=x.dtype)


def tokens(m: Net, x: Tensor) -> Tensor:
    """The 12 units as features of 3 tokens."""
    return m.inp(x)[:, None] * torch.arange(1.0, 4, dtype=x.dtype)[:, None]


def flat(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def ln(m: Net, x: Tensor) -> Tensor:
    h = m.inp(x)
    return m.out((h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt())


PRUNABLE: dict[str, tuple[Net, tuple[int, ...]]] = {
    # moves
    "flip": (net(lambda m, x: m.out(m.inp(x).flip(1))), (12,)),
    "roll over positions": (net(lambda m, x: m.out(tokens(m, x).roll(1, 1).sum(1))), (12,)),
    "roll over units: the last stay": (net(lambda m, x: m.out(m.inp(x).roll(2, 1))), (10,)),
    "view by an attribute": (net(lambda m, x: m.out(m.inp(x).view(-1, m.heads, 4).flatten(1))), (3,)),
    "view by another attribute": (net(lambda m, x: m.out(m.inp(x).view(-1, 3, m.part).flatten(1))), (4,)),
    "view with -1": (net(lambda m, x: m.out(m.inp(x).view(x.shape[0], -1, 4).flatten(1))), (3,)),
    "view by arithmetic on sizes": (
        net(lambda m, x: m.out((h := m.inp(x)).view(-1, 3, h.shape[1] // 3).flatten(1))), (4,)),
    "view with two sizes alike": (
        net(lambda m, x: m.out(m.inp(x).view(-1, m.part, m.heads).flatten(1)), 12, 12, part=4), (4,)),
    "unflatten": (net(lambda m, x: m.out(m.inp(x).unflatten(1, (m.heads, 4)).transpose(1, 2).flatten(1))), (3,)),
    "chunk": (net(lambda m, x: m.out(torch.cat(m.inp(x).chunk(2, 1)[::-1], 1))), (6,)),
    "split by an attribute": (net(lambda m, x: m.out(torch.cat(m.inp(x).split(m.part, 1), 1))), (4,)),
    "split into parts of their own": (
        net(lambda m, x: m.out(torch.cat(m.inp(x).split([m.part, m.width], 1), 1)), 12, 12, part=5, width=7), (5, 7)),
    "slice by an attribute": (net(lambda m, x: m.out(m.inp(x)[:, : m.part]), 4, 12, part=4), (4,)),
    "stack": (net(lambda m, x: m.out(torch.stack([m.inp(x), m.side(x)], 1).sum(1))), (12,)),
    "stack behind": (net(lambda m, x: m.out(torch.stack([m.inp(x), m.side(x)], -1).amax(-1))), (12,)),
    "cat of both": (net(lambda m, x: m.out(torch.cat([m.inp(x), m.side(x)], 1)), 24), (12, 12)),
    "cat of tokens": (
        net(lambda m, x: m.out(torch.cat([m.cls.expand(x.shape[0], -1, -1), tokens(m, x)], 1).sum(1)),
            cls=nn.Parameter(torch.randn(1, 1, 12))), (12,)),
    "expand_as": (net(lambda m, x: m.out(m.inp(x) * m.g.expand_as(m.inp(x))), g=nn.Parameter(torch.randn(12))), (12,)),
    "repeat": (net(lambda m, x: m.out(m.inp(x).repeat(1, 2)), 24), (12,)),
    "repeat_interleave": (net(lambda m, x: m.out(m.inp(x).repeat_interleave(2, 1)), 24), (12,)),
    "index over positions": (net(lambda m, x: m.out(tokens(m, x)[:, torch.tensor([0, 2])].sum(1))), (12,)),
    "a table by index": (
        net(lambda m, x: m.out(m.inp(x) * m.table[torch.tensor([2])]), table=nn.Parameter(torch.randn(3, 12))), (12,)),
    "the smaller of two": (net(lambda m, x: m.out(torch.min(m.inp(x), m.side(x)))), (12,)),
    "a symbolic size divided": (
        net(lambda m, x: m.out(m.inp(x).repeat(m.part, 1)[: x.shape[0] * m.part // m.part])), (12,)),
    "a broadcast value viewed": (
        net(lambda m, x: m.out((m.inp(x)[:, None].expand(-1, 3, -1) + 0).view(x.shape[0], 3, -1).sum(1))), (12,)),
    "one position": (net(lambda m, x: m.out(tokens(m, x)[:, -1])), (12,)),
    "pad with zeros along units": (net(lambda m, x: m.out(F.pad(m.inp(x), (2, 1))), 15), (12,)),
    "pad positions": (net(lambda m, x: m.out(flat(F.pad(image(m, x), (1, 1, 1, 1), mode="reflect")))), (12,)),
    "pixel shuffle": (net(lambda m, x: m.out(flat(F.pixel_shuffle(image(m, x), 2))), 3), (3,)),
    "channel shuffle": (net(lambda m, x: m.out(flat(F.channel_shuffle(image(m, x), 3)))), (4,)),
    "interpolate": (net(lambda m, x: m.out(flat(F.interpolate(image(m, x), scale_factor=2.0, mode="bicubic")))), (12,)),
    "adaptive pooling": (net(lambda m, x: m.out(F.adaptive_max_pool2d(image(m, x), 1).flatten(1))), (12,)),
    # elementwise
    "residual": (net(lambda m, x: m.out(m.inp(x) - m.side(x))), (12,)),
    "gate": (net(lambda m, x: m.out(m.inp(x) / (1 + m.side(x).exp()))), (12,)),
    "glu": (net(lambda m, x: m.out(F.glu(m.inp(x))), 6), (6,)),
    "where": (net(lambda m, x: m.out(torch.where(m.inp(x) > 0, m.side(x), 0.1))), (12,)),
    "a free parameter": (net(lambda m, x: m.out(m.inp(x) * m.g[None]), g=nn.Parameter(torch.randn(12))), (12,)),
    "a function of a parameter": (
        net(lambda m, x: m.out(m.inp(x) * m.g.exp().neg()), g=nn.Parameter(torch.randn(12))), (12,)),
    "a single number": (net(lambda m, x: m.out(m.inp(x) * m.g), g=nn.Parameter(torch.randn(1))), (12,)),
    "a scalar": (net(lambda m, x: m.out(m.inp(x) * m.g), g=nn.Parameter(torch.tensor(2.0))), (12,)),
    "per position": (net(lambda m, x: m.out((tokens(m, x) + m.g).sum(1)), g=nn.Parameter(torch.randn(3, 1))), (12,)),
    "zeros_like": (net(lambda m, x: m.out(torch.maximum(m.inp(x), torch.zeros_like(m.inp(x))))), (12,)),
    # reductions over units: masked entries are left out
    "layer-norm by hand": (net(ln), (12,)),
    "mean over units": (net(lambda m, x: m.out(m.inp(x) - m.side(x).mean(-1, keepdim=True))), (12, 12)),
    "sum over units": (net(lambda m, x: m.out(m.inp(x) * m.side(x).pow(2).sum(-1, keepdim=True))), (12, 12)),
    "standard deviation": (net(lambda m, x: m.out(m.inp(x) / (1 + m.side(x).std(-1, keepdim=True)))), (12, 12)),
    "unit length": (net(lambda m, x: m.out(F.normalize(m.inp(x), dim=-1))), (12,)),
    "softmax over units": (net(lambda m, x: m.out(m.inp(x).softmax(-1))), (12,)),
    "cumulative sum over units": (net(lambda m, x: m.out(m.inp(x).cumsum(1))), (12,)),
    "layer-norm": (net(lambda m, x: m.out(F.layer_norm(m.inp(x), (m.width,)))), (12,)),
    "layer-norm by its weight's shape": (
        net(lambda m, x: m.out(F.layer_norm((h := m.inp(x)), h.shape[-1:], m.g)), g=nn.Parameter(torch.randn(12))),
        (12,)),
    "rms-norm": (net(lambda m, x: m.out(m.norm(m.inp(x))), norm=nn.RMSNorm(12)), (12,)),
    # products
    "a free matrix": (net(lambda m, x: m.out(m.inp(x) @ m.w), w=nn.Parameter(torch.randn(12, 12))), (12, 12)),
    "a transposed free matrix": (
        net(lambda m, x: m.out(m.inp(x) @ m.w.t()), w=nn.Parameter(torch.randn(12, 12))), (12, 12)),
    "a free matrix on the left": (
        net(lambda m, x: m.out((m.w @ m.inp(x)[:, :, None])[:, :, 0]), w=nn.Parameter(torch.randn(12, 12))), (12, 12)),
    "einsum with a matrix": (
        net(lambda m, x: m.out(torch.einsum("bi,ij->bj", m.inp(x), m.w)), w=nn.Parameter(torch.randn(12, 12))),
        (12, 12)),
    "scores": (net(lambda m, x: m.out(m.inp(x) * (tokens(m, x) @ tokens(m, x).mT).sum((1, 2))[:, None])), (12,)),
    "attention without heads": (
        net(lambda m, x: m.out(F.scaled_dot_product_attention(tokens(m, x), m.side(x)[:, None], m.v(x)[:, None],
                                                              scale=0.3).sum(1)), v=nn.Linear(4, 12)), (12, 12)),
    "bilinear weights of attention": (
        net(lambda m, x: m.out((tokens(m, x).mT @ torch.ones(3, 1, dtype=x.dtype))[:, :, 0])), (12,)),
}


@pytest.mark.parametrize("name", PRUNABLE)
def test_units_survive(name: str) -> None:
    model, sizes = PRUNABLE[name]
    graph = check(model, torch.randn(5, 4, dtype=torch.float64))
    assert tuple(g.size for g in graph.groups) == sizes, graph


PINNED: dict[str, tuple[Net, str]] = {
    "a literal view": (net(lambda m, x: m.out(m.inp(x).view(-1, 3, 4).flatten(1))), "literal size"),
    "a product of attributes": (net(lambda m, x: m.out(m.inp(x).view(-1, m.heads * m.part))), "computed from"),
    "a literal slice": (net(lambda m, x: m.out(m.inp(x)[:, :5]), 5), "literal size 5"),
    "the last units": (net(lambda m, x: m.out(m.inp(x)[:, -5:]), 5), "last units"),
    "every other unit": (net(lambda m, x: m.out(m.inp(x)[:, ::2]), 6), "every other"),
    "a literal split": (net(lambda m, x: m.out(torch.cat(m.inp(x).split(4, 1), 1))), "literal size 4"),
    "one unit by number": (net(lambda m, x: m.out(m.inp(x) * m.inp(x)[:, 3:4].unbind(1)[0][:, None])), "literal"),
    "units by index": (net(lambda m, x: m.out(m.inp(x)[:, torch.tensor([0, 2, 5])]), 3), "by index"),
    "an attribute used as a number": (
        net(lambda m, x: m.out(m.inp(x).view(-1, m.heads, 4).flatten(1) / m.heads**0.5)), "used as a number"),
    "a size used as a number": (net(lambda m, x: m.out((h := m.inp(x)) / h.shape[1])), "would be wrong after pruning"),
    "an attribute that multiplies": (net(lambda m, x: m.out(F.layer_norm(m.inp(x), (m.width,)) * m.width)),
                                     "two values"),
    "a computed weight": (net(lambda m, x: m.out(F.linear(m.inp(x), m.w * m.w)), w=nn.Parameter(torch.randn(12, 12))),
                          "computed weight"),
    "maximum over units": (net(lambda m, x: m.out(m.inp(x) * m.inp(x).amax(1, keepdim=True))), "compared"),
    "default scale": (
        net(lambda m, x: m.out(F.scaled_dot_product_attention(tokens(m, x), tokens(m, x), torch.ones(
            1, 3, 12, dtype=x.dtype).expand(x.shape[0], -1, -1)).sum(1))), "scale"),
    "a buffer of noise": (net(lambda m, x: m.out(m.inp(x) + torch.arange(12.0, dtype=x.dtype))), "aren't units"),
    "a weight that is also looked at": (
        net(lambda m, x: m.out(m.inp(x)) * m.inp.weight.amax(0).sum()), "also read in a way"),
    "a weight that is also a table": (
        net(lambda m, x: m.out(m.inp(x) * F.embedding(torch.zeros(1, dtype=torch.int64), m.inp.weight).sum())),
        "also read in a way"),
    "units along two dimensions": (net(lambda m, x: m.out((m.inp(x)[:, :, None] * m.side(x)[:, None]).sum(1))),
                                   "different dimensions"),
}


@pytest.mark.parametrize("name", PINNED)
def test_pinned_with_the_reason(name: str) -> None:
    model, reason = PINNED[name]
    graph = check(model, torch.randn(5, 4, dtype=torch.float64))
    reasons = [p.reason for p in graph.pinned if p.module in ("inp", "side")]
    assert any(reason in r for r in reasons), graph


def _weight_norm(layer: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(layer)


def _spectral_norm(layer: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(layer)


def _unstructured(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize("parametrize", [_weight_norm, _spectral_norm, _unstructured])
def test_layers_with_computed_weights_are_listed(parametrize: Callable[[nn.Module], nn.Module]) -> None:
    """The layer stays, and so does what it reads; layers around it are pruned all the same."""
    torch.manual_seed(0)
    middle = parametrize(nn.Linear(6, 5))
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), middle, nn.ReLU(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    graph = check(model.double().eval(), torch.randn(5, 4, dtype=torch.float64))
    assert [g.name for g in graph.groups] == ["4"]
    assert {p.module: p.n_units for p in graph.pinned} == {"0": 6, "2": 5, "6": 3}
    assert all(p.reason for p in graph.pinned)


def test_two_computed_weights_of_one_module_are_counted_together() -> None:
    model = net(lambda m, x: m.out(F.linear(F.linear(m.inp(x), m.w * m.w), m.v * m.v)),
                w=nn.Parameter(torch.randn(5, 12)), v=nn.Parameter(torch.randn(12, 5)))
    listed = [p for p in check(model, torch.randn(5, 4, dtype=torch.float64)).pinned if not p.module]
    assert sum(p.n_units for p in listed) == 17
    assert "multiplied by a computed weight (" in listed[0].reason  # no parametrization that could be removed


WRAPPED: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": torch.nn.utils.weight_norm,
    "old spectral_norm": torch.nn.utils.spectral_norm,
    "mask": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_the_line_that_frees_a_computed_weight_does(wrap: Callable[[nn.Linear], nn.Module]) -> None:
    """The reason names a call; after that very call the layers prune."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(wrap(nn.Linear(4, 6))), nn.ReLU(), wrap(nn.Linear(6, 5)), nn.ReLU(),
                          nn.Linear(5, 2)).double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    graph = mp.trace(model, x)
    assert not graph.groups
    calls = {found[1] for p in graph.pinned if (found := re.search(r"call (.*\)) first", p.reason))}
    assert len(calls) == 2
    with torch.no_grad():
        before = model(x)
        for call in calls:
            eval(call, {"torch": torch, "model": model})
        torch.testing.assert_close(model(x), before, rtol=0, atol=1e-10)
    freed = check(model, x)
    assert [g.size for g in freed.groups] == [6, 5]


def test_cells_keep_their_sizes_in_step() -> None:
    """nn.GRUCell has no rule of sizes in torch: input_size and hidden_size follow the weights."""
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.cell, self.out = nn.Linear(4, 6), nn.GRUCell(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.cell(self.inp(x), self.cell(self.inp(x))))

    torch.manual_seed(0)
    model = Loop().double().eval()
    graph = check(model, torch.randn(5, 4, dtype=torch.float64))
    kept = np.ones(graph.n_units, dtype=bool)
    kept[[graph.group("inp").offset, graph.group("cell").offset, graph.group("cell").offset + 1]] = False
    small = PrunePlan.from_mask(graph, kept).apply(model)
    assert (small.cell.input_size, small.cell.hidden_size) == (5, 3)


class ViewedHeads(nn.Module):
    """Heads cut out with ``width // heads``, where the width is the residual stream's, as many transformers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.inp, self.qkv, self.proj = nn.Linear(4, 12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.up, self.down, self.out = nn.Linear(12, 7), nn.Linear(7, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        b, n, width = x.shape
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (t.reshape(b, n, self.heads, width // self.heads).transpose(1, 2) for t in parts)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))
        return self.out(x + self.down(F.relu(self.up(x)))).mean(1)


def test_a_quotient_of_two_widths_that_leave_apart_pins_both() -> None:
    torch.manual_seed(0)
    graph = check(ViewedHeads().double().eval(), torch.randn(5, 6, 4, dtype=torch.float64))
    assert [(g.name, g.size) for g in graph.groups] == [("up", 7)]
    reason = next(p.reason for p in graph.pinned if p.module == "qkv")
    assert "// heads would be wrong after pruning; use -1, or an attribute of its own" in reason
