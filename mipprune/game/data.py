"""Calibration and held-out data in one form, whatever the user brings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from ..graph import UnitGraph

__all__ = ["LabelledData", "as_data", "check_samples", "read_data"]


@dataclasses.dataclass(frozen=True)
class LabelledData:
    """Samples in memory.

    Attributes:
        inputs: one tensor per argument of the model, samples first.
        targets: class numbers, int64 of shape (N,) (or what a callable value function takes).
    """

    inputs: tuple[torch.Tensor, ...]
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: torch.Tensor | slice) -> LabelledData:
        """The samples at ``index`` (numbers, a bool mask or a slice), on the same device."""
        return LabelledData(tuple(x[index] for x in self.inputs), self.targets[index])

    def batches(self, size: int = 512) -> Iterator[LabelledData]:
        """All samples in their order, ``size`` at a time; the last part may be smaller."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))

    def split(self, fraction: float, seed: int) -> tuple[LabelledData, LabelledData]:
        """Two disjoint parts by a ``seed``, the second with about ``fraction`` of the samples (at least one each).

        Raises:
            DataError: there is one sample only.
        """
        if len(self) < 2:
            raise DataError("one sample can't be split into a calibration and a held-out part; pass holdout= yourself")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        second = min(len(self) - 1, max(1, round(fraction * len(self))))
        return self.take(order[second:]), self.take(order[:second])


def as_data(data: Any, graph: UnitGraph, what: str = "calibration data") -> LabelledData:
    """Read ``data`` into memory and check it against the traced network.

    Args:
        data: in any of the forms of :func:`mipprune.prune`.
        graph: the network that the data are for.
        what: how errors call the data.

    Raises:
        DataError: empty, of different lengths, not finite, or of another sample shape than the network was traced with.
    """
    checked = read_data(data, graph.model, what)
    _check(checked, graph, what)
    return checked


def read_data(data: Any, model: nn.Module, what: str = "calibration data", max_samples: int = 100_000) -> LabelledData:
    """Read ``data`` into memory, on the device and in the floating type of ``model``'s first parameter.

    Args:
        data: a pair ``(inputs, targets)`` of tensors or arrays (``inputs`` may be a tuple for several arguments), a
            ``Dataset`` of such pairs, a ``DataLoader`` or any iterable of batches ``(inputs, targets)``.
        what: how errors call it.
        max_samples: an iterable is read no further than this.
    """
    if isinstance(data, LabelledData):
        inputs, targets = data.inputs, data.targets
    elif isinstance(data, (tuple, list)) and len(data) == 2 and not isinstance(data[1], (tuple, list)):
        inputs, targets = _inputs(data[0], what), _tensor(data[1], what)
    elif isinstance(data, (Iterable, Dataset)):
        batches = DataLoader(data, batch_size=256) if isinstance(data, Dataset) else data
        inputs, targets = _from_batches(batches, what, max_samples)
    else:
        raise DataError(f"{what}: expected (inputs, targets), a Dataset or an iterable of batches, "
                        f"got {type(data).__name__}")
    if any(x.ndim == 0 for x in (*inputs, targets)):
        raise DataError(f"{what}: inputs and targets need samples along their first dimension")
    first = next(model.parameters())
    inputs = tuple(x.to(first.device, first.dtype if x.is_floating_point() else None) for x in inputs)
    return LabelledData(inputs, targets.to(first.device))


def _inputs(value: Any, what: str) -> tuple[torch.Tensor, ...]:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(_tensor(part, what) for part in parts)


def _tensor(value: Any, what: str) -> torch.Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what}: expected tensors or arrays, got {type(value).__name__} ({error})") from error


def _from_batches(batches: Iterable[Any], what: str, max_samples: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    parts: list[tuple[tuple[torch.Tensor, ...], torch.Tensor]] = []
    seen = 0
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise DataError(f"{what}: every batch must be a pair (inputs, targets), got {type(batch).__name__}")
        parts.append((_inputs(batch[0], what), _tensor(batch[1], what)))
        seen += len(parts[-1][1])
        if seen >= max_samples:
            break
    if not parts:
        raise DataError(f"{what} is empty: no batch came out of it")
    columns = zip(*(inputs for inputs, _ in parts), strict=True)
    return tuple(torch.cat(list(column)) for column in columns), torch.cat([targets for _, targets in parts])


def _check(data: LabelledData, graph: UnitGraph, what: str) -> None:
    names, shapes = graph.program.captured.inputs, graph.program.captured.input_shapes
    if len(data.inputs) != len(names):
        raise DataError(f"{what}: the network takes {len(names)} inputs {names}, got {len(data.inputs)}")
    check_samples(data, what, names)
    for name, x, shape in zip(names, data.inputs, shapes, strict=True):
        fixed = [(d, s) for d, s in enumerate(shape) if d > 0 and isinstance(s, int)]
        if x.ndim != len(shape) or any(x.shape[d] != s for d, s in fixed):
            want = ("N", *(s if isinstance(s, int) else "?" for s in shape[1:]))
            raise DataError(f"{what}: input {name!r} has shape {tuple(x.shape)}, the network was traced with {want}")


def check_samples(data: LabelledData, what: str, names: Sequence[str] = ()) -> None:
    """Raise :class:`DataError` if there are no samples, targets don't match them, or values aren't finite."""
    if len(data) == 0:
        raise DataError(f"{what} is empty")
    for number, x in enumerate(data.inputs):
        name = names[number] if names else f"number {number}"
        if len(x) != len(data):
            raise DataError(f"{what}: {len(x)} samples in input {name!r}, but {len(data)} targets")
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x).reshape(len(x), -1).all(1)).sum())
            raise DataError(f"{what}: input {name!r} holds NaN or infinite values in {bad} of {len(x)} samples")
