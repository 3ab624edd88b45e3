"""Modules whose whole work can be left out: what a stub in their place has to return, found by watching one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

__all__ = ["watch_returns"]


@torch.no_grad()
def watch_returns(model: nn.Module, example: tuple[torch.Tensor, ...]) -> dict[str, str]:
    """Module path -> what a stub for it returns, see :class:`~mipprune.graph.branches.Removal`.

    Modules that return something else, or not always the same, or are registered under several paths, are left out.
    One forward pass; the model is as before afterwards.
    """
    found: dict[str, set[str | None]] = {}
    handles = []
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        found.setdefault(paths[module][0], set()).add(_returned(module, args, kwargs, out))

    for module, names in paths.items():
        if len(names) == 1 and names[0]:
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        with _slow_attention():
            model(*example)
    finally:
        for handle in handles:
            handle.remove()
    known = {path: next(iter(kinds)) for path, kinds in found.items() if len(kinds) == 1}
    return {path: kind for path, kind in known.items() if kind is not None}


def _returned(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> str | None:
    like = next((x for x in pytree.tree_leaves((args, dict(kwargs))) if isinstance(x, torch.Tensor)), None)
    if like is None:
        return None
    if isinstance(out, tuple):
        kinds = ["none" if x is None else _shaped(like, x) or "" for x in out]
        return f"tuple:{','.join(kinds)}" if all(kinds) else None
    kind = _shaped(like, out)
    if kind is not None or not isinstance(out, torch.Tensor) or next(module.children(), None) is not None:
        return kind
    if out.dtype != like.dtype:
        return None
    if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
        return "conv"
    return f"last:{out.shape[-1]}" if out.ndim == like.ndim and out.shape[:-1] == like.shape[:-1] else None


def _shaped(like: torch.Tensor, out: Any) -> str | None:
    same = isinstance(out, torch.Tensor) and out.shape == like.shape and out.dtype == like.dtype
    return "same" if same else None


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Torch's fused encoder layer doesn't call its own sub-modules."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
