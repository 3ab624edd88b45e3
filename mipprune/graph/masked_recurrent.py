"""Recurrent networks step by step, where a gate acts on what every hidden unit hands to the next step and outwards.

Slow beside torch's own kernels, and used under masks only: inside those kernels a hidden unit can't be switched off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["masked_gru", "masked_lstm", "masked_rnn"]

Tensor = torch.Tensor
#: (state, input part, hidden part) -> new state; a state is a tuple whose first entry is the output.
Cell = Callable[[tuple[Tensor, ...], Tensor, Tensor], tuple[Tensor, ...]]


def masked_lstm(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], gate: Tensor) -> tuple[Tensor, ...]:
    """``aten.lstm.input`` with gates on the hidden units."""

    def cell(state: tuple[Tensor, ...], x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        i, f, g, o = (x + h).chunk(4, -1)
        memory = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(memory), memory

    return _run(cell, args, tuple(args[1]), gate)


def masked_gru(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], gate: Tensor) -> tuple[Tensor, ...]:
    """``aten.gru.input`` with gates on the hidden units."""

    def cell(state: tuple[Tensor, ...], x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        (rx, zx, nx), (rh, zh, nh) = x.chunk(3, -1), h.chunk(3, -1)
        update = torch.sigmoid(zx + zh)
        return ((1 - update) * torch.tanh(nx + torch.sigmoid(rx + rh) * nh) + update * state[0],)

    return _run(cell, args, (args[1],), gate)


def masked_rnn(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], gate: Tensor) -> tuple[Tensor, ...]:
    """``aten.rnn_tanh.input`` or ``aten.rnn_relu.input`` with gates on the hidden units."""
    activation = torch.tanh if "tanh" in str(target) else torch.relu
    return _run(lambda state, x, h: (activation(x + h),), args, (args[1],), gate)


def _run(cell: Cell, args: tuple[Any, ...], initial: tuple[Tensor, ...], gate: Tensor) -> tuple[Tensor, ...]:
    x, _, weights, biased, layers, _, _, bidirectional, batch_first = args
    x = x.transpose(0, 1) if batch_first else x
    gate = gate.reshape(-1, gate.shape[-1])
    per_layer, directions = 4 if biased else 2, 2 if bidirectional else 1
    last: list[list[Tensor]] = [[] for _ in initial]
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            own = weights[number * per_layer : (number + 1) * per_layer]
            state = tuple(s[number] for s in initial)
            out, state = _one_direction(cell, x.flip(0) if direction else x, state, own, gate)
            outputs.append(out.flip(0) if direction else out)
            for kept, entry in zip(last, state):
                kept.append(entry)
        x = torch.cat(outputs, -1)
    return (x.transpose(0, 1) if batch_first else x, *(torch.stack(entries) for entries in last))


def _one_direction(
    cell: Cell, x: Tensor, state: tuple[Tensor, ...], weights: list[Tensor], gate: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    from_input, from_hidden, *biases = weights
    bias_input, bias_hidden = biases or (None, None)
    outputs = []
    for step in F.linear(x, from_input, bias_input):
        state = cell(state, step, F.linear(state[0] * gate, from_hidden, bias_hidden))
        outputs.append(state[0] * gate)
    return torch.stack(outputs), state
