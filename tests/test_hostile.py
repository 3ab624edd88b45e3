"""Networks that surprise: each prunes with masks equal to surgery, or says what is pinned or refused, and why."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mipprune as mp
from mipprune.errors import TraceError
from mipprune.surgery import PrunePlan
from mipprune.testing.counting import counted_costs


class CalledTwice(nn.Module):
    """One layer in two residual branches."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.mix, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inp(x))
        x = F.relu(x + self.mix(x))
        return self.out(x + self.mix(x))


class Indexed(nn.Sequential):
    """A container whose forward picks its members."""

    def forward(self, x: Tensor) -> Tensor:
        return self[2](F.relu(self[0](x)) + self[1](x))


class WeightsByHand(nn.Module):
    """Modules that are never called; their weights are, and one of them transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(6, 8), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.linear(x, self.inp.weight, self.inp.bias))
        return F.linear(F.linear(x, self.inp.weight.t()), self.out.weight, self.out.bias)


class NormByHand(nn.Module):
    """Batch-norm as a functional with buffers of one's own, and written out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 5, 3), nn.Conv2d(5, 4, 1), nn.Linear(4, 2)
        self.mean: Tensor
        self.var: Tensor
        self.shift: Tensor
        self.register_buffer("mean", torch.randn(5))
        self.register_buffer("var", torch.rand(5) + 0.5)
        self.register_buffer("shift", torch.randn(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.batch_norm(self.conv1(x), self.mean, self.var))
        return self.fc(F.relu((self.conv2(x) - self.shift) / torch.sqrt(self.shift**2 + 1e-5)).mean((2, 3)))


class StandardisedConv(nn.Conv2d):
    """Weight standardisation: the weight is computed from itself."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Standardised(nn.Module):
    """A computed weight between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 5, 1), StandardisedConv(5, 4, 3), nn.Conv2d(4, 6, 1)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


class Ghost(nn.Module):
    """Cheap channels from others, and no more than were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.conv = 7, nn.Conv2d(1, 4, 1)
        self.cheap, self.fc = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.fc(torch.cat([x, F.relu(self.cheap(x))], 1)[:, : self.width].mean((2, 3)))


class Cbam(nn.Module):
    """Attention over channels by their means and largest values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up, self.fc = nn.Conv2d(1, 6, 3), nn.Linear(6, 3), nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = sum(self.up(F.relu(self.down(v))) for v in (x.mean((2, 3)), x.amax((2, 3))))
        return self.fc((x * torch.sigmoid(gate)[:, :, None, None]).mean((2, 3)))


class SoftRouting(nn.Module):
    """Experts side by side in a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 8) for _ in range(3))
        self.gate, self.fc = nn.Linear(6, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)[..., None]
        return self.fc((weights * torch.stack([F.relu(e(x)) for e in self.experts], 1)).sum(1))


class Bias(nn.Module):
    """Attention with a learned slope for every head, given as a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.embed, self.qkv, self.fc = 2, nn.Linear(4, 8), nn.Linear(8, 24), nn.Linear(8, 3)
        self.slopes = nn.Parameter(torch.rand(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        distance = torch.arange(x.shape[1])[None] - torch.arange(x.shape[1])[:, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=(self.slopes * distance)[None].to(q))
        return self.fc((x + y.transpose(1, 2).flatten(2)).mean(1))


class NonLocal(nn.Module):
    """Positions of an image attend to one another; two views share a line of code."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.conv, self.out = 4, nn.Conv2d(1, 6, 1), nn.Conv2d(4, 6, 1)
        self.theta, self.phi, self.g = (nn.Conv2d(6, 4, 1) for _ in range(3))
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n = x.size(0)
        g, theta = self.g(x).view(n, self.inner, -1).mT, self.theta(x).view(n, self.inner, -1).mT
        y = torch.matmul(torch.matmul(theta, self.phi(x).view(n, self.inner, -1)).softmax(-1), g)
        return self.fc((x + self.out(y.mT.contiguous().view(n, self.inner, *x.size()[2:]))).mean((2, 3)))


class ChannelsLast(nn.Module):
    """Another memory format in between, flattened with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(1, 5, 3), nn.Conv2d(5, 6, 3), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.to(memory_format=torch.channels_last))
        return self.fc(F.relu(self.b(F.relu(x))).permute(0, 2, 3, 1).flatten(1))


VECTOR, IMAGE, TOKENS = (5, 6), (4, 1, 6, 6), (3, 5, 4)
#: network, shape of its input, sizes of its groups, words in the reasons for what is pinned
NETWORKS = [
    (CalledTwice(), VECTOR, (8,), ""),
    (Indexed(nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)), VECTOR, (8,), ""),
    (WeightsByHand(), VECTOR, (8,), "tied to values that can't be pruned"),
    (NormByHand(), IMAGE, (5, 4), ""),
    (Standardised(), IMAGE, (6,), "multiplied by a computed weight"),
    (Ghost(), IMAGE, (3, 1), ""),
    (Cbam(), IMAGE, (6, 3), ""),
    (SoftRouting(), VECTOR, (), "along different dimensions meet"),
    (Bias(), TOKENS, (), "combined elementwise with values that aren't units"),
    (NonLocal(), IMAGE, (6, 4, 4), ""),
    (ChannelsLast(), IMAGE, (5, 6), ""),
]


@pytest.mark.parametrize(("model", "shape", "groups", "reason"), [
    pytest.param(*case, marks=() if i % 4 == 0 else pytest.mark.slow, id=type(case[0]).__name__)
    for i, case in enumerate(NETWORKS)
])
def test_masks_are_surgery_or_the_reason_is_said(
    model: nn.Module, shape: tuple[int, ...], groups: tuple[int, ...], reason: str
) -> None:
    torch.manual_seed(0)
    model, x = model.eval().double(), torch.randn(shape, dtype=torch.float64)
    graph = mp.trace(model, x)
    assert tuple(g.size for g in graph.groups) == groups
    assert any(reason in p.reason for p in graph.pinned)
    rng = np.random.default_rng(0)
    for density in (0.3, 0.6, 0.9):
        kept = rng.random(graph.n_units) < density
        kept[[g.offset + int(rng.integers(g.size)) for g in graph.groups]] = True
        small = PrunePlan.from_mask(graph, kept).apply(model)
        with torch.no_grad():
            expected = graph.program.run([x], torch.from_numpy(kept).double())
            torch.testing.assert_close(small(x), expected, rtol=0, atol=1e-10)
        assert (graph.macs(kept), graph.params(kept)) == counted_costs(small, x)


class SparseRouting(nn.Module):
    """Each sample goes to one expert: shapes depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.gate = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, index = torch.zeros_like(x), self.gate(x).argmax(-1)
        for i, expert in enumerate(self.experts):
            out[index == i] = expert(x[index == i])
        return out


class Counted(nn.Module):
    """The batch size as ``len`` says it: a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.fc = nn.Parameter(torch.randn(1, 3)), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([x, self.query.expand(len(x), -1)], -1))


@pytest.mark.parametrize(("model", "words"), [(SparseRouting(), "out\\[index == i\\]"), (Counted(), "len\\(x\\)")],
                         ids=["sparse", "len"])
def test_what_depends_on_values_is_refused(model: nn.Module, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        mp.trace(model.eval(), torch.randn(3, 6))
