"""What tracing knows of tensors and writes down about operations: labelled values, reads, costs, sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from .sizes import Expression
from .source import Slot

__all__ = ["Argument", "Contraction", "Labels", "MaskEdge", "Masked", "SizeUse", "Value", "argument_of", "batch_dim"]

Labels = torch.Tensor
#: Runs an operation as if the units whose gate is 0 weren't there: ``masked(target, args, kwargs, gate)``.
Masked = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], torch.Tensor], Any]


#: Which argument of an operation: its number, or (number of a list, place in it).
Argument = int | tuple[int, int]


def argument_of(args: Sequence[Any], argument: Argument) -> Any:
    """The argument of that number, or inside a list."""
    return args[argument] if isinstance(argument, int) else args[argument[0]][argument[1]]


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor during tracing.

    Attributes:
        labels: its labels at batch size 1; they vary along at most one dimension.
        name: its name if it is a parameter or buffer itself.
        source: for a parameter or buffer whose elements were moved or changed one by one: its name, and for every
            element the flat number of the parameter's element it comes from.
    """

    labels: Labels
    name: str | None = None
    source: tuple[str, torch.Tensor] | None = None

    @property
    def origin(self) -> tuple[str, torch.Tensor] | None:
        """``source``, also for the parameter itself."""
        if self.source is None and self.name is not None:
            return self.name, torch.arange(self.labels.numel()).reshape(self.labels.shape)
        return self.source


@dataclasses.dataclass(frozen=True)
class MaskEdge:
    """A place where units are read: ``labels`` run along dimension ``dim`` of argument ``argument`` of ``node``.

    An argument inside a list is (number of the list, place in it).  A removed unit is multiplied by 0 there, or left
    out by ``masked`` where zero isn't the same as absent (a mean).
    """

    node: fx.Node
    module: str
    dim: int
    labels: Labels
    argument: Argument = 0
    masked: Masked | None = None


@dataclasses.dataclass(frozen=True)
class Contraction:
    """An operation that costs ``factor * (inputs kept) * (outputs kept)`` multiply-adds per sample.

    ``inputs`` is ``None`` for an operation whose cost is linear in the outputs (depthwise convolution, attention).
    """

    inputs: Labels | None
    outputs: Labels
    factor: int
    node: str = ""

    @property
    def dense(self) -> int:
        """What it costs with everything kept."""
        return self.factor * len(self.outputs) * (1 if self.inputs is None else len(self.inputs))


@dataclasses.dataclass(frozen=True)
class SizeUse:
    """An integer argument that has to be the number of kept entries of ``labels`` (one dimension).

    ``slot`` is where it stands in the code of a module's method, if it does, and ``call`` the recorded call there.
    """

    origin: Expression
    labels: Labels
    where: str
    slot: Slot | None = None
    call: int = 0


def batch_dim(value: torch.Tensor) -> int | None:
    """The dimension of a traced value that the batch lies along (possibly merged with others); ``None``: none."""
    for dim, size in enumerate(value.shape):
        if not isinstance(size, int) and size.node.expr.free_symbols:
            return dim
    return None
