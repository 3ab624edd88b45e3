"""What is left of a module that was removed: a stub that returns zeros, without parameters and without work."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .hollow import conv_shape

__all__ = ["Stub"]


class Stub(nn.Module):
    """Returns zeros where ``original`` returned something.

    Plain attributes (``num_heads``, ``stride``, ...) stay, because a parent's code may look at them; parameters and
    buffers are ``None``.

    Args:
        original: the module that it stands in for; not kept.
        returns: see :class:`mipprune.graph.branches.Removal`.
    """

    _qkv_same_embed_dim = False  # keeps nn.TransformerEncoderLayer from its fused path, which would want weights

    def __init__(self, original: nn.Module, returns: str) -> None:
        super().__init__()
        for name, value in vars(original).items():
            if not name.startswith("_") and not inspect.ismethod(value) and not isinstance(value, torch.Tensor):
                self.__dict__[name] = value
        for name in original._parameters:
            self.register_parameter(name, None)
        for name in original._buffers:
            self.register_buffer(name, None)
        self.returns, self.was = returns, type(original).__name__
        if returns.startswith("last:"):
            self.width = int(returns.removeprefix("last:"))  # an attribute, so that it follows when units leave later

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        like = next(x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor))
        if self.returns == "same":
            return torch.zeros_like(like)
        if self.returns == "conv":
            return like.new_zeros(conv_shape(self, like, self.out_channels))  # type: ignore[arg-type]
        if self.returns.startswith("last:"):
            return like.new_zeros((*like.shape[:-1], self.width))
        kinds = self.returns.removeprefix("tuple:").split(",")
        return tuple(torch.zeros_like(like) if kind == "same" else None for kind in kinds)

    def extra_repr(self) -> str:
        return f"{self.was}, returns {self.returns}"
