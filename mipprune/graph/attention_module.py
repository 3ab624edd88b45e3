"""A multi-head attention that can lose heads and channels, in the place of torch's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PrunableMultiheadAttention"]


class PrunableMultiheadAttention(nn.Module):
    """Computes what ``nn.MultiheadAttention`` computes, with the same parameters under the same names.

    Torch's class wants heads times head width to be the width of its input, and fuses everything into one call; after
    surgery that no longer holds.  This one is traced in its place, and takes its place in the pruned network.
    """

    in_proj_weight: nn.Parameter | None
    in_proj_bias: nn.Parameter | None
    q_proj_weight: nn.Parameter
    k_proj_weight: nn.Parameter
    v_proj_weight: nn.Parameter

    _qkv_same_embed_dim = False  # keeps nn.TransformerEncoderLayer from its fused path, which knows torch's class only

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = int(original.num_heads), int(original.head_dim)
        self.embed_dim, self.batch_first, self.dropout = original.embed_dim, original.batch_first, original.dropout
        for name, parameter in original._parameters.items():
            self.register_parameter(name, parameter)
        self.out_proj = original.out_proj
        self.train(original.training)

    @staticmethod
    def supports(module: nn.Module) -> bool:
        """Whether ``module`` is an attention that this class can stand in for."""
        return type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See ``nn.MultiheadAttention``; without batch dimension isn't supported."""
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (self._heads(x) for x in self._project(query, key, value))
        mask = self._mask(attn_mask, key_padding_mask, q)
        weights = None
        if need_weights:
            scores = (q @ k.transpose(-2, -1)) / self.head_dim**0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            out = F.dropout(weights, self.dropout, self.training) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        weights: list[Tensor]
        if self.in_proj_weight is None:
            weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        elif query is key and key is value:
            return list(F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1))
        else:
            weights = list(self.in_proj_weight.chunk(3))
        biases: Sequence[Tensor | None] = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases)]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, like: Tensor) -> Tensor | None:
        """Both masks as one float mask that is added to the scores."""
        total = None
        for mask, is_padding in ((attn_mask, False), (key_padding_mask, True)):
            if mask is None:
                continue
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
            if is_padding:
                mask = mask[:, None, None, :]
            elif mask.ndim == 3:
                mask = mask.unflatten(0, (-1, self.num_heads))
            total = mask if total is None else total + mask
        return total
