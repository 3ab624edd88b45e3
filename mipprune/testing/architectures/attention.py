"""Attention as teaching code, language models and vision libraries write it: sizes in the code, rotations, queries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cases import NetworkCase

__all__ = ["ATTENTION"]


class CausalAttention(nn.Module):
    """As small GPTs are taught: the width is read off the input, and heads are views of literal shapes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.n_head, self.n_embd = heads, width

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class GPTBlock(nn.Module):
    """Pre-norm, residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), CausalAttention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class SmallGPT(nn.Module):
    """Token and position embeddings, the output tied to the input, logits of the last position, a loss on request."""

    def __init__(self) -> None:
        super().__init__()
        self.block_size = 8
        self.wte, self.wpe = nn.Embedding(20, 12), nn.Embedding(self.block_size, 12)
        self.h, self.ln_f = nn.ModuleList(GPTBlock(12, 3) for _ in range(2)), nn.LayerNorm(12)
        self.lm_head = nn.Linear(12, 20, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        _, t = idx.size()
        assert t <= self.block_size
        x = self.wte(idx) + self.wpe(torch.arange(0, t, dtype=torch.long, device=idx.device))
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        if targets is not None:
            logits = self.lm_head(x)
            return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
        return self.lm_head(x[:, [-1], :]), None


def rotate_pairs(x: Tensor, rotation: Tensor) -> Tensor:
    """Neighbouring entries as complex numbers, turned by their position."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class RotaryGQA(nn.Module):
    """Grouped queries with rotations, keys and values repeated in plain code."""

    def __init__(self, pairs: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.pairs = 6, 3, 4, pairs
        self.repeats = self.heads // self.kv_heads
        self.q, self.o = nn.Linear(16, 24, bias=False), nn.Linear(24, 16, bias=False)
        self.k, self.v = nn.Linear(16, 12, bias=False), nn.Linear(16, 12, bias=False)
        angle = torch.outer(torch.arange(8.0), 0.1 ** torch.arange(2.0))
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", torch.cat([angle, angle], -1).cos())
        self.register_buffer("sin", torch.cat([angle, angle], -1).sin())

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, self.head_dim)
        k, v = (layer(x).view(b, t, self.kv_heads, self.head_dim) for layer in (self.k, self.v))
        if self.pairs:
            rotation = torch.complex(self.cos[:t, None, :2], self.sin[:t, None, :2])
            q, k = rotate_pairs(q, rotation), rotate_pairs(k, rotation)
            k, v = (y[:, :, :, None].expand(b, t, y.shape[2], self.repeats, self.head_dim) for y in (k, v))
            k, v = k.flatten(2, 3), v.flatten(2, 3)
        else:
            q, k = (rotate_halves(y, self.cos[:t, None], self.sin[:t, None]) for y in (q, k))
            k, v = k.repeat_interleave(self.repeats, 2), torch.repeat_interleave(v, self.repeats, dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        weights = (q @ k.transpose(2, 3) / self.head_dim**0.5).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).contiguous().view(b, t, -1))


class GQATransformer(nn.Module):
    """One block around grouped queries."""

    def __init__(self, pairs: bool) -> None:
        super().__init__()
        self.embed, self.norm, self.attention = nn.Linear(4, 16), nn.RMSNorm(16), RotaryGQA(pairs)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.out((x + self.attention(self.norm(x))).mean(1))


class Perceiver(nn.Module):
    """Learned latents that are normalised, ask, and stay in the residual stream; a learned position for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.position = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(5, 4))
        self.embed, self.norm_q, self.norm_kv = nn.Linear(4, 6), nn.LayerNorm(8), nn.LayerNorm(6)
        self.heads, self.q, self.kv, self.proj = 2, nn.Linear(8, 8), nn.Linear(6, 16), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_kv(self.embed(x + self.position))
        z = self.latents.expand(x.shape[0], -1, -1)
        q, (k, v) = self.q(self.norm_q(z)), self.kv(x).chunk(2, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        z = z + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((z + self.mlp(z)).mean(1))


class LayerScale(nn.Module):
    """A learned scale per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Whole branches dropped at random while training."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(x.shape[0], *[1] * (x.ndim - 1)) > 0.1) if self.training else x


class VisionAttention(nn.Module):
    """Fused qkv, normalised queries and keys, the number of channels read off the input."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 4
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.q_norm, self.k_norm = nn.LayerNorm(4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = ((self.q_norm(q) * self.scale) @ self.k_norm(k).transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(B, N, C))


class PackedSwiGLU(nn.Module):
    """Gate and value from one matrix, a norm in between."""

    def __init__(self) -> None:
        super().__init__()
        self.w12, self.norm, self.w3 = nn.Linear(16, 20), nn.LayerNorm(10), nn.Linear(10, 16)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(self.norm(F.silu(gate) * value))


class VisionTransformer(nn.Module):
    """Patches by a convolution, a class token, layer scale and drop path around both branches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls = nn.Conv2d(1, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.pos, self.drop = nn.Parameter(torch.randn(1, 5, 16)), DropPath()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(16), VisionAttention(), LayerScale(16)
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(16), PackedSwiGLU(), LayerScale(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), 1) + self.pos
        x = x + self.drop(self.ls1(self.attn(self.norm1(x))))
        x = x + self.drop(self.ls2(self.mlp(self.norm2(x))))
        return self.head(x[:, 0])


class Experts(nn.Module):
    """A mixture of experts in which each sample's two best are weighted, the others by 0."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(6, 7), nn.Linear(7, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 7)) for _ in range(3))
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        value, index = self.gate(x).topk(2, -1)
        weights = torch.zeros(x.shape[0], 3, dtype=x.dtype).scatter(-1, index, value.softmax(-1))
        return self.head(x + sum(weights[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts)))


ATTENTION = (
    NetworkCase("small_gpt", SmallGPT, (6,), (12, 3, 20, 3, 20), vocabulary=20),
    NetworkCase("rotary_halves", lambda: GQATransformer(False), (5, 4), (16, 3)),
    NetworkCase("rotary_pairs", lambda: GQATransformer(True), (5, 4), (16, 3)),
    NetworkCase("perceiver", Perceiver, (5, 4), (6, 2, 8, 10)),
    NetworkCase("vision_transformer", VisionTransformer, (1, 8, 8), (16, 4, 10)),
    NetworkCase("experts", Experts, (6,), (7, 8, 8, 8)),
)
