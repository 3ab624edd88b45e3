"""Incremental walks: the layer that reads the units is linear in them, so a toggled unit only adds its own share.

The output of a linear layer or a convolution is ``base + sum_i s_i P_i`` with P_i what it makes of unit i alone,
``a_i W[:, i]`` or ``conv(a_i, W[:, i])``.  The shares are computed once per pass; a walk is their running sum, and only
what comes behind the reader is run at every step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from ..graph.program import Prefix

__all__ = ["Reader", "incremental_toggle", "incremental_walk", "reader_of"]

#: Values (M, s) of the outputs (M, s, ...) of the samples ``rows``.
PerSample = Callable[[torch.Tensor, slice], torch.Tensor]

_CONVOLUTIONS = ("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")


@dataclasses.dataclass(frozen=True)
class Reader:
    """The only operation that reads a group's units, linear in them.

    Attributes:
        prefix: of the group.
        node: the operation.
        inputs: what it reads, samples first.
        features: int64 (n * c,), the indices that belong to the units, unit by unit.
        n_units: n.
        others: bool, one per index: read, and of no unit of the group.
        numbers: float numbers of one sample's output.
        cached: shares and base of the chunks that have been asked for, by their first sample; ``None`` if there is no
            room for all.
    """

    prefix: Prefix
    node: fx.Node
    inputs: torch.Tensor
    features: torch.Tensor
    n_units: int
    others: torch.Tensor
    numbers: int
    cached: dict[int, tuple[torch.Tensor, torch.Tensor]] | None

    @property
    def is_linear(self) -> bool:
        return str(self.node.target) == "aten.linear.default"

    def parts(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Shares and base of the samples ``rows``; kept for the next pass where all of them fit in memory."""
        if self.cached is None:
            return self.shares(rows), self.base(rows)
        if rows.start not in self.cached:
            self.cached[rows.start] = (self.shares(rows).contiguous(), self.base(rows))
        return self.cached[rows.start]

    def base(self, rows: slice) -> torch.Tensor:
        """Output without any unit of the group: (s, ...)."""
        x, dim = self.inputs[rows], self.inputs.ndim - 1 if self.is_linear else 1
        shape = [1] * x.ndim
        shape[dim] = -1
        gate = self.others.to(x.device, x.dtype).reshape(shape)
        _, *rest = self._arguments()
        return self.node.target(x * gate, *rest)  # type: ignore[operator]

    def shares(self, rows: slice) -> torch.Tensor:
        """What every unit adds to the output: (s, n, ...)."""
        x, n = self.inputs[rows], self.n_units
        _, weight, _, *options = self._arguments()
        weight = weight[:, self.features].unflatten(1, (n, -1))
        if self.is_linear:
            return torch.einsum("s...uc,muc->su...m", x[..., self.features].unflatten(-1, (n, -1)), weight)
        grouped = weight.transpose(0, 1).flatten(0, 1)
        found = self.node.target(x[:, self.features], grouped, None, *options[:3], n)  # type: ignore[operator]
        return found.unflatten(1, (n, -1))

    def _arguments(self) -> list[Any]:
        """Input node, weight, bias, stride, padding, dilation; those after the bias of a convolution only."""
        tensors = self.prefix.tensors
        args = [tensors.get(a.name) if isinstance(a, fx.Node) else a for a in self.node.args]
        spatial = self.inputs.ndim - 2
        options = [] if self.is_linear else [[1] * spatial, [0] * spatial, [1] * spatial]
        defaults = [None, None, None, *options]
        return [*args, *defaults[len(args) :]][: len(defaults)]


