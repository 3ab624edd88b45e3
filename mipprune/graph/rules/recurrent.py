"""LSTM, GRU and plain recurrent networks: units are hidden units, the same in all layers and directions."""

from __future__ import annotations

from typing import Any

import torch

from ..context import Context, Labels, Value
from ..masked_recurrent import masked_gru, masked_lstm, masked_rnn
from ..registry import register_rule

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_MASKED = {"lstm": masked_lstm, "gru": masked_gru, "rnn_tanh": masked_rnn, "rnn_relu": masked_rnn}


@register_rule("aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input")
def _recurrent(
    c: Context, x: Value, states: Any, weights: list[Value], biased: bool, layers: int, p: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> Any:
    """One number ``hidden_size`` serves all layers and directions, so unit j leaves everywhere at once."""
    kind = str(c.node.target).split(".")[1]
    per_layer, directions = 4 if biased else 2, 2 if bidirectional else 1
    shapes = c.shapes
    if len(weights) != per_layer * layers * directions or any(w.name is None for w in weights) or x.labels.ndim != 3:
        c.pin(x.labels, "a recurrent layer with projections, computed weights or no batch dimension")
        return tuple(c.zeros(shape) for shape in shapes)
    size = weights[1].labels.shape[1]
    hidden = c.along(weights[1], 1)
    hidden = c.zeros([size]) if hidden is None else hidden
    for state in [states] if isinstance(states, Value) else states:
        c.match(2, hidden, state, 3)
    steps = x.labels.shape[1 if batch_first else 0]
    columns = c.features(x, 2)
    c.read(columns, 2)
    for number in range(layers * directions):
        own = weights[number * per_layer : (number + 1) * per_layer]
        if number >= directions:
            columns = hidden.repeat(directions)
        _one_layer(c, own, columns, hidden, _GATES[kind], steps)
    c.read(hidden, 2, masked=_MASKED[kind])
    out = c.spread(hidden.repeat(directions), 2, shapes[0])
    return (out, *(c.spread(hidden, 2, shape) for shape in shapes[1:]))


@register_rule("aten.lstm_cell", "aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def _cell(c: Context, x: Value, states: Any, *weights: Value | None) -> Any:
    """One step of a loop: the states before and after it are the same hidden units."""
    from_input, from_hidden, *biases = (w for w in weights if w is not None)
    before = [states] if isinstance(states, Value) else list(states)
    if from_input.name is None or from_hidden.name is None or x.labels.ndim != 2:
        for value in (x, *before):
            c.pin(value.labels, "a recurrent cell with computed weights or no batch dimension")
        outs = tuple(c.zeros(shape) for shape in c.shapes)
        return outs[0] if isinstance(states, Value) else outs
    own = c.along(from_hidden, 1)
    hidden = c.zeros([from_hidden.labels.shape[1]]) if own is None else own
    for state in before:
        c.match(1, hidden, state, 2)
    columns = c.features(x, 1)
    c.read(columns, 1)
    c.read(hidden, 1, argument=1 if isinstance(states, Value) else (1, 0))
    gates = from_hidden.labels.shape[0] // len(hidden)
    _one_layer(c, [from_input, from_hidden, *biases], columns, hidden, gates, 1)
    after = tuple(c.spread(hidden, 1, shape) for shape in c.shapes)
    return after[0] if isinstance(states, Value) else after


def _one_layer(c: Context, weights: list[Value], columns: Labels, hidden: Labels, gates: int, steps: int) -> None:
    from_input, from_hidden, *biases = weights
    rows = hidden.repeat(gates)
    for weight in (from_input, from_hidden):
        c.couple(c.make(weight, 0), rows)
    for weight, inputs in ((from_input, columns), (from_hidden, hidden)):
        own = c.along(weight, 1)
        c.couple(inputs, torch.zeros_like(inputs) if own is None else own)
        c.cost(rows, steps, inputs)
    for bias in biases:
        c.attach(bias, rows)
