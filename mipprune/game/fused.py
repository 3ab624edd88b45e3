"""Fused walks for multilayer-perceptron suffixes, compiled by numba.

When the units of a layer are read by one linear layer, and only linear layers and elementwise activations follow, a
coalition's pre-activation changes by ``a_ki W[:, i]`` when player i comes or goes: m multiply-adds instead of n m.
Units with a_ki = 0 are null players of sample k and cost nothing.  One kernel does the update, the rest of the network
and the value, sample by sample, in cache.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import cast

import numpy as np
import torch
from torch import fx

from ..graph import Program
from ..graph.program import Prefix

__all__ = ["Chain", "chain_of", "fused_available", "fused_toggle", "fused_toggle_pairs", "fused_walk"]

#: Activations the kernel knows, by ATen name; values are their codes.
_ACTIVATIONS = {"identity": 0, "relu": 1, "leaky_relu": 2, "tanh": 3, "sigmoid": 4, "silu": 5, "gelu": 6}
_VALUES = {"cross_entropy": 0, "accuracy": 1, "margin": 2, "logit_distance": 3}


@dataclasses.dataclass(frozen=True)
class Chain:
    """The suffix as numbers: pre-activation of the first reader, then (activation, linear) pairs up to the logits.

    Attributes:
        activations: (N, n), what each player hands over.
        columns: (n, m), row i is the reader's weight column of player i.
        offset: (m,), the reader's bias and the share of inputs that are no players, per sample (N, m).
        codes: int64 (L,), activation before each of the L further linear layers.
        slopes: (L,), negative slope for leaky ReLU.
        widths: int64 (L + 1,): m, then the output width of each linear layer.
        weights, biases: all further linear layers, row-major, one after the other.
    """

    activations: np.ndarray
    columns: np.ndarray
    offset: np.ndarray
    codes: np.ndarray
    slopes: np.ndarray
    widths: np.ndarray
    weights: np.ndarray
    biases: np.ndarray


def fused_available() -> bool:
    """Whether numba is installed (extra ``fast``)."""
    return importlib.util.find_spec("numba") is not None


def chain_of(prefix: Prefix, program: Program) -> Chain | None:
    """The suffix as a :class:`Chain`, or ``None`` when it is anything else."""
    nodes = [n for n in prefix.suffix if not _is_passthrough(n)]
    if not nodes or _resolved(program.captured.output) is not nodes[-1]:
        return None
    first = nodes[0]
    if str(first.target) != "aten.linear.default" or prefix.base is not None:
        return None
    read = program.read_of(first)
    source = prefix.boundary.get(first.all_input_nodes[0].name)
    if read is None or not isinstance(source, torch.Tensor) or source.ndim != 2:
        return None
    previous = first
    stages: list[tuple[int, float, torch.Tensor, torch.Tensor]] = []
    code, slope = 0, 0.0
    before: tuple[torch.Tensor, torch.Tensor] | None = None
    scale_shift: list[tuple[torch.Tensor, torch.Tensor]] = []
    for node in nodes[1:]:
        inputs = [_resolved(a) for a in node.all_input_nodes if a.name not in prefix.tensors]
        if inputs != [previous]:
            return None
        name = str(node.target).removeprefix("aten.").partition(".")[0]
        if name == "linear":
            weight, bias = _weight_and_bias(node, prefix.tensors)
            if before is not None:
                weight, bias = weight * before[0], bias + weight @ before[1]
            stages.append((code, slope, weight, bias))
            code, slope, before = 0, 0.0, None
        elif name in _ACTIVATIONS and code == 0 and before is None and _plain(node, name):
            code = _ACTIVATIONS[name]
            slope = float(cast(float, node.args[1])) if len(node.args) > 1 else 0.01
        elif name == "batch_norm" and before is None:
            folded = _batch_norm(node, prefix.tensors)
            if code != 0:
                before = folded  # behind an activation: belongs to the next linear layer
            elif stages:
                c, s, weight, bias = stages[-1]
                stages[-1] = (c, s, weight * folded[0][:, None], bias * folded[0] + folded[1])
            else:
                scale_shift.append(folded)
        else:
            return None
        previous = node
    if code != 0:  # an activation on the logits: not a classifier's head
        return None
    return _chain(prefix, program, first, source, stages, scale_shift)


def _chain(
    prefix: Prefix, program: Program, first: fx.Node, source: torch.Tensor,
    stages: list[tuple[int, float, torch.Tensor, torch.Tensor]],
    scale_shift: list[tuple[torch.Tensor, torch.Tensor]],
) -> Chain | None:
    read = program.read_of(first)
    assert read is not None
    weight, bias = _weight_and_bias(first, prefix.tensors)
    own = (read.units >= prefix.units.start) & (read.units < prefix.units.stop)
    units = (read.units[own] - prefix.units.start).cpu()
    size = prefix.units.stop - prefix.units.start
    if int(own.sum()) != size or len(units.unique()) != size:
        return None  # a unit of several features (a flattened channel): the rank-1 update doesn't hold
    order = units.argsort()
    activations = source[:, own][:, order]
    columns = weight[:, own][:, order].t()
    rest = source[:, ~own] @ weight[:, ~own].t()
    offset = rest + bias
    for scale, shift in scale_shift:
        columns, offset = columns * scale, offset * scale + shift
    dtype = np.float64 if source.dtype == torch.float64 else np.float32

    def array(x: torch.Tensor) -> np.ndarray:
        return np.ascontiguousarray(x.detach().cpu().numpy(), dtype=dtype)

    empty = torch.zeros(0)
    return Chain(
        activations=array(activations),
        columns=array(columns),
        offset=array(offset),
        codes=np.array([s[0] for s in stages], dtype=np.int64),
        slopes=np.array([s[1] for s in stages], dtype=dtype),
        widths=np.array([weight.shape[0], *(len(s[3]) for s in stages)], dtype=np.int64),
        weights=array(torch.cat([s[2].flatten() for s in stages] or [empty])),
        biases=array(torch.cat([s[3] for s in stages] or [empty])),
    )


def _is_passthrough(node: fx.Node) -> bool:
    return str(node.target).startswith(("aten.dropout", "aten.alpha_dropout", "aten.clone", "aten.detach"))


def _resolved(node: fx.Node) -> fx.Node:
    while _is_passthrough(node):
        node = node.all_input_nodes[0]
    return node


def _plain(node: fx.Node, name: str) -> bool:
    """Whether the activation is called with nothing but what the kernel knows."""
    return len(node.args) <= 1 + (name == "leaky_relu") and not node.kwargs


def _weight_and_bias(node: fx.Node, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Parameters of a linear layer; a missing bias is zeros."""
    weight, *bias = (tensors[a.name] for a in node.args[1:] if isinstance(a, fx.Node))
    return weight, bias[0] if bias else weight.new_zeros(len(weight))


