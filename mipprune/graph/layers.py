"""Linear and convolution layers as matrix products: inputs as columns of a design matrix, weights as a matrix."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx

from .capture import packet_of
from .program import Program

__all__ = ["PASSES", "Grid", "Layer", "find_layers", "named_arguments", "same_shape"]

PASSES = ("dropout", "clone", "contiguous", "detach", "alias")


class Grid(NamedTuple):
    """Every ``step``-th output position along each spatial dimension, from ``starts``."""

    step: int
    starts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One linear or convolution operation, and what happens to its output before anything nonlinear.

    Attributes:
        node: the operation.
        data, weight, bias: node names of its arguments; ``bias`` may be ``None``.
        norm: the batch-norm that alone reads the output, if there is one.
        total: the residual addition that alone reads the (normalised) output, if there is one.
        other: the other summand's node.
        groups: of the convolution.
        stride, padding, dilation: of the convolution, per dimension; empty for a linear operation.
    """

    node: fx.Node
    data: str
    weight: str
    bias: str | None
    norm: fx.Node | None
    total: fx.Node | None
    other: fx.Node | None
    groups: int
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]

    @property
    def is_linear(self) -> bool:
        """Whether it's a linear operation, not a convolution."""
        return not self.stride

    def design(self, x: torch.Tensor, weight: torch.Tensor, grid: Grid | None = None) -> torch.Tensor:
        """Inputs as columns: shape (groups, D, R), D numbers that one output is made of, R positions times samples.

        Args:
            x: (N, ...), what the layer reads.
            weight: its weight, for the kernel's size.
            grid: takes the positions of a coarser grid only (of a convolution).
        """
        if self.is_linear:
            return x.reshape(x.shape[:-1].numel(), x.shape[-1]).T[None]
        kernel = weight.shape[2:]
        p = _patches(x, kernel, self.stride, self._pad(kernel), self.dilation, grid)  # (C, K, T N)
        g = 1 if self.groups == 1 else len(p) // weight.shape[1]  # groups that are left
        return p.reshape(g, len(p) // g * p.shape[1], p.shape[2])

    @staticmethod
    def on_grid(y: torch.Tensor, grid: Grid | None) -> torch.Tensor:
        """The positions of ``grid`` of the output ``y``."""
        if grid is None:
            return y
        return y[(slice(None), slice(None), *(slice(start, None, grid.step) for start in grid.starts))]

    def outputs(self, y: torch.Tensor, groups: int) -> torch.Tensor:
        """Outputs ``y`` (of this layer's shape) as columns, in the order of :meth:`design`: shape (groups, m, R)."""
        if self.is_linear:
            return y.reshape(y.shape[:-1].numel(), y.shape[-1]).T[None]
        return y.movedim(0, -1).reshape(groups, y.shape[1] // groups, y.shape[2:].numel() * len(y))

    @property
    def channel_dim(self) -> int:
        """Dimension of the output that its units run along."""
        return -1 if self.is_linear else 1

    def _pad(self, kernel: torch.Size) -> list[int]:
        """Zeros before and after every spatial dimension, last dimension first, as ``F.pad`` takes them."""
        out: list[int] = []
        for d in range(len(kernel) - 1, -1, -1):
            span = self.dilation[d] * (kernel[d] - 1)
            if self.padding == "valid":
                out += [0, 0]
            elif self.padding == "same":
                out += [span // 2, span - span // 2]
            else:
                out += [int(self.padding[d])] * 2
        return out


def _patches(
    x: torch.Tensor, kernel: torch.Size, stride: tuple[int, ...], pad: list[int], dilation: tuple[int, ...],
    grid: Grid | None,
) -> torch.Tensor:
    """All windows of ``x``: shape (C, prod(kernel), positions times samples).

    Samples run fastest, so that every window is copied in long runs.
    """
    x = _padded(x, pad)
    size = [(x.shape[1 + d] - dilation[d] * (k - 1) - 1) // stride[d] + 1 for d, k in enumerate(kernel)]
    steps = x.stride()[1:-1]
    offset = 0
    if grid is not None:
        offset = sum(a * s * e for a, s, e in zip(grid.starts, stride, steps))
        size = [-(-(length - a) // grid.step) for a, length in zip(grid.starts, size)]
        stride = tuple(s * grid.step for s in stride)
    view = x.as_strided(
        (len(x), *kernel, *size, x.shape[-1]),
        (x.stride(0), *(s * e for s, e in zip(steps, dilation)), *(s * e for s, e in zip(steps, stride)), 1),
        x.storage_offset() + offset,
    )
    return view.reshape(len(x), kernel.numel(), -1)


def _padded(x: torch.Tensor, pad: list[int]) -> torch.Tensor:
    """``x`` (N, C, ...) with zeros around the dimensions behind C, counted as by ``F.pad``: (C, ..., N), contiguous."""
    x = x.flatten(1).T.contiguous().reshape(*x.shape[1:], len(x))  # a plain transpose is copied by blocks
    return F.pad(x, [0, 0, *pad]).contiguous() if any(pad) else x


def find_layers(program: Program) -> list[Layer]:
    """All linear and convolution operations of ``program`` with weights of their own, in execution order."""
    captured = program.captured
    shared = _shared(program)
    found = []
    for node in captured.nodes:
        name = str(node.target)
        spatial = next((d for d in (1, 2, 3) if name.startswith(f"aten.conv{d}d.")), 0)
        if name != "aten.linear.default" and not spatial:
            continue
        given = named_arguments(node)
        weight, bias = given["weight"], given.get("bias")
        if weight.name not in captured.tensors or weight.name in shared:
            continue  # computed or tied weights serve several masters
        norm, total, other = _what_follows(node, captured.tensors)
        found.append(Layer(
            node=node, data=given["input"].name, weight=weight.name, bias=None if bias is None else bias.name,
            norm=norm, total=total, other=other, groups=given.get("groups", 1),
            stride=_tuple(given.get("stride", 1), spatial), dilation=_tuple(given.get("dilation", 1), spatial),
            padding=_padding(given.get("padding", 0), spatial),
        ))
    return found


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operation by the names its schema has for them."""
    schema = node.target._schema  # type: ignore[union-attr]
    names = [a.name for a in schema.arguments]
    return dict(zip(names, node.args)) | dict(node.kwargs)


def _shared(program: Program) -> set[str]:
    """Nodes of tensors that several operations read, be it under several names."""
    storage = {node: tensor.data_ptr() or node for node, tensor in program.dense_tensors().items()}
    readers: dict[Any, list[str]] = {}
    for node in program.captured.nodes:
        for a in node.all_input_nodes:
            if a.name in storage:
                readers.setdefault(storage[a.name], []).append(a.name)
    return {a for names in readers.values() if len(names) > 1 for a in names}


def _tuple(value: Any, spatial: int) -> tuple[int, ...]:
    value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return value * spatial if len(value) == 1 and spatial > 1 else value[:spatial]


def _padding(value: Any, spatial: int) -> tuple[int, ...] | str:
    return value if isinstance(value, str) else _tuple(value, spatial)


def _what_follows(node: fx.Node, tensors: dict[str, str]) -> tuple[fx.Node | None, fx.Node | None, fx.Node | None]:
    norm: fx.Node | None = None
    last = node
    while len(last.users) == 1:
        user = next(iter(last.users))
        packet = packet_of(user)
        if packet == "batch_norm" and norm is None and (last.meta["val"].ndim == 2 or "conv" in str(node.target)):
            norm = last = user
        elif packet in PASSES:
            last = user
        elif packet == "add" and len(user.args) == 2 and not user.kwargs:
            other = next((a for a in user.args if a is not last), None)
            if isinstance(other, fx.Node) and other.name not in tensors and same_shape(other, last):
                return norm, user, other
            break
        else:
            break
    return norm, None, None


def same_shape(a: fx.Node, b: fx.Node) -> bool:
    """Whether two traced values have one shape, for every number of samples."""
    return str(a.meta["val"].shape) == str(b.meta["val"].shape)
