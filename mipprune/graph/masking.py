"""One operation of a captured network: its arguments from values, and gates on the units that it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from .capture import int_at, is_integer_node
from .values import Argument, Masked, argument_of, batch_dim

__all__ = ["Gates", "Read", "arguments", "batch_dims", "masked_call", "overlaps"]

Gates = torch.Tensor


@dataclasses.dataclass(frozen=True)
class Read:
    """Units of one mask edge: the unit of every index along ``dim``, with ``n_units`` standing for "always on".

    ``batch`` is the dimension that samples lie along (None: the value is the same for all of them).
    """

    dim: int
    units: torch.Tensor
    argument: Argument = 0
    masked: Masked | None = None
    batch: int | None = 0


def arguments(
    node: fx.Node, env: dict[str, Any], tensors: dict[str, torch.Tensor], batch: int,
    lengths: dict[int, int] | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of an operation for ``batch`` samples; ``lengths`` replaces integers by their place among them."""
    def value(node: fx.Node) -> Any:
        if node.name in tensors:
            return tensors[node.name]
        if is_integer_node(node):
            return int_at(node.meta["val"], batch)
        return env[node.name]

    given = (node.args, node.kwargs) if not lengths else _with_lengths((node.args, node.kwargs), lengths, [0])
    return fx.node.map_arg(given, value)


def _with_lengths(tree: Any, lengths: dict[int, int], seen: list[int]) -> Any:
    """``tree`` with some of its integers replaced, counted in the order of :func:`~mipprune.graph.sizes.integers`."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(_with_lengths(item, lengths, seen) for item in tree)
    if isinstance(tree, dict):
        return {key: _with_lengths(item, lengths, seen) for key, item in tree.items()}
    if isinstance(tree, slice):
        return slice(*(_with_lengths(item, lengths, seen) for item in (tree.start, tree.stop, tree.step)))
    if isinstance(tree, bool) or not (isinstance(tree, int) or (isinstance(tree, fx.Node) and is_integer_node(tree))):
        return tree
    seen[0] += 1
    return lengths.get(seen[0] - 1, tree) if isinstance(tree, int) and tree != -1 else tree


def batch_dims(value: Any) -> Any:
    """:func:`~mipprune.graph.values.batch_dim` of a traced value, or of each in a list."""
    if isinstance(value, (tuple, list)):
        return [batch_dims(v) for v in value]
    return batch_dim(value) if isinstance(value, torch.Tensor) else None


def overlaps(read: Read, units: slice) -> bool:
    """Whether any of ``units`` is read."""
    return bool(((read.units >= units.start) & (read.units < units.stop)).any())


def masked_call(
    target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], padded: torch.Tensor,
    reads: Sequence[Read],
) -> Any:
    """The operation on what the gates leave of the arguments that are read."""
    masked = None
    for read in reads:
        x = argument_of(args, read.argument)
        gate = _gate_like(x, padded[..., read.units.to(padded.device)], read).to(x.dtype)
        if read.masked is None:
            args = _with_argument(args, read.argument, x * gate)
        else:
            masked = (read.masked, gate)
    return target(*args, **kwargs) if masked is None else masked[0](target, args, kwargs, masked[1])


def _with_argument(args: Sequence[Any], argument: Argument, value: Any) -> tuple[Any, ...]:
    """The arguments with one of them replaced."""
    if isinstance(argument, int):
        return (*args[:argument], value, *args[argument + 1 :])
    number, place = argument
    return _with_argument(args, number, [*_with_argument(args[number], place, value)])


def _gate_like(x: torch.Tensor, gates: torch.Tensor, read: Read) -> torch.Tensor:
    """Gates (size,), or (N, size) per sample, shaped to broadcast against ``x``."""
    shape = [1] * x.ndim
    shape[read.dim] = -1
    if gates.ndim == 1:
        return gates.reshape(shape)
    batch = 0 if read.batch is None else read.batch  # a value without samples in it gets them
    if read.batch is not None and x.shape[batch] != len(gates):  # samples are the outer part of that dimension
        gates = gates.repeat_interleave(x.shape[batch] // len(gates), 0)
    shape[batch] = len(gates)
    return (gates if batch < read.dim else gates.t()).reshape(shape)