def _batch_norm(node: fx.Node, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of an evaluation-mode batch-norm."""
    weight, bias, mean, var = (tensors[a.name] if isinstance(a, fx.Node) else None for a in node.args[1:5])
    assert mean is not None
    assert var is not None
    scale = (var + float(cast(float, node.args[7]))) ** -0.5
    scale = scale if weight is None else scale * weight
    return scale, (0 if bias is None else bias) - mean * scale


def fused_walk(chain: Chain, orders: np.ndarray, value: str, targets: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """:meth:`SampleGame.walk` by the fused kernel."""
    out = np.empty(chain.activations.shape)
    from .kernels import walk

    walk(*_arguments(chain), np.ascontiguousarray(orders, np.int64), _VALUES[value], targets,
         dense.astype(chain.columns.dtype), out)
    return out


def fused_toggle(chain: Chain, masks: np.ndarray, value: str, targets: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """:meth:`SampleGame.toggle` by the fused kernel."""
    out = np.empty(chain.activations.shape)
    from .kernels import toggle

    toggle(*_arguments(chain), np.ascontiguousarray(masks, np.bool_), _VALUES[value], targets,
           dense.astype(chain.columns.dtype), out)
    return out


def fused_toggle_pairs(
    chain: Chain, masks: np.ndarray, value: str, targets: np.ndarray, dense: np.ndarray
) -> np.ndarray:
    """:meth:`SampleGame.toggle_pairs` by the fused kernel; only pairs active on a sample cost anything there."""
    n_samples, n = chain.activations.shape
    out = np.zeros((n, n))
    from .kernels import toggle_pairs

    toggle_pairs(*_arguments(chain), np.ascontiguousarray(masks, np.bool_), _VALUES[value], targets,
                 dense.astype(chain.columns.dtype), out)
    return (out + out.T) / n_samples


def _arguments(c: Chain) -> tuple[np.ndarray, ...]:
    return c.activations, c.columns, c.offset, c.codes, c.slopes, c.widths, c.weights, c.biases