def reader_of(prefix: Prefix, room: int) -> Reader | None:
    """The group's reader if there is one alone, it is a linear layer or an ungrouped convolution, and one sample fits.

    Args:
        room: numbers that a batch may hold; the shares of one sample may take 8 times as many, those of all samples
            are kept if they take up to 32 times as many.
    """
    program = prefix.program
    readers = [n for n in prefix.suffix if program.reads(n.name, prefix.units)]
    if len(readers) != 1 or str(readers[0].target) not in ("aten.linear.default", *_CONVOLUTIONS) or readers[0].kwargs:
        return None
    node = readers[0]
    read, source = program.read_of(node), prefix.boundary.get(node.all_input_nodes[0].name)
    is_linear = str(node.target) == "aten.linear.default"
    if read is None or not isinstance(source, torch.Tensor) or read.masked is not None or read.argument != 0:
        return None
    if read.batch != 0 or len(source) != prefix.n_samples or read.dim != (source.ndim - 1 if is_linear else 1):
        return None
    if not is_linear and len(node.args) > 6 and node.args[6] != 1:
        return None
    own = (read.units >= prefix.units.start) & (read.units < prefix.units.stop)
    units, n = read.units[own] - prefix.units.start, prefix.units.stop - prefix.units.start
    if len(units) % n or (torch.bincount(units, minlength=n) != len(units) // n).any():
        return None
    features = torch.nonzero(own)[:, 0][units.argsort(stable=True)]
    others = ~own
    if prefix.base is not None:
        always = torch.cat([prefix.base.cpu(), torch.ones(1)])
        others &= always[read.units] != 0
    device = source.device
    reader = Reader(prefix, node, source, features.to(device), n, others.to(device), 0, None)
    numbers = reader.base(slice(0, 1)).numel()
    if n * numbers > 8 * room:
        return None
    cached: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = {} if n * numbers * len(source) <= 32 * room else None
    return dataclasses.replace(reader, numbers=numbers, cached=cached)


def incremental_walk(reader: Reader, orders: np.ndarray, values: PerSample, room: int) -> np.ndarray:
    """Marginals (N, n) along the orders (N, n): see :meth:`SampleGame.walk`; about ``room`` numbers at a time."""
    out = np.empty(orders.shape)
    for rows in _chunks(reader, len(orders), room):
        shares, base = reader.parts(rows)
        order = torch.from_numpy(orders[rows].astype(np.int64)).to(shares.device)
        each = torch.arange(len(order), device=shares.device)
        path = base.new_empty(reader.n_units + 1, *base.shape)
        path[0] = base
        for t in range(reader.n_units):
            torch.add(path[t], shares[each, order[:, t]], out=path[t + 1])
        found = values(reader.prefix.finish(reader.node, path, rows), rows).cpu().numpy()
        np.put_along_axis(out[rows], orders[rows], np.diff(found, axis=0).T, axis=1)
    return out


def incremental_toggle(reader: Reader, masks: np.ndarray, values: PerSample, room: int) -> np.ndarray:
    """Differences (N, n) around the masks (N, n): see :meth:`SampleGame.toggle`."""
    out = np.empty(masks.shape)
    for rows in _chunks(reader, len(masks), room):
        shares, base = reader.parts(rows)
        inside = torch.from_numpy(masks[rows]).to(shares.device, shares.dtype)
        here = base + torch.einsum("su,su...->s...", inside, shares)
        sign = (1 - 2 * inside).reshape(*inside.shape, *[1] * (shares.ndim - 2))
        path = torch.cat([here[None], torch.addcmul(here[:, None], sign, shares).transpose(0, 1)])
        found = values(reader.prefix.finish(reader.node, path, rows), rows).cpu().numpy().T
        out[rows] = np.where(masks[rows], found[:, :1] - found[:, 1:], found[:, 1:] - found[:, :1])
    return out


def _chunks(reader: Reader, n_samples: int, room: int) -> list[slice]:
    """Samples at a time whose shares fit into ``room`` numbers, at least one."""
    step = max(1, room // ((reader.n_units + 1) * reader.numbers))
    return [slice(start, min(start + step, n_samples)) for start in range(0, n_samples, step)]
