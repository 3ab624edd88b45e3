"""Transformers, mixers and recurrent networks in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cases import NetworkCase

__all__ = ["SEQUENCE"]


class Attention(nn.Module):
    """Fused queries, keys and values; sizes from attributes."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim))


class ManualAttention(nn.Module):
    """Products and softmax by hand, one matrix each for queries, keys and values, a causal mask."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, 1 / math.sqrt(dim // heads)
        self.to_q, self.to_k, self.to_v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.mask: Tensor
        self.register_buffer("mask", torch.ones(8, 8, dtype=torch.bool).tril())

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.to_q(x)), self.split(self.to_k(x)), self.split(self.to_v(x))
        scores = (q @ k.transpose(-2, -1)) * self.scale
        weights = scores.masked_fill(~self.mask[: x.shape[1], : x.shape[1]], float("-inf")).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class EinsumAttention(nn.Module):
    """The same through einsum, without biases."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in self.qkv(x).chunk(3, -1))
        weights = torch.einsum("bihd,bjhd->bhij", q, k).mul(self.scale).softmax(-1)
        return self.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(-2))


class SwiGLU(nn.Module):
    """Gated feed-forward with one fused matrix, cut in two."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.inp(x).chunk(2, -1)
        return self.out(F.silu(gate) * value)


class Transformer(nn.Module):
    """Patches, a class token, learned positions, pre-norm blocks."""

    def __init__(self, attention: type[nn.Module], norm: type[nn.Module] = nn.LayerNorm, gated: bool = False) -> None:
        super().__init__()
        dim = 12
        self.embed, self.cls = nn.Linear(4, dim), nn.Parameter(torch.randn(1, 1, dim))
        self.pos = nn.Parameter(torch.randn(1, 6, dim))
        self.norms = nn.ModuleList(norm(dim) for _ in range(4))
        self.attentions = nn.ModuleList(attention(dim, 3) for _ in range(2))
        self.mlps = nn.ModuleList(
            SwiGLU(dim, 7) if gated else nn.Sequential(nn.Linear(dim, 10), nn.GELU(), nn.Linear(10, dim))
            for _ in range(2)
        )
        self.norm, self.head = norm(dim), nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.pos
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps)):
            x = x + attention(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(self.norm(x)[:, 0])


class Mixer(nn.Module):
    """MLP-Mixer: one perceptron across tokens, one across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.n1, self.n2 = nn.Linear(4, 6), nn.LayerNorm(6), nn.LayerNorm(6)
        self.tokens = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 5))
        self.channels = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.n2(x))).mean(1))


class TorchEncoder(nn.Module):
    """nn.TransformerEncoder as it comes."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 10, batch_first=True, dropout=0.1)
        self.embed, self.encoder = nn.Linear(4, 8), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class Recurrent(nn.Module):
    """An LSTM or GRU between two linear layers."""

    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Linear(4, 5), kind(5, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(torch.tanh(self.embed(x)))[0][:, -1])


class CellLoop(nn.Module):
    """Cells in a loop over time: the first starts by itself, the second from zeros of its own size."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 6
        self.first, self.second, self.head = nn.LSTMCell(4, 5), nn.GRUCell(5, 6), nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.unbind(1)
        state = self.first(steps[0])
        hidden = self.second(state[0], x.new_zeros(x.shape[0], self.size))
        for step in steps[1:]:
            state = self.first(step, state)
            hidden = self.second(state[0], hidden)
        return self.head(torch.cat([state[1], hidden], -1))


class QueryDecoder(nn.Module):
    """Learned queries that attend to the input (nn.TransformerDecoderLayer): a parameter serves as data."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.embed = nn.Embedding(3, 8), nn.Linear(4, 8)
        self.decoder, self.head = nn.TransformerDecoderLayer(8, 2, 10, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries.weight.unsqueeze(0).repeat(x.shape[0], 1, 1)
        return self.head(self.decoder(queries, self.embed(x))).mean(1)


SEQUENCE = (
    NetworkCase("transformer", lambda: Transformer(Attention), (5, 4), (12, 3, 10, 3, 10)),
    NetworkCase("manual_attention", lambda: Transformer(ManualAttention), (5, 4), (12, 3, 10, 3, 10)),
    NetworkCase("einsum_rms_swiglu", lambda: Transformer(EinsumAttention, nn.RMSNorm, True), (5, 4),
                (12, 3, 7, 3, 7)),
    NetworkCase("mixer", Mixer, (5, 4), (8, 9)),
    NetworkCase("torch_encoder", TorchEncoder, (5, 4), (8, 2, 10, 2, 10)),
    NetworkCase("lstm", lambda: Recurrent(nn.LSTM), (5, 4), (5, 6)),
    NetworkCase("gru", lambda: Recurrent(nn.GRU), (5, 4), (5, 6)),
    NetworkCase("cell_loop", CellLoop, (5, 4), (5, 6)),
    NetworkCase("query_decoder", QueryDecoder, (5, 4), (8, 2, 2, 10)),
)
