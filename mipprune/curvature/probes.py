"""What goes into a layer and what comes back to it: rows of inputs, and of derivatives at the outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ModelStateError

__all__ = ["LayerCall", "Probes", "probed_layers"]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def probed_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The Linear and Conv1d/2d/3d layers of ``model`` by module path; a shared module appears once."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer.

    Attributes:
        rows: (N, T, groups, d): every input vector that the weights were applied to, by sample and position, 1
            appended if there is a bias.
        probe: zeros of the output's shape that were added to it; derivatives in them are derivatives in the output.
    """

    rows: torch.Tensor
    probe: torch.Tensor


class Probes:
    """Forward hooks on some layers; as a context manager, it takes them away again.

    A probe is added to each output rather than the output kept, so that activations which work in place do no harm.

    Attributes:
        calls: module path -> the calls of the last :meth:`run`.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = dict(layers)
        self.calls: dict[str, list[LayerCall]] = {}

    def __enter__(self) -> Self:
        self._handles = [
            module.register_forward_hook(self._hook(name)) for name, module in self.layers.items()
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self.calls = {}

    def run(self, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The model's first output, with a graph; forgets the calls of the run before."""
        self.calls, self.n_samples = {name: [] for name in self.layers}, len(inputs[0])
        with torch.enable_grad():
            out = model(*inputs)
        return out[0] if isinstance(out, (tuple, list)) else out

    def inputs(self) -> dict[str, torch.Tensor]:
        """The rows (N, T, groups, d) of every layer that was called; calls of one layer are further positions."""
        return {name: self._joined(name, [call.rows for call in calls]) for name, calls in self.calls.items() if calls}

    def pull_back(
        self, outputs: torch.Tensor, cotangent: torch.Tensor, create_graph: bool = False
    ) -> dict[str, torch.Tensor]:
        """Derivatives of ``(outputs * cotangent).sum()`` at the layers' outputs: rows (N, T, groups, o)."""
        probes = [call.probe for calls in self.calls.values() for call in calls]
        grads = iter(torch.autograd.grad(
            outputs, probes, cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True,
            materialize_grads=True,
        ))
        return {
            name: self._joined(name, [_output_rows(self.layers[name], next(grads)) for _ in calls])
            for name, calls in self.calls.items() if calls
        }

    def _joined(self, name: str, parts: list[torch.Tensor]) -> torch.Tensor:
        if any(len(part) != self.n_samples for part in parts):
            raise ModelStateError(
                f"layer {name!r} gets inputs whose first dimension is {len(parts[0])} for {self.n_samples} samples; "
                f"keep samples first, or leave the layer out with layers="
            )
        return torch.cat(parts, 1)

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            probe = torch.zeros_like(output, requires_grad=True)
            self.calls[name].append(LayerCall(_input_rows(module, args[0]), probe))
            return output + probe

        return hook


def _input_rows(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """(N, T, groups, d), a tensor of its own."""
    rows = _output_rows(module, x) if isinstance(module, nn.Linear) else _patches(module, x)
    if module.bias is None:
        return rows.clone()
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], -1)


def _patches(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The patches that a convolution reads, by a convolution with one-hot kernels: (N, T, groups, d)."""
    padding = module.padding
    if module.padding_mode != "zeros":
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        padding = 0
    size = int(torch.tensor(module.kernel_size).prod())
    onehot = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *module.kernel_size)
    kernel = onehot.repeat(module.in_channels, *[1] * (onehot.ndim - 1))
    convolve = _CONV[len(module.kernel_size)]
    out = convolve(x, kernel, None, module.stride, padding, module.dilation, module.in_channels)
    return _output_rows(module, out)


def _output_rows(module: Any, z: torch.Tensor) -> torch.Tensor:
    """(N, T, groups, channels of a group)."""
    rows = z if isinstance(module, nn.Linear) else z.movedim(1, -1)
    groups = getattr(module, "groups", 1)
    return rows.reshape(len(z), -1, groups, rows.shape[-1] // groups)
