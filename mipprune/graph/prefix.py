"""The part of a network before some units, computed once, and the rest run for many coalitions at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .capture import int_at
from .masking import Gates

if TYPE_CHECKING:
    from .program import Program

__all__ = ["Prefix"]


class Prefix:
    """A network whose prefix is computed; :meth:`run` finishes it for many coalitions of one group at once."""

    def __init__(
        self, program: Program, suffix: list[fx.Node], boundary: dict[str, Any], tensors: dict[str, torch.Tensor],
        units: slice, n_samples: int, base: Gates | None,
    ) -> None:
        self.program = program
        self.suffix = suffix
        self.boundary = boundary
        self.tensors = tensors
        self.units = units
        self.n_samples = n_samples
        self.base = base
        # with every other unit on, only the reads of the group itself have anything to mask
        self._only = None if base is not None else {n.name for n in suffix if program.reads(n.name, units)}

    @property
    def bytes_per_coalition(self) -> int:
        """Estimate of the memory that one more coalition in a batch takes."""
        sizes = [_numbers(n.meta["val"], self.n_samples) for n in self.suffix]
        sizes += [_numbers(v, self.n_samples) for v in self.boundary.values()]
        return 4 * 3 * max(sizes, default=1)

    @torch.no_grad()
    def run(self, coalitions: torch.Tensor) -> torch.Tensor:
        """Outputs (M, N, ...) for the float gates ``coalitions`` on the group's units.

        Their shape is (M, group size) when all samples share them, (M, N, group size) when each has its own.
        """
        m, n = len(coalitions), self.n_samples
        own = coalitions.repeat_interleave(n, 0) if coalitions.ndim == 2 else coalitions.flatten(0, 1)
        base = coalitions.new_ones(self.program.n_units) if self.base is None else self.base
        gates = base.repeat(m * n, 1)
        gates[:, self.units] = own
        env = {name: _folded(value, m, n, self.program.batch_dims[name]) for name, value in self.boundary.items()}
        self.program._execute(self.suffix, env, self.tensors, m * n, gates, only=self._only)
        out = env[self.program.captured.output.name]
        return out.reshape(m, n, *out.shape[1:])

    @torch.no_grad()
    def finish(self, reader: fx.Node, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """Outputs (M, s, ...) of the samples ``rows`` from what the group's only ``reader`` gave: (M, s, ...)."""
        m, s = values.shape[:2]
        dims = self.program.batch_dims
        own = {name: _rows_of(value, rows, self.n_samples, dims[name]) for name, value in self.boundary.items()}
        env = {name: _folded(value, m, s, dims[name]) for name, value in own.items()}
        env[reader.name] = values.flatten(0, 1)
        nodes = [n for n in self.suffix if n is not reader]
        self.program._execute(nodes, env, self.tensors, m * s, self.base)
        out = env[self.program.captured.output.name]
        return out.reshape(m, s, *out.shape[1:])


def _rows_of(value: Any, rows: slice, n: int, batch: Any) -> Any:
    """The samples ``rows`` of a prefix value; along its batch dimension every sample takes an equal part."""
    if isinstance(value, (tuple, list)):
        return type(value)(_rows_of(v, rows, n, b) for v, b in zip(value, batch))
    if not isinstance(value, torch.Tensor) or batch is None:
        return value
    each = value.shape[batch] // n
    return value.narrow(batch, rows.start * each, (rows.stop - rows.start) * each)



def _numbers(value: Any, batch: int) -> int:
    values = value if isinstance(value, (tuple, list)) else [value]
    total = 0
    for v in values:
        if isinstance(v, torch.Tensor):
            count = 1
            for size in v.shape:
                count *= int_at(size, batch)
            total += count
    return total


def _folded(value: Any, m: int, n: int, batch: Any) -> Any:
    """Repeat a prefix value for m coalitions along its batch dimension, if it has one."""
    if isinstance(value, (tuple, list)):
        return type(value)(_folded(v, m, n, b) for v, b in zip(value, batch))
    if not isinstance(value, torch.Tensor) or batch is None:
        return value
    size = m * value.shape[batch]
    repeated = value.unsqueeze(batch).expand(*value.shape[:batch], m, *value.shape[batch:])
    return repeated.reshape(*value.shape[:batch], size, *value.shape[batch + 1 :])
